"""One open transaction, and what a driver's errors mean.

Driver errors leave here as ``Unavailable`` (cannot reach, timed out), ``Locked`` (a row, for too long),
``SchemaOutdated`` (tables are missing), or as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from orchestrator.domain.errors import Locked, OrchestratorError, SchemaOutdated, Unavailable
from orchestrator.store.dialect import Dialect

#: PostgreSQL: serialization_failure, deadlock_detected.
RETRYABLE = {"40001", "40P01"}
#: read_only_sql_transaction: a standby, or a primary that has stepped down.
READ_ONLY = "25006"
_UNAVAILABLE = {READ_ONLY, "57P01", "57P02", "57P03", "57014", "53100", "53200", "53300"}
#: lock_not_available.
_LOCKED = "55P03"
_MISSING = {"42P01", "42703"}
#: invalid_text_representation; and what a statement that refuses itself calls a number.
_BAD_TEXT, MOVED = "22P02", "moved_meanwhile"
#: PEP 249's names of what says that it is not the statement that is wrong.
_AWAY = {"OperationalError", "InterfaceError"}


#: SQL in the words of ``Dialect``, with its values.
Statement = tuple[str, Mapping[str, Any]]


class Moved(Exception):
    """A row changed between load and write: the transaction is rolled back and run again."""


class Cursor(Protocol):
    """What a statement came to; rows are tuples."""

    @property
    def rowcount(self) -> int: ...
    def fetchone(self) -> Any: ...
    def __iter__(self) -> Iterator[Any]: ...


class Session:
    """One open transaction on a driver's connection: SQLite's here, PostgreSQL's in ``postgres.py``.

    Rows are read by name or by place, whatever the connection's owner has set.
    """

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
        cursor = self._ask(sql, values)
        names = [column[0] for column in cursor.description or ()]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def together(self, *asked: Statement, last: bool = False) -> list[list[dict[str, Any]]]:  # noqa: ARG002
        """The rows of each statement, in order, in one round trip of PostgreSQL's; none for a statement without rows.

        They run one after another: each sees what had been committed before it began. ``last``: the transaction ends
        with them, in the same round trip; what is asked after is asked in another one.
        """
        return [self.rows(sql, values) for sql, values in asked]

    def alone(self, sql: str, values: Mapping[str, Any]) -> Any:
        """The first column of a statement that ends the transaction: PostgreSQL commits in the same round trip."""
        return self.value(sql, values)

    def one(self, sql: str, values: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
        return next(iter(self.rows(sql, values)), None)

    def value(self, sql: str, values: Mapping[str, Any] | None = None) -> Any:
        row = self.execute(sql, values).fetchone()
        return None if row is None else row[0]

    def now(self) -> float:
        return float(self.value("SELECT {now}"))

    def _ask(self, sql: str, values: Mapping[str, Any] | None) -> Any:
        """The driver's cursor after ``sql``; its rows are tuples."""
        cursor = self.raw.cursor()
        cursor.row_factory = None
        cursor.execute(self.dialect.sql(sql), values or {})
        return cursor


def sqlstate(error: BaseException | None) -> str | None:
    return getattr(error, "sqlstate", None)


def refused(error: BaseException | None, reason: str) -> bool:
    """Whether a statement refused itself, by calling ``reason`` a number."""
    return sqlstate(error) == _BAD_TEXT and reason in str(error)


@contextmanager
def translated() -> Iterator[None]:
    """Turns what a driver raises, by itself or through SQLAlchemy, into errors people can act on."""
    try:
        yield
    except (OrchestratorError, Moved):
        raise
    except PoolTimeout as error:
        raise Unavailable(
            "every database connection is in use.", mend="Try again; raise ORCHESTRATOR_DB_POOL_SIZE."
        ) from error
    except Exception as error:
        original = error.orig if isinstance(error, DBAPIError) else error
        if refused(original, MOVED):
            raise Moved from error
        meaning = _meaning(original)
        if meaning is None:
            raise
        raise meaning from error


def _meaning(error: BaseException | None) -> OrchestratorError | None:
    kinds = {kind.__name__ for kind in type(error).__mro__ if kind.__module__ in ("psycopg", "sqlite3")}
    if "Error" not in kinds:
        return None
    state = sqlstate(error)
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
    if state in _UNAVAILABLE or (kinds & _AWAY and state not in RETRYABLE):
        return Unavailable(
            f"the database does not answer: {text}", mend="Check ORCHESTRATOR_DATABASE_URL and the server."
        )
    return None
