"""A worker dies in the middle of a call that must not be made twice: one effect, whoever decides."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.domain.ids import JobId
from orchestrator.engine import decisions
from tests.faults.conftest import MakeCluster
from tests.support.cluster import Cluster

pytestmark = pytest.mark.faults


def booking(it: Cluster, **more: Any) -> dict[str, Any]:
    """One call with an irreversible effect, of an agent that ignores the key."""
    config = {"ledger": str(it.ledger.file), "slow": 30.0, "first_only": True}
    agent = {
        "kind": "python",
        "target": "tests.support.ledger:work",
        "config": config,
        "effect": "irreversible",
        "honours_key": False,
        **more,
    }
    return {"name": "booking", "agents": {"book": agent}, "steps": [{"id": "book", "agent": "book", "gate": "none"}]}


def killed_in_mid_call(it: Cluster, **more: Any) -> JobId:
    it.scheduler()
    worker = it.worker()
    job = it.submit(booking(it, **more), {"n": 1})
    it.wait_for(lambda: it.ledger.calls([job]), "the call to begin")
    it.kill(worker)
    return job


@pytest.mark.timeout(120)
@pytest.mark.parametrize("word", ["happened", "not_happened", "fail"])
def test_nothing_is_called_again_before_a_person_has_decided(cluster: MakeCluster, word: str) -> None:
    """P4: the worker's successor does not touch it; only `not_happened` makes a second call, under another key."""
    it = cluster()
    job = killed_in_mid_call(it)
    it.wait_for(lambda: it.questions(job), "the question")
    (wait,) = it.questions(job)
    assert it.steps(job)["book"]["state"] == "in_doubt"  # type: ignore[index]
    assert it.job(job)["state"] == "waiting"
    (call,) = it.ledger.calls([job])
    assert wait["question"]["key"] == call.key
    it.check()
    output = {"output": {"n": 2}} if word == "happened" else {}
    decisions.decide(it.engine, wait["id"], word, by="test", **output)
    it.wait([job])
    view = it.job(job)
    calls = it.ledger.calls([job])
    match word:
        case "fail":
            assert (view["state"], view["failure"]["class"], len(calls)) == ("failed", "in_doubt", 1)
        case "happened":
            assert (view["output"], len(calls)) == ({"n": 2}, 1)
        case _:
            assert (view["output"], len(calls)) == ({"n": 2}, 2)
            assert len({call.key for call in calls}) == 2
    it.ledger.check([job])
    it.check()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("found", [True, False])
def test_the_reconciler_is_asked_in_a_worker_and_nobody_else(cluster: MakeCluster, found: bool) -> None:
    """P4: it is asked with the key of the call that was lost; the effect is there once, or is made then."""
    it = cluster()
    name = "found" if found else "not_found"
    job = killed_in_mid_call(it, reconcile=f"tests.support.ledger:{name}")
    assert it.wait([job]) == {"succeeded": 1}
    calls = it.ledger.calls([job])
    assert len(calls) == (1 if found else 2)
    assert it.job(job)["output"] == {"n": 2}
    told = [event["data"] for event in it.events(job) if event["type"] == "step.reconciled"]
    assert [(t["happened"], t["key"]) for t in told] == [(found, calls[0].key)]
    assert it.questions(job) == []
    it.ledger.check([job])
    it.check()
