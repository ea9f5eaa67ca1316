"""Calls that wait on the network, against the fake server in a process of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bench.children import Child, cpu_seconds, peak_memory
from bench.columns.column import Batch, Fleet
from bench.drive import drive
from bench.figures import Metric, Target
from bench.lab import Lab
from bench.shapes import Shape
from bench.workloads.workload import Figures, Turn, Workload


@contextmanager
def fake_server(lab: Lab) -> Iterator[tuple[Child, int]]:
    child = lab.child("fake-server", "bench.fake_server", talks=True)
    try:
        yield child, int(child.read())
    finally:
        child.stop()


def _calls(turn: Turn, kind: str) -> Batch:
    with fake_server(turn.lab) as (server, port):
        seconds = turn.size["milliseconds"] / 1000
        shape = Shape("http_calls" if kind == "http" else "calls", turn.size["calls"], port, seconds)
        batch = drive(turn.lab, turn.column, shape, turn.size["jobs"], turn.size["jobs"])
        batch.cpu["server"] = cpu_seconds([server.pid])
    return batch


def plain_and_http(turn: Turn) -> Figures:
    return {**plain(turn), "wall, our http agents": _calls(turn, "http").seconds}


def plain(turn: Turn) -> Figures:
    batch = _calls(turn, "plain")
    return {"wall": batch.seconds, "worker CPU per call": batch.cpu["workers"] / batch.steps * 1e3}


CALLS = Workload(
    "calls",
    "200 jobs of 3 calls of 1 s over HTTP, all at once (ideal 3 s)",
    (
        Metric("wall", "s", "less", (Target(3.4),)),
        Metric("wall, our http agents", "s", "less", (Target(3.9),)),
        Metric("worker CPU per call", "ms", "less"),
    ),
    {"ours": plain_and_http, "celery": plain, "dbos": plain},
    {"jobs": 200, "calls": 3, "milliseconds": 1000},
    {"jobs": 10, "calls": 3, "milliseconds": 100},
    fleet=Fleet(workers=2, slots=100, pool="threads"),
    note="The same synchronous plain-socket agent in every column, in threads: 2 worker processes of 100.",
)


def flight(turn: Turn) -> Figures:
    """``rounds`` times as many jobs of one call as are in flight."""
    kind = "http" if turn.column.name == "ours" else "plain"
    slots, seconds = turn.size["in_flight"], turn.size["milliseconds"] / 1000
    with fake_server(turn.lab) as (server, port):
        # A lone call ends with the step that rings.
        shape = Shape("http_calls", 1, port, seconds) if kind == "http" else Shape("calls", 1, port, seconds)
        jobs = slots * turn.size["rounds"]
        batch = drive(turn.lab, turn.column, shape, jobs, slots)
        server_cpu = cpu_seconds([server.pid])
    family = [pid for child in turn.column.workers for pid in child.family()]
    return {
        "share of ideal": jobs / batch.seconds / (slots / seconds) * 100,
        "memory": max(map(peak_memory, family)),
        "worker CPU per call": batch.cpu["workers"] / jobs * 1e3,
        "fake server's CPU": server_cpu / batch.seconds * 100,
    }


FLIGHT = Workload(
    "in-flight",
    "1,000 calls of 2 s in flight in one worker process",
    (
        Metric("share of ideal", "%", "more", (Target(75.0),)),
        Metric("memory", "MB", "less", (Target(150.0),)),
        Metric("worker CPU per call", "ms", "less"),
        Metric("fake server's CPU", "% of a core", "less"),
    ),
    {"ours": flight, "celery": flight},
    {"in_flight": 1000, "milliseconds": 2000, "rounds": 4},
    {"in_flight": 20, "milliseconds": 100, "rounds": 2},
    fleet=Fleet(workers=1, slots=1000, pool="threads"),
    note="Ours through http agents, with a second step that rings; Celery: 1,000 threads with plain sockets.",
)
