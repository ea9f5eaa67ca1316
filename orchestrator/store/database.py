"""Connections and transactions.

PostgreSQL: READ COMMITTED, one pooled connection a transaction. SQLite: WAL, ``BEGIN IMMEDIATE`` (one writer), a busy
timeout; ``synchronous`` NORMAL survives a killed process, FULL a power cut.

Nobody waits without end: for a connection, for a statement, for a locked row, or for a host that is gone.

Driver errors leave here as ``Unavailable`` (cannot reach, timed out), ``Locked`` (a row, for too long),
``SchemaOutdated`` (tables are missing), or as they are; deadlocks and serialisation failures are retried whole by
``Database.run``.

SQLAlchemy keeps the pool; statements go straight to the driver: what lies between costs more than the statement.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar

import psycopg
from psycopg.rows import dict_row, tuple_row
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import ExceptionContext, make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import PoolProxiedConnection, QueuePool

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
#: Of both drivers: it is not the statement that is wrong.
_AWAY = (psycopg.OperationalError, psycopg.InterfaceError, sqlite3.OperationalError, sqlite3.InterfaceError)


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
        with translated():
            held = self.engine.raw_connection()
            raw = held.dbapi_connection
            session = Session(raw, self.dialect)
            try:
                if not session.postgres:
                    session.execute("BEGIN" if readonly else "BEGIN IMMEDIATE")
                yield session
                held.commit()
            except BaseException as error:
                self._give_up(held, error)
                raise
            finally:
                held.close()

    def _give_up(self, held: PoolProxiedConnection, error: BaseException) -> None:
        """Rolls back; a connection that is broken, or whose server takes no writes, is not given to anybody again."""
        raw = held.dbapi_connection
        if isinstance(raw, psycopg.Connection) and (raw.closed or _sqlstate(error) == _READ_ONLY):
            held.invalidate(error)
            self.engine.dispose()  # the others were made before it broke
            return
        with suppress(*_AWAY):
            held.rollback()

    def run(self, work: Callable[[Session], T], *, readonly: bool = False, attempts: int = 5) -> T:
        """Runs ``work`` in a transaction, whole again after a deadlock or serialisation failure."""
        while True:
            attempts -= 1
            try:
                with self.connect(readonly=readonly) as session:
                    return work(session)
            except psycopg.Error as error:
                if attempts <= 0 or error.sqlstate not in _RETRYABLE:
                    raise

    def close(self) -> None:
        self.engine.dispose()


#: SQL in the words of ``Dialect``, with its values.
Statement = tuple[str, Mapping[str, Any]]


class Cursor(Protocol):
    """What a statement came to; rows are tuples."""

    @property
    def rowcount(self) -> int: ...
    def fetchone(self) -> Any: ...
    def __iter__(self) -> Iterator[Any]: ...


class Session:
    """One open transaction on a driver's connection; rows are read by name, whatever its owner has set."""

    __slots__ = ("dialect", "raw")

    def __init__(self, raw: Any, dialect: Dialect) -> None:
        self.raw = raw
        self.dialect = dialect

    @property
    def postgres(self) -> bool:
        return self.dialect.name == "postgresql"

    def execute(self, sql: str, values: Mapping[str, Any] | None = None) -> Cursor:
        cursor: Cursor = self._ask(sql, values)
        return cursor

    def many(self, sql: str, values: Sequence[Mapping[str, Any]]) -> int:
        """Runs ``sql`` for each of ``values``; the number of rows it touched in all."""
        if not values:
            return 0
        cursor = self.raw.cursor()
        cursor.executemany(self.dialect.sql(sql), values)
        return int(cursor.rowcount)

    def rows(self, sql: str, values: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        cursor = self._ask(sql, values, named=True)
        if self.postgres:
            return list(cursor.fetchall())
        names = [column[0] for column in cursor.description or ()]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def _ask(self, sql: str, values: Mapping[str, Any] | None, *, named: bool = False) -> Any:
        """The driver's cursor after ``sql``; ``named``: PostgreSQL's driver makes the dicts, it is quicker at it."""
        if self.postgres:
            cursor = self.raw.cursor(row_factory=dict_row if named else tuple_row)
        else:
            cursor = self.raw.cursor()
            cursor.row_factory = None
        cursor.execute(self.dialect.sql(sql), values or {})
        return cursor

    def together(self, *asked: Statement) -> list[list[dict[str, Any]]]:
        """The rows of each statement, in order, in one round trip of PostgreSQL's; none for a statement without rows.

        They run one after another: each sees what had been committed before it began.
        """
        if not self.postgres:
            return [self.rows(sql, values) for sql, values in asked]
        with self.raw.pipeline():
            cursors = [self._ask(sql, values, named=True) for sql, values in asked]
        return [list(cursor.fetchall()) if cursor.pgresult.nfields else [] for cursor in cursors]

    def one(self, sql: str, values: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
        return next(iter(self.rows(sql, values)), None)

    def value(self, sql: str, values: Mapping[str, Any] | None = None) -> Any:
        row = self.execute(sql, values).fetchone()
        return None if row is None else row[0]

    @contextmanager
    def patience(self, seconds: float) -> Iterator[None]:
        """Within the block a locked row is waited for so long. After an error the transaction is over in any case."""
        if not self.postgres:
            yield
            return
        config = "SELECT current_setting('lock_timeout'), set_config('lock_timeout', :wanted, true)"
        before = self.value(config, {"wanted": f"{int(seconds * 1000)}ms"})
        yield
        self.value("SELECT set_config('lock_timeout', :before, true)", {"before": before})

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
    if _sqlstate(context.original_exception) == _READ_ONLY:
        context.is_disconnect = True


def _sqlstate(error: BaseException | None) -> str | None:
    return getattr(error, "sqlstate", None)


@contextmanager
def translated() -> Iterator[None]:
    """Turns what a driver raises, by itself or through SQLAlchemy, into errors people can act on."""
    try:
        yield
    except OrchestratorError:
        raise
    except PoolTimeout as error:
        raise Unavailable(
            "every database connection is in use.", mend="Try again; raise ORCHESTRATOR_DB_POOL_SIZE."
        ) from error
    except (DBAPIError, psycopg.Error, sqlite3.Error) as error:
        meaning = _meaning(error.orig if isinstance(error, DBAPIError) else error)
        if meaning is None:
            raise
        raise meaning from error


def _meaning(error: BaseException | None) -> OrchestratorError | None:
    state = _sqlstate(error)
    text = next(iter(str(error).strip().splitlines()), type(error).__name__)
    if state in _MISSING or "no such table" in text or "no such column" in text:
        return SchemaOutdated(
            f"the database schema does not fit this version ({text}).", mend="Run: orchestrator migrate"
        )
    if state == _LOCKED:
        return Locked(
            "a row that this needs is locked by another transaction.",
            mend="Try again; pg_blocking_pids() in PostgreSQL says who holds it.",
        )
    if state in _UNAVAILABLE or (isinstance(error, _AWAY) and state not in _RETRYABLE):
        return Unavailable(
            f"the database does not answer: {text}", mend="Check ORCHESTRATOR_DATABASE_URL and the server."
        )
    return None
