"""The desk with ten thousand dead letters, on PostgreSQL (E8)."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from orchestrator.engine import replays
from orchestrator.engine.reconcile import Reconciler, Rhythm
from orchestrator.store import desk
from orchestrator.store.operations import LetterFilter
from tests.support.bench import Bench
from tests.support.letters import copy_failed

LETTERS = 10_000
#: Seconds a list or the groups may take (issue 3).
QUICK = 0.2
FLOW = {
    "name": "t",
    "agents": {"bad": {"kind": "scripted", "script": [{"fail": {"class": "permanent", "message": "no such clause"}}]}},
    "steps": [{"id": "a", "agent": "bad"}],
}


@pytest.fixture
def crowded(postgres_url: str) -> Iterator[Bench]:
    """A bench with ``LETTERS`` open letters in fifty groups."""
    it = Bench(postgres_url)
    job = it.submit(FLOW, 1)
    it.drive()
    it.db.run(lambda session: copy_failed(session, job, LETTERS - 1, kinds=50))
    yield it
    it.check()
    it.close()


def median(bench: Bench, what: str, ask: Callable[[], Any]) -> float:
    took = []
    for _ in range(5):
        began = bench.clock.perf()
        ask()
        took.append(bench.clock.perf() - began)
    print(f"{what} with {LETTERS:,} open letters: {statistics.median(took) * 1000:.1f} ms")
    return statistics.median(took)


@pytest.mark.quiet
def test_lists_and_groups_stay_quick(crowded: Bench) -> None:
    engine = crowded.engine

    def page(**wanted: Any) -> list[dict[str, Any]]:
        return crowded.db.run(lambda session: desk.letters(session, limit=50, **wanted), readonly=True)

    seen = replays.groups(engine, LetterFilter(), "default")
    assert sum(group["count"] for group in seen) == LETTERS
    assert len(seen) == 51
    oldest = page(tenant="default")[-1]["id"]
    one = LetterFilter(fingerprint="kind-7")
    for what, ask in (
        ("list", lambda: page(tenant="default")),
        ("list of all tenants", lambda: page(tenant=None)),
        ("second page", lambda: page(tenant="default", before=oldest)),
        ("list by fingerprint", lambda: page(tenant="default", fingerprint="kind-7")),
        ("list by what matches nothing", lambda: page(tenant="default", workflow="nothing")),
        ("groups", lambda: replays.groups(engine, LetterFilter(), "default")),
        ("groups of all tenants", lambda: replays.groups(engine, LetterFilter(), None)),
        ("dry run of all", lambda: replays.preview(engine, LetterFilter(), "default", everything=True)),
        ("dry run of a group", lambda: replays.preview(engine, one, "default")),
    ):
        assert median(crowded, what, ask) < QUICK, what


@pytest.mark.quiet
def test_a_bulk_replay_keeps_its_rate(crowded: Bench) -> None:
    """E8: the asked rate, give or take a tenth, measured on the database's clock over several seconds."""
    rate, seconds = 60.0, 6
    engine = crowded.engine
    operation = replays.start(engine, LetterFilter(), "default", everything=True, rate=rate, by="ann")["id"]
    reconciler = Reconciler(engine, Rhythm(tick=0.2))
    reconciler.start()
    try:
        while replays.show(engine, operation)["replayed"] < rate * seconds:
            crowded.clock.sleep(0.1)
    finally:
        reconciler.close()
    done = replays.cancel(engine, operation, by="ann")
    with crowded.db.connect(readonly=True) as session:
        row = session.one(
            "SELECT count(*) AS n, max(closed_at) - min(closed_at) AS span FROM dead_letters WHERE operation = :id",
            {"id": operation},
        )
    assert row is not None
    assert row["n"] == done["replayed"]
    kept = (row["n"] - 1) / row["span"]
    print(f"asked for {rate:g} letters a second, replayed {row['n']} at {kept:.1f}")
    assert kept == pytest.approx(rate, rel=0.1)
