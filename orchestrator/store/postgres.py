"""A transaction on psycopg's connection."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from orchestrator.store.session import Session, Statement


class PostgresSession(Session):
    __slots__ = ()

    def rows(self, sql: str, values: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        return _fetched(self._ask(sql, values, _by_name(sql)))

    def together(self, *asked: Statement, last: bool = False) -> list[list[dict[str, Any]]]:
        if len(asked) == 1 and not last:
            return [self.rows(*asked[0])]
        with self.raw.pipeline():
            cursors = [self._ask(sql, values, _by_name(sql)) for sql, values in asked]
            if last:
                self.raw.commit()
        return [_fetched(cursor) for cursor in cursors]

    def alone(self, sql: str, values: Mapping[str, Any]) -> Any:
        if self.raw.info.transaction_status is not TransactionStatus.IDLE:
            with self.raw.pipeline():
                cursor = self._ask(sql, values)
                self.raw.commit()
            return cursor.fetchone()[0]
        self.raw.autocommit = True
        try:
            return self.value(sql, values)
        finally:
            if not self.raw.closed:
                self.raw.autocommit = False

    def _ask(self, sql: str, values: Mapping[str, Any] | None, row: Any = tuple_row) -> Any:
        cursor = self.raw.cursor(row_factory=row)
        cursor.execute(self.dialect.sql(sql), values or {})
        return cursor


#: The columns of what a statement answers, by its text: wide rows have more names than most answers have rows.
_NAMES: dict[str, tuple[str, ...]] = {}

_Make = Callable[[Sequence[Any]], dict[str, Any]]


def _by_name(sql: str) -> Callable[[Any], _Make]:
    """A row factory of dictionaries."""
    return partial(_maker, sql)


def _maker(sql: str, cursor: Any) -> _Make:
    names = _NAMES.get(sql)
    if names is None:
        names = tuple(column.name for column in cursor.description or ())
        if "*" not in sql:  # what a star stands for may change while the process lives
            _NAMES[sql] = names
    return lambda values: dict(zip(names, values, strict=True))


def _fetched(cursor: Any) -> list[dict[str, Any]]:
    return list(cursor.fetchall()) if cursor.pgresult.nfields else []
