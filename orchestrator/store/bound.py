"""The store on a connection that is the caller's, inside the caller's own transaction.

Nothing here commits. Each use is a savepoint: an error leaves the transaction as it was and usable. No row is locked
but those it inserts: counters go to a row that only this connection writes, and no payload is shared.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any, TypeVar
from weakref import WeakSet

import psycopg
from psycopg.pq import TransactionStatus
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session as OrmSession

from orchestrator.domain.errors import ConfigError, OrchestratorError, SchemaOutdated, SubmitInProgress, Unavailable
from orchestrator.domain.ids import Incarnation
from orchestrator.store import migrations
from orchestrator.store.database import Database
from orchestrator.store.dialect import Dialect
from orchestrator.store.payloads import PayloadSizes
from orchestrator.store.postgres import PostgresSession
from orchestrator.store.session import MOVED, Moved, Session, Statement, refused, translated

T = TypeVar("T")

_VERSION = "SELECT version_num FROM orchestrator_version"
_SAVEPOINT = "orchestrator_submit"
#: psycopg's connections whose database was of this version's schema when they were first used here.
_CHECKED: WeakSet[Any] = WeakSet()
_MEND = "Connect to the database in ORCHESTRATOR_DATABASE_URL, with psycopg 3 or sqlite3, directly or by SQLAlchemy."


def bind(connection: object) -> Bound:
    """``connection``: SQLAlchemy's ``Connection`` or ``Session``, psycopg's or sqlite3's ``Connection``.

    Raises ``ConfigError`` when it is another thing, commits each statement by itself, or its transaction has failed.
    """
    if isinstance(connection, OrmSession):
        connection = connection.connection()
    if isinstance(connection, Connection):
        connection.exec_driver_sql("SELECT 1")  # SQLAlchemy must know of the transaction, or it will not commit it
        raw: object = connection.connection.dbapi_connection
        _open_transaction(raw)
        return Bound(_AlchemySession(connection, _dialect(raw)), raw)
    _open_transaction(connection)
    return Bound(_session(connection), connection)


def _session(raw: object) -> Session:
    return Session(raw, _dialect(raw)) if isinstance(raw, sqlite3.Connection) else _Within(raw, _dialect(raw))


def _dialect(raw: object) -> Dialect:
    return Dialect("sqlite" if isinstance(raw, sqlite3.Connection) else "postgresql")


def _open_transaction(raw: object) -> None:
    """Sees to it that the statements that follow wait for the caller's commit."""
    if isinstance(raw, sqlite3.Connection):
        if raw.in_transaction:
            return
        if raw.isolation_level is None:
            raise ConfigError("this connection commits every statement by itself.", mend="Begin a transaction on it.")
        # Else a savepoint would be the transaction, and its release the commit.
        raw.execute("BEGIN IMMEDIATE")
    elif (inner := _psycopg(raw)) is not None:
        status = inner.info.transaction_status
        if status is TransactionStatus.INERROR:
            raise ConfigError("the connection's transaction has failed.", mend="Roll it back, then submit again.")
        if inner.autocommit and status is TransactionStatus.IDLE:
            raise ConfigError("this connection commits every statement by itself.", mend="Begin a transaction on it.")
    else:
        kind = f"{type(raw).__module__}.{type(raw).__qualname__}"
        raise ConfigError(f"a connection of type {kind} is not understood.", mend=_MEND)


def _psycopg(raw: object) -> psycopg.Connection[Any] | psycopg.AsyncConnection[Any] | None:
    """The driver's connection: itself, or inside SQLAlchemy's wrapper of an asynchronous one."""
    if isinstance(raw, psycopg.Connection):
        return raw
    inner = getattr(raw, "_connection", None)
    return inner if isinstance(inner, psycopg.AsyncConnection) else None


