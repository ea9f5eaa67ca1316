"""A transaction on psycopg's connection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row, tuple_row

from orchestrator.store.session import Session, Statement


class PostgresSession(Session):
    __slots__ = ()

    def rows(self, sql: str, values: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        return list(self._ask(sql, values, dict_row).fetchall())

    def together(self, *asked: Statement, last: bool = False) -> list[list[dict[str, Any]]]:
        if len(asked) == 1 and not last:
            return [_fetched(self._ask(*asked[0], dict_row))]
        with self.raw.pipeline():
            cursors = [self._ask(sql, values, dict_row) for sql, values in asked]
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


def _fetched(cursor: Any) -> list[dict[str, Any]]:
    return list(cursor.fetchall()) if cursor.pgresult.nfields else []
