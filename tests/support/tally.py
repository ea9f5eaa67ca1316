"""Counts what the engine asks of its database and broker: statements, commits, messages and rows.

Counts, not times: they are the same on every machine, however busy it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from orchestrator.domain.ids import QueueName, StepRef
from orchestrator.store import tables
from orchestrator.store.database import Database
from orchestrator.store.session import Session
from orchestrator.testing import ListDispatcher
from tests.support.listening import listening

FIGURES = ("statements", "trips", "commits", "messages", "rows")
#: Of a statement this much is shown.
SHOWN = 150


@dataclass(slots=True)
class Cost:
    """``statements``: sent by this process; one that is run for many rows is one. ``trips``: waits for an answer to one
    statement, to several sent together, or to a COMMIT by itself. ``commits``: of transactions that may write, so they
    wait for a disk. ``messages``: handed to the broker. ``rows``: inserted, updated or deleted.
    """

    said: Counter[str] = field(default_factory=Counter)
    written: Counter[str] = field(default_factory=Counter)
    trips: int = 0
    commits: int = 0
    messages: int = 0

    @property
    def figures(self) -> dict[str, int]:
        counts = (self.said.total(), self.trips, self.commits, self.messages, self.written.total())
        return dict(zip(FIGURES, counts, strict=True))

    def __str__(self) -> str:
        rows = ", ".join(f"{count} × {what}" for what, count in self.written.most_common())
        said = [f"  {count:4} × {text}" for text, count in self.said.most_common()]
        return "\n".join([f"rows: {rows or 'none'}", "statements:", *said])


@dataclass(slots=True)
class CountedDispatcher(ListDispatcher):
    """``count``: everything that was ever published, markers too."""

    count: int = 0

    def publish(self, refs: Sequence[StepRef]) -> None:
        self.count += len(refs)
        self.refs.extend(refs)

    def publish_marker(self, queue: QueueName, number: int) -> None:
        self.count += 1
        self.markers.append((queue, number))


class Tally:
    """Of ``db``, whose schema is there, and what ``dispatcher`` is given. Triggers in the database count its rows."""

    def __init__(self, db: Database, dispatcher: CountedDispatcher) -> None:
        self._db = db
        self._dispatcher = dispatcher
        db.run(_count_rows)

    @contextmanager
    def counting(self) -> Iterator[Cost]:
        """What happens within the block, in whatever thread; complete once the block is left."""
        self._db.run(lambda session: session.execute("DELETE FROM tally"))
        before, cost = self._dispatcher.count, Cost()
        with listening() as heard:
            yield cost
        cost.trips, cost.commits = heard.trips, heard.commits
        cost.said.update(" ".join(text.split())[:SHOWN] for text in heard.said)
        cost.messages = self._dispatcher.count - before
        rows = self._db.run(lambda session: session.rows("SELECT what, count(*) AS n FROM tally GROUP BY what"))
        cost.written.update({row["what"]: row["n"] for row in rows})


def _count_rows(session: Session) -> None:
    """Each row that is written leaves one in ``tally``, whichever statement writes it, also within a WITH."""
    session.execute("CREATE TABLE tally (what text NOT NULL)")
    note = "INSERT INTO tally VALUES"
    if session.postgres:
        body = f"BEGIN {note} (TG_TABLE_NAME || ' ' || lower(TG_OP)); RETURN NULL; END"
        session.execute(
            f"CREATE FUNCTION tally() RETURNS trigger LANGUAGE plpgsql AS '{body.replace(chr(39), chr(39) * 2)}'"
        )
    for table in tables.metadata.tables:
        for what in ("insert", "update", "delete"):
            head = f"CREATE TRIGGER tally_{table}_{what} AFTER {what} ON {table} FOR EACH ROW"
            if session.postgres:
                session.execute(f"{head} EXECUTE FUNCTION tally()")
            else:
                session.execute(f"{head} BEGIN {note} ('{table} {what}'); END")
