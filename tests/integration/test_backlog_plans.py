"""What the feed asks of a backlog reads what it answers, not the backlog, whatever PostgreSQL last counted."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.domain.ids import DEFAULT_QUEUE
from orchestrator.domain.workflow import Workflow
from orchestrator.engine.submit import Submission, submit_many
from orchestrator.store import feed
from orchestrator.store.session import Session, Statement
from tests.support.bench import bench

pytestmark = pytest.mark.postgres
BACKLOG, WANTED = 3000, 20
FLOW = Workflow.model_validate(
    {"name": "f", "agents": {"echo": {"kind": "scripted"}}, "steps": [{"id": "a", "agent": "echo"}]}
)
#: By what the planner knows of the queue: nothing, that it was empty, how it is.
KNOWN = {"never analysed": (), "analysed while empty": ("before",), "analysed": ("after",)}


def asked(session: Session) -> dict[str, Statement]:
    mine = ("mine", WANTED)
    return {
        "tenants": feed.asking_for_tenants(DEFAULT_QUEUE),
        "backlog": feed.asking_for_backlog(DEFAULT_QUEUE),
        "next": feed.asking_for_candidates(session.dialect, DEFAULT_QUEUE, *mine),
        "oldest": feed.asking_for_candidates(session.dialect, DEFAULT_QUEUE, *mine, oldest=True),
        "outstanding": feed.asking_outstanding(DEFAULT_QUEUE),
    }


def read(plan: dict[str, Any]) -> int:
    """The rows that the scans of a plan took into their hands."""
    scans = plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0) if "Scan" in plan["Node Type"] else 0
    return int(scans * plan["Actual Loops"]) + sum(map(read, plan.get("Plans", ())))


@pytest.mark.parametrize("known", KNOWN)
def test_a_look_at_a_long_backlog_is_short(postgres_url: str, known: str) -> None:
    with bench(postgres_url) as it:
        for moment in ("before", "after"):
            if moment in KNOWN[known]:
                it.db.run(lambda session: session.execute("ANALYZE steps"))
            if moment == "before":
                for tenant, count in (("theirs", BACKLOG), ("mine", BACKLOG // 2)):
                    for _ in range(0, count, 500):
                        submit_many(it.engine, [Submission(FLOW, tenant=tenant)] * 500)
        with it.db.connect() as session:
            costs = {}
            for name, (sql, values) in asked(session).items():
                [explained] = session.value(f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}", values)
                costs[name] = read(explained["Plan"])
    assert max(costs.values()) <= BACKLOG // 5, costs
