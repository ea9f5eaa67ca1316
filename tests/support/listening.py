"""Hears every statement that this process sends to its databases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

from orchestrator.store.database import Database, Session, Statement


class Heard:
    """``said``: the statements, in order. ``trips``: how often somebody waited for the answer of one, or of several
    sent together. ``commits``: of transactions that may write. Both but for what begins and ends a transaction.
    """

    def __init__(self) -> None:
        self.said: list[str] = []
        self.trips = 0
        self.commits = 0


@contextmanager
def listening() -> Iterator[Heard]:
    """What is heard as long as the block lasts, in whatever thread."""
    heard = Heard()
    ask, many, together, connect = Session._ask, Session.many, Session.together, Database.connect

    def hear(session: Session, sql: str, values: Mapping[str, Any] | None, *, named: bool = False) -> Any:
        if not sql.startswith("BEGIN"):
            heard.said.append(sql)
            heard.trips += 1
        return ask(session, sql, values, named=named)

    def hear_many(session: Session, sql: str, values: Sequence[Mapping[str, Any]]) -> int:
        heard.said.extend([sql] if values else [])
        heard.trips += bool(values)
        return many(session, sql, values)

    def hear_together(session: Session, *asked: Statement) -> list[list[dict[str, Any]]]:
        answers = together(session, *asked)
        heard.trips -= len(asked) - 1 if session.postgres else 0
        return answers

    @contextmanager
    def hear_commit(db: Database, *, readonly: bool = False) -> Iterator[Session]:
        with connect(db, readonly=readonly) as session:
            yield session
        heard.commits += not readonly

    with (
        mock.patch.object(Session, "_ask", hear),
        mock.patch.object(Session, "many", hear_many),
        mock.patch.object(Session, "together", hear_together),
        mock.patch.object(Database, "connect", hear_commit),
    ):
        yield heard
