"""M4: a step that takes its process down every time ends as a dead letter; whoever was beside it succeeds."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from orchestrator.domain.retry import ALONE_LIMIT, SUSPECT_AFTER
from tests.faults.conftest import MakeCluster

pytestmark = pytest.mark.faults

#: Neighbours, and slots. With as many slots as neighbours all of them are in flight at both crashes, then suspects too,
#: and each runs alone once: minutes.
SIZES = [
    pytest.param(40, 10, id="40"),
    pytest.param(200, 220, id="200", marks=[pytest.mark.soak, pytest.mark.timeout(1800)]),
]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("neighbours", "slots"), SIZES)
def test_a_poison_step_is_found_out_alone(
    cluster: MakeCluster, neighbours: int, slots: int, report: Callable[..., None]
) -> None:
    it = cluster(WORKER_CONCURRENCY=str(slots))
    it.scheduler()
    worker = it.worker()
    agents = {
        name: {
            "kind": "python",
            "target": f"tests.support.ledger:{name}",
            "config": {"ledger": str(it.ledger.file), "delay": delay},
        }
        for name, delay in (("work", 1.5), ("falls", 0.3))  # they are in flight whenever it falls
    }
    innocent = {"name": "innocent", "agents": agents, "steps": [{"id": "a", "agent": "work"}]}
    poison = {"name": "poison", "agents": agents, "steps": [{"id": "a", "agent": "falls"}]}
    bad = it.submit(poison, priority=1)
    beside = it.submit_all(innocent, [{"n": n} for n in range(neighbours)])
    assert it.wait([bad, *beside], 1200) == {"failed": 1, "succeeded": neighbours}
    letter = it.letters(bad)[0]
    losses = sum(event["type"] == "step.lost" for event in it.events(bad))
    calls = it.ledger.calls([bad])
    deaths = sum(not child.alive for child in it.workers)
    repeated = len(it.ledger.calls(beside)) - neighbours
    report(
        "M4", jobs=neighbours + 1, repeated=repeated, figure=f"{deaths} workers lost, {len(calls)} calls of the poison"
    )
    assert (letter["reason"], letter["state"]) == ("worker_lost", "open")
    assert losses == SUSPECT_AFTER + ALONE_LIMIT - 1, "the last loss alone is the letter"
    assert len(calls) == SUSPECT_AFTER + ALONE_LIMIT
    assert deaths == SUSPECT_AFTER, "once suspected, it takes nobody with it"
    assert not worker.alive
    it.check()