class Bound(Database):
    """A database that is one open transaction."""

    #: An input stands in its job's row whatever its size: a shared payload would be a lock on somebody else's.
    sizes = PayloadSizes(inline_bytes=2**31)

    def __init__(self, session: Session, raw: object) -> None:
        self._session = session
        self._raw = raw
        self.dialect = session.dialect

    def writer(self) -> Incarnation:
        """Whose counters these are: two open transactions never share a row."""
        inner = _psycopg(self._raw)
        return Incarnation(f"sql-{'file' if inner is None else inner.info.backend_pid}")

    @contextmanager
    def connect(self, *, readonly: bool = False) -> Iterator[Session]:  # noqa: ARG002 - the base's words
        """A savepoint: released at the end of the block, rolled back if it raises."""
        session = self._session
        lazy = session if isinstance(session, _Within) else None
        with _explained(), translated() if isinstance(session, _AlchemySession) else nullcontext():
            try:
                if lazy is None:
                    _, version = session.together((f"SAVEPOINT {_SAVEPOINT}", {}), (_VERSION, {}))
                    _check_schema(version)
                elif lazy.raw not in _CHECKED:
                    _check_schema(lazy.rows(_VERSION))
                    _CHECKED.add(lazy.raw)
                yield session
                if lazy is None or lazy.inside:
                    session.execute(f"RELEASE SAVEPOINT {_SAVEPOINT}")
            except BaseException:
                if lazy is None or lazy.inside:
                    with suppress(psycopg.Error, sqlite3.Error, DBAPIError):  # no savepoint: what failed says more
                        session.execute(f"ROLLBACK TO SAVEPOINT {_SAVEPOINT}")
                        session.execute(f"RELEASE SAVEPOINT {_SAVEPOINT}")
                raise
            finally:
                if lazy is not None:
                    lazy.inside = False

    def run(self, work: Callable[[Session], T], *, readonly: bool = False, attempts: int = 1) -> T:  # noqa: ARG002
        """Runs ``work`` once: whether the transaction is tried again is its owner's to say."""
        with self.connect(readonly=readonly) as session:
            return work(session)

    def close(self) -> None:
        """The connection is not ours."""


def _check_schema(rows: Sequence[Mapping[str, Any]]) -> None:
    found = rows[0]["version_num"] if rows else None
    if found != migrations.head():
        raise SchemaOutdated(
            f"the connection's database has schema {found}, this version needs {migrations.head()}.",
            mend="Run: orchestrator migrate",
        )


@contextmanager
def _explained() -> Iterator[None]:
    """What a bare driver raises, as ``translated`` does it for SQLAlchemy; what it does not know goes on unchanged."""
    try:
        yield
    except Unavailable as error:  # SQLAlchemy's, by ``translated``
        cause = getattr(error.__cause__, "orig", None)
        meaning = _meaning(cause) if isinstance(cause, psycopg.Error) else None
        raise meaning or error from cause
    except (psycopg.Error, sqlite3.Error) as error:
        if refused(error, MOVED):
            raise Moved from error
        meaning = _meaning(error)
        if meaning is None:
            raise
        raise meaning from error


def _meaning(error: psycopg.Error | sqlite3.Error) -> OrchestratorError | None:
    state, text = getattr(error, "sqlstate", None), str(error)
    if state == "55P03":
        return SubmitInProgress(
            "another submit with this idempotency key has not committed yet.", mend="Try again in a moment."
        )
    if state in ("42P01", "42703") or "no such table" in text or "no such column" in text:
        return SchemaOutdated(f"this is no orchestrator database of this version ({text}).", mend=_MEND)
    if isinstance(error, sqlite3.OperationalError) and "locked" in text:
        return Unavailable("the database is locked by another writer.", mend="Try again in a moment.")
    return None


class _Within(PostgresSession):
    """A savepoint on psycopg's connection; it travels with its first statement and is released with its last."""

    __slots__ = ("inside",)

    def __init__(self, raw: Any, dialect: Dialect) -> None:
        super().__init__(raw, dialect)
        self.inside = False

    def together(self, *asked: Statement, last: bool = False) -> list[list[dict[str, Any]]]:
        found = super().together(*asked, last=last)
        self.inside = not last
        return found

    @property
    def _begun(self) -> bool:
        return self.inside

    @property
    def _may_be_alone(self) -> bool:
        return False

    def _begin(self) -> None:
        self.raw.execute(f"SAVEPOINT {_SAVEPOINT}", prepare=False)
        self.inside = True

    def _end(self) -> None:
        self.raw.execute(f"RELEASE SAVEPOINT {_SAVEPOINT}", prepare=False)


class _AlchemySession(Session):
    """The same statements through SQLAlchemy, which keeps the caller's transaction, and may wrap an async driver."""

    __slots__ = ()

    def many(self, sql: str, values: Sequence[Mapping[str, Any]]) -> int:
        if not values:
            return 0
        return int(self.raw.exec_driver_sql(self.dialect.sql(sql), [dict(v) for v in values]).rowcount)

    def rows(self, sql: str, values: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        found = self._ask(sql, values)
        return [dict(row) for row in found.mappings()] if found.returns_rows else []

    def _ask(self, sql: str, values: Mapping[str, Any] | None) -> Any:
        return self.raw.exec_driver_sql(self.dialect.sql(sql), dict(values or {}))
