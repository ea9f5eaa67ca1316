"""Hears every statement that this process sends to its databases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

from psycopg.pq import TransactionStatus

from orchestrator.store.database import Database
from orchestrator.store.postgres import PostgresSession
from orchestrator.store.session import Session, Statement


class Heard:
    """``said``: the statements, in order. ``trips``: how often somebody waited for the answer of one, of several sent
    together, or of a COMMIT that came by itself. ``commits``: of transactions that may write.
    """

    def __init__(self) -> None:
        self.said: list[str] = []
        self.trips = 0
        self.commits = 0


@contextmanager
def listening() -> Iterator[Heard]:
    """What is heard as long as the block lasts, in whatever thread."""
    heard = Heard()
    many, connect, pipelined = Session.many, Database.connect, PostgresSession.together

    def hear(kind: type[Session]) -> Any:
        ask = kind._ask

        def asks(session: Session, sql: str, *more: Any, **how: Any) -> Any:
            if not sql.startswith("BEGIN"):
                heard.said.append(sql)
                heard.trips += 1
            return ask(session, sql, *more, **how)

        return mock.patch.object(kind, "_ask", asks)

    def hear_many(session: Session, sql: str, values: Sequence[Mapping[str, Any]]) -> int:
        heard.said.extend([sql] if values else [])
        heard.trips += bool(values)
        return many(session, sql, values)

    def hear_together(session: PostgresSession, *asked: Statement, last: bool = False) -> list[list[dict[str, Any]]]:
        answers = pipelined(session, *asked, last=last)
        heard.trips -= len(asked) - 1
        return answers

    @contextmanager
    def hear_commit(db: Database, *, readonly: bool = False) -> Iterator[Session]:
        with connect(db, readonly=readonly) as session:
            yield session
            if session.postgres and session.raw.info.transaction_status is not TransactionStatus.IDLE:
                heard.trips += 1
        heard.commits += not readonly

    with (
        hear(Session),
        hear(PostgresSession),
        mock.patch.object(Session, "many", hear_many),
        mock.patch.object(PostgresSession, "together", hear_together),
        mock.patch.object(Database, "connect", hear_commit),
    ):
        yield heard
