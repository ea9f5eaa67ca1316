"""Connections and transactions.

PostgreSQL: READ COMMITTED, one pooled connection a transaction. SQLite: WAL, ``BEGIN IMMEDIATE`` (one writer), a busy
timeout; ``synchronous`` NORMAL survives a killed process, FULL a power cut.

Nobody waits without end: for a connection, for a statement, for a locked row, or for a host that is gone.

Driver errors leave here as ``Unavailable`` (cannot reach, timed out), ``Locked`` (a row, for too long),
``SchemaOutdated`` (tables are missing), or as they are; deadlocks and serialisation failures are retried whole by
``Database.run``.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import CursorResult, ExceptionContext, make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import QueuePool

from orchestrator.domain.errors import ConfigError, Locked, OrchestratorError, SchemaOutdated, Unavailable
from orchestrator.store.dialect import Dialect

T = TypeVar("T")

#: PostgreSQL: serialization_failure, deadlock_detected.
_RETRYABLE = {"40001", "40P01"}
#: read_only_sql_transaction: a standby, or a primary that has stepped down.
_READ_ONLY = "25006"
_UNAVAILABLE = {_READ_ONLY, "57P01", "57P02", "57P03", "57014", "53100", "53200", "53300"}
#: lock_not_available.
_LOCKED = "55P03"
_MISSING = {"42P01", "42703"}


class Database:
    """A pool of connections to one database."""

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
    ) -> None:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
        if backend == "postgresql":
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
                    f" -c lock_timeout={int(lock_timeout * 1000)}",
                    **_notice_a_lost_host(statement_timeout),
                },
            )
            event.listen(self.engine, "handle_error", _leave_read_only)
        elif backend == "sqlite":
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
        options = {"readonly": readonly}
        with translated(), self.engine.connect().execution_options(**options) as connection, connection.begin():
            yield Session(connection, self.dialect)

    def run(self, work: Callable[[Session], T], *, readonly: bool = False, attempts: int = 5) -> T:
        """Runs ``work`` in a transaction, whole again after a deadlock or serialisation failure."""
        while True:
            attempts -= 1
            try:
                with self.connect(readonly=readonly) as session:
                    return work(session)
            except DBAPIError as error:
                if attempts <= 0 or _sqlstate(error) not in _RETRYABLE:
                    raise

    def close(self) -> None:
        self.engine.dispose()


class Session:
    """One open transaction, with statements in the driver's own style (no expression is built on the hot path)."""

    __slots__ = ("connection", "dialect")

    def __init__(self, connection: Connection, dialect: Dialect) -> None:
        self.connection = connection
        self.dialect = dialect

    @property
    def postgres(self) -> bool:
        return self.dialect.name == "postgresql"

    def execute(self, sql: str, values: Mapping[str, Any] | None = None) -> CursorResult[Any]:
        return self.connection.exec_driver_sql(self.dialect.sql(sql), dict(values or {}))

    def many(self, sql: str, values: Sequence[Mapping[str, Any]]) -> int:
        """Runs ``sql`` for each of ``values``; the number of rows it touched in all."""
        if not values:
            return 0
        return self.connection.exec_driver_sql(self.dialect.sql(sql), [dict(v) for v in values]).rowcount

    def rows(self, sql: str, values: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        return [dict(row) for row in self.execute(sql, values).mappings()]

    def one(self, sql: str, values: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
        row = self.execute(sql, values).mappings().first()
        return None if row is None else dict(row)

    def value(self, sql: str, values: Mapping[str, Any] | None = None) -> Any:
        return self.execute(sql, values).scalar()

    def now(self) -> float:
        return float(self.value("SELECT {now}"))


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
    if getattr(context.original_exception, "sqlstate", None) == _READ_ONLY:
        context.is_disconnect = True


def _sqlstate(error: DBAPIError) -> str | None:
    return getattr(error.orig, "sqlstate", None)


@contextmanager
def translated() -> Iterator[None]:
    """Turns what the driver raises into errors people can act on."""
    try:
        yield
    except OrchestratorError:
        raise
    except PoolTimeout as error:
        raise Unavailable(
            "every database connection is in use.", mend="Try again; raise ORCHESTRATOR_DB_POOL_SIZE."
        ) from error
    except DBAPIError as error:
        state = _sqlstate(error)
        text = str(error.orig).strip().splitlines()[0] if str(error.orig).strip() else type(error.orig).__name__
        missing = state in _MISSING or "no such table" in text or "no such column" in text
        if missing:
            raise SchemaOutdated(
                f"the database schema does not fit this version ({text}).", mend="Run: orchestrator migrate"
            ) from error
        if state == _LOCKED:
            raise Locked(
                "a row that this needs is locked by another transaction.",
                mend="Try again; pg_blocking_pids() in PostgreSQL says who holds it.",
                statement=error.statement or "",
            ) from error
        lost = isinstance(error, (OperationalError, InterfaceError)) and state not in _RETRYABLE
        if error.connection_invalidated or state in _UNAVAILABLE or lost:
            raise Unavailable(
                f"the database does not answer: {text}", mend="Check ORCHESTRATOR_DATABASE_URL and the server."
            ) from error
        raise
