"""O3: time grows in proportion to size; and keeping the broker shallow costs next to nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import pytest

from orchestrator.domain.ids import Incarnation, JobId, QueueName
from orchestrator.engine import presence
from tests.faults.conftest import MakeCluster
from tests.support.cluster import Cluster

pytestmark = pytest.mark.faults

SIZES = [
    pytest.param(200, 2000, id="2000"),
    pytest.param(1000, 10_000, id="10000", marks=[pytest.mark.soak, pytest.mark.timeout(1800)]),
]


def fan_out(delay: str | None = None) -> dict[str, Any]:
    script = {"script": [{"delay": delay, "output": "${{ input }}"}]} if delay else {}
    each = {"id": "each", "for_each": "${{ input }}", "as": "n", "do": {"agent": "echo", "with": "${{ n }}"}}
    return {"name": "wide", "agents": {"echo": {"kind": "scripted", **script}}, "steps": [each]}


def timed(it: Cluster, flow: dict[str, Any], width: int, seconds: float = 900) -> tuple[JobId, float]:
    job = it.submit(flow, list(range(width)))
    assert it.wait([job], seconds) == {"succeeded": 1}
    view = it.job(job)
    assert view["output"] == list(range(width))
    return job, view["finished_at"] - view["created_at"]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("small", "large"), SIZES)
def test_a_wide_join_takes_time_in_proportion(
    cluster: MakeCluster, small: int, large: int, report: Callable[..., None]
) -> None:
    it = cluster(WORKER_CONCURRENCY="50")
    it.scheduler()
    it.worker()
    timed(it, fan_out(), 50)
    _, one = timed(it, fan_out(), small)
    job, ten = timed(it, fan_out(), large)
    began = it.clock.monotonic()
    events = it.events(job)
    read = it.clock.monotonic() - began
    figure = (
        f"{small}: {one:.1f} s, {large}: {ten:.1f} s (× {ten / one:.1f}); history of {len(events)} read in {read:.1f} s"
    )
    report("O3", jobs=2, figure=figure)
    assert len(events) >= large
    assert ten / one <= 1.5 * large / small
    it.check()


@contextmanager
def uncapped(it: Cluster) -> Iterator[None]:
    """A worker that is only a row, with so many slots that everything is published at once."""
    who = presence.Registration(Incarnation("capacity"), "capacity", "worker", ("default",), 20_000, "test")
    presence.join(it.engine, who)
    it.engine.db.run(
        lambda s: s.execute("UPDATE workers SET heartbeat_at = heartbeat_at + 3600 WHERE incarnation = 'capacity'")
    )
    it.engine.feed.wake([QueueName("default")])
    yield
    presence.leave(it.engine, who)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_the_cap_on_what_is_published_costs_little(cluster: MakeCluster, report: Callable[..., None]) -> None:
    """10,000 steps of 1 ms, at most 40 of them published at a time."""
    it = cluster(WORKER_CONCURRENCY="20")
    it.scheduler()
    it.worker()
    timed(it, fan_out("1ms"), 500)
    pairs = []
    for _ in range(5):  # in turns: within a pair the machine's neighbours are much the same to both
        capped = timed(it, fan_out("1ms"), 10_000)[1]
        with uncapped(it):
            pairs.append((capped, timed(it, fan_out("1ms"), 10_000)[1]))
    share = median(free / capped for capped, free in pairs)
    capped, free = (10_000 / median(seconds) for seconds in zip(*pairs, strict=True))
    figure = f"{capped:.0f}/s capped at 40, {free:.0f}/s uncapped; median of {len(pairs)} pairs: {share:.0%}"
    report("Feed", jobs=2 * len(pairs), figure=figure)
    assert share >= 0.9, pairs
    it.check()
