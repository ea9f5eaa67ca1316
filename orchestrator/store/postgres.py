"""A transaction on psycopg's connection, in as few round trips as it can be.

The connection commits by itself as far as the driver knows: its own BEGIN and COMMIT are each waited for, a pipeline's
too. Here they travel with the first statement and the last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from psycopg import RawCursor
from psycopg.pq import PipelineStatus, TransactionStatus
from psycopg.rows import tuple_row

from orchestrator.store.session import Session, Statement


class PostgresSession(Session):
    """It is begun by its first statement, unless that is one ``alone``; its owner commits it, or rolls it back."""

    __slots__ = ()

    def rows(self, sql: str, values: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        return _fetched(self._ask(sql, values, _by_name(sql)))

    def many(self, sql: str, values: Sequence[Mapping[str, Any]]) -> int:
        if values and not self._begun:
            self._begin()
        return super().many(sql, values)

    def together(self, *asked: Statement, last: bool = False) -> list[list[dict[str, Any]]]:
        if len(asked) == 1 and (not last or self._may_be_alone):
            [(sql, values)] = asked
            return [_fetched(self._ask(sql, values, _by_name(sql), begins=not last))]
        begun = self._begun
        with self.raw.pipeline():
            if not begun:
                self._begin()
            cursors = [self._ask(sql, values, _by_name(sql)) for sql, values in asked]
            if last:
                self._end()
        return [_fetched(cursor) for cursor in cursors]

    def alone(self, sql: str, values: Mapping[str, Any]) -> Any:
        [[row]] = self.together((sql, values), last=True)
        return next(iter(row.values()))

    @property
    def _begun(self) -> bool:
        return bool(self.raw.pgconn.transaction_status != TransactionStatus.IDLE)

    @property
    def _may_be_alone(self) -> bool:
        """Whether one statement now would be a transaction, committed with it."""
        return not self._begun

    def _begin(self) -> None:
        self.raw.execute("BEGIN", prepare=False)

    def _end(self) -> None:
        self.raw.execute("COMMIT", prepare=False)

    def _ask(self, sql: str, values: Mapping[str, Any] | None, row: Any = tuple_row, *, begins: bool = True) -> Any:
        # The driver's own style costs it a look at the whole text each time, where that is long.
        cursor: Any = RawCursor(self.raw, row_factory=row)
        text, names = self.dialect.numbered(sql)
        bound = [values[name] for name in names] if values else []
        if not begins or self._begun or self.raw.pgconn.pipeline_status != PipelineStatus.OFF:
            return cursor.execute(text, bound)
        with self.raw.pipeline():
            self._begin()
            return cursor.execute(text, bound)


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
