"""Hears every statement that this process sends to the database."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

from orchestrator.store.database import Session


@contextmanager
def listening() -> Iterator[list[str]]:
    """The statements, in order, as long as the block lasts."""
    said: list[str] = []
    ask, many = Session._ask, Session.many

    def hear(session: Session, sql: str, values: Mapping[str, Any] | None, *, named: bool = False) -> Any:
        said.append(sql)
        return ask(session, sql, values, named=named)

    def hear_many(session: Session, sql: str, values: Sequence[Mapping[str, Any]]) -> int:
        said.extend([sql] if values else [])
        return many(session, sql, values)

    with mock.patch.object(Session, "_ask", hear), mock.patch.object(Session, "many", hear_many):
        yield said
