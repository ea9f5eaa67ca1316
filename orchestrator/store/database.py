"""Connections and transactions.

PostgreSQL: READ COMMITTED, one pooled connection a transaction. SQLite: WAL, ``BEGIN IMMEDIATE`` (one writer), a busy
timeout; ``synchronous`` NORMAL survives a killed process, FULL a power cut.

Nobody waits without end: for a connection, for a statement, for a locked row, or for a host that is gone.

Driver errors leave here translated (``store/session.py``); deadlocks and serialisation failures are retried whole by
``Database.run``.

SQLAlchemy keeps the pool; statements go straight to the driver: what lies between costs more than the statement.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import ExceptionContext, make_url
from sqlalchemy.pool import PoolProxiedConnection, QueuePool

from orchestrator.domain.errors import ConfigError
from orchestrator.store.dialect import Dialect
from orchestrator.store.session import READ_ONLY, RETRYABLE, Session, sqlstate, translated

T = TypeVar("T")

#: A document of rows is a hundred to PostgreSQL's planner, be it one; and of a table that was never analysed it knows
#: nothing. While tables are small it would rather read them whole than look rows up by their keys: dearly, each time.
_BY_KEY = " -c enable_seqscan=off -c enable_hashjoin=off -c enable_mergejoin=off"


class Database:
    """A pool of connections to one database. ``by_key``: for one who reads and writes few rows, by their keys."""

    def __init__(
        self,
        url: str,
        *,
        pool_size: int = 5,
        sqlite_synchronous: str = "NORMAL",
        connect_timeout: float = 5.0,
        statement_timeout: float = 30.0,
        lock_timeout: float = 5.0,
        application: str = "orchestrator",
        by_key: bool = False,
    ) -> None:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
        if backend == "postgresql":
            from orchestrator.store.postgres import PostgresSession  # SQLite does without that driver

            self._kind: type[Session] = PostgresSession
            self.dialect = Dialect("postgresql")
            self.engine = create_engine(
                parsed.set(drivername="postgresql+psycopg"),
                pool_size=pool_size,
                max_overflow=0,
                pool_timeout=connect_timeout,
                pool_use_lifo=True,
                connect_args={
                    "connect_timeout": max(1, int(connect_timeout)),
                    "application_name": application,
                    "prepare_threshold": 2,
                    "options": f"-c statement_timeout={int(statement_timeout * 1000)}"
                    f" -c lock_timeout={int(lock_timeout * 1000)} -c jit=off{_BY_KEY if by_key else ''}",
                    **_notice_a_lost_host(statement_timeout),
                },
            )
            event.listen(self.engine, "handle_error", _leave_read_only)
        elif backend == "sqlite":
            self._kind = Session
            self.dialect = Dialect("sqlite")
            if not parsed.database or parsed.database == ":memory:":
                raise ConfigError("an in-memory SQLite database cannot be shared by threads.", mend="Give it a file.")
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
            self.engine = create_engine(
                parsed,
                poolclass=QueuePool,
                pool_size=pool_size,
                max_overflow=10,
                connect_args={"check_same_thread": False, "timeout": 10.0, "isolation_level": None},
            )
            _prepare_sqlite(self.engine, sqlite_synchronous)
        else:
            raise ConfigError(
                f"ORCHESTRATOR_DATABASE_URL names {backend!r}, which is not supported.",
                mend="Use postgresql://… or sqlite:///path/to/file.db.",
            )
        self.url = parsed

    @property
    def sqlite_file(self) -> Path | None:
        return Path(self.url.database) if self.dialect.name == "sqlite" and self.url.database else None

    @contextmanager
    def connect(self, *, readonly: bool = False) -> Iterator[Session]:
        """A transaction: commits at the end of the block, rolls back if it raises."""
        with translated():
            held = self.engine.raw_connection()
            raw: Any = held.dbapi_connection
            session = self._kind(raw, self.dialect)
            try:
                if session.postgres:
                    raw.autocommit = True  # the session begins and ends its transaction
                else:
                    session.execute("BEGIN" if readonly else "BEGIN IMMEDIATE")
                yield session
                held.commit()
                if session.postgres:
                    raw.autocommit = False
            except BaseException as error:
                self._give_up(held, error)
                raise
            finally:
                held.close()

    def _give_up(self, held: PoolProxiedConnection, error: BaseException) -> None:
        """Rolls back; a connection that is broken, or whose server takes no writes, is not given to anybody again.

        Nor is one that was cut off within a statement: its transaction would be the next one's.
        """
        raw: Any = held.dbapi_connection
        if self.dialect.name != "postgresql":
            with suppress(Exception):  # what failed before says more
                held.rollback()
            return
        if raw.closed or sqlstate(error) == READ_ONLY:
            held.invalidate(error)
            self.engine.dispose()  # the others were made before it broke
            return
        try:
            held.rollback()
            raw.autocommit = False
        except Exception as another:  # noqa: BLE001 - what failed before says more
            held.invalidate(another)

    def run(self, work: Callable[[Session], T], *, readonly: bool = False, attempts: int = 5) -> T:
        """Runs ``work`` in a transaction, whole again after a deadlock or serialisation failure."""
        while True:
            attempts -= 1
            try:
                with self.connect(readonly=readonly) as session:
                    return work(session)
            except Exception as error:
                if attempts <= 0 or sqlstate(error) not in RETRYABLE:
                    raise

    def close(self) -> None:
        self.engine.dispose()


def _notice_a_lost_host(seconds: float) -> dict[str, int]:
    """A host that vanished without a word ends no statement: the kernel must notice, within about ``seconds``."""
    return {
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": int(seconds * 1000),
    }


def _prepare_sqlite(engine: Engine, synchronous: str) -> None:
    @event.listens_for(engine, "connect")
    def _on_connect(connection: sqlite3.Connection, _: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute(f"PRAGMA synchronous={'FULL' if synchronous == 'FULL' else 'NORMAL'}")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.execute("PRAGMA cache_size=-16000")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        readonly = connection.get_execution_options().get("readonly")
        connection.exec_driver_sql("BEGIN" if readonly else "BEGIN IMMEDIATE")


def _leave_read_only(context: ExceptionContext) -> None:
    """A connection to a server that takes no writes is as good as broken: the next may reach the one that does."""
    if sqlstate(context.original_exception) == READ_ONLY:
        context.is_disconnect = True
