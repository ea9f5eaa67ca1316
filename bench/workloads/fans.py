"""Fan-outs and joins: wide, very wide, nested, and in rounds under a supervisor."""

from __future__ import annotations

from bench.columns.column import Batch
from bench.drive import drive, joins
from bench.figures import Metric, Target, percentile
from bench.shapes import Shape
from bench.workloads.sequence import COST, cost
from bench.workloads.workload import Figures, Turn, Workload

JOIN = Metric("join after the last branch, p50", "ms", "less", (Target(0.05, "celery"),))


def join_figures(batch: Batch) -> Figures:
    found = joins(batch)
    return {
        "join after the last branch, p50": percentile(found, 0.5) * 1e3,
        "join after the last branch, max": max(found) * 1e3,
    }


def fan_out(turn: Turn) -> Figures:
    jobs = turn.size["jobs"]
    batch = drive(turn.lab, turn.column, Shape("fan_out", turn.size["width"]), jobs, jobs)
    return {"calls": batch.steps / batch.seconds, **join_figures(batch), **cost(batch)}


FAN_OUT = Workload(
    "fan-out",
    "20 jobs at once, each 1 → 200 → join",
    (
        Metric("calls", "calls/s", "more", (Target(2.5, "celery", 3.0),)),
        JOIN,
        Metric("join after the last branch, max", "ms", "less"),
        *COST,
    ),
    {"ours": fan_out, "celery": fan_out},
    {"jobs": 20, "width": 200},
    {"jobs": 2, "width": 20},
)


def fan_in(turn: Turn) -> Figures:
    small, large = turn.size["small"], turn.size["large"]
    narrow = drive(turn.lab, turn.column, Shape("fan_out", small), 1, 1)
    wide = drive(turn.lab, turn.column, Shape("fan_out", large), 1, 1)
    return {
        "1,000": narrow.seconds,
        "10,000": wide.seconds,
        "10,000 to 1,000": wide.seconds / narrow.seconds,
        "join of 10,000": joins(wide)[0] * 1e3,
    }


FAN_IN = Workload(
    "fan-in",
    "One job fanning out to 1,000, then one to 10,000",
    (
        Metric("1,000", "s", "less", (Target(1.5),)),
        Metric("10,000", "s", "less"),
        Metric("10,000 to 1,000", "×", "less", (Target(12.0),)),
        Metric("join of 10,000", "ms", "less"),
    ),
    {"ours": fan_in, "celery": fan_in},
    {"small": 1000, "large": 10_000},
    {"small": 50, "large": 200},
    seconds=50,
)


def supervisor(turn: Turn) -> Figures:
    jobs = turn.size["jobs"]
    batch = drive(turn.lab, turn.column, Shape("supervisor"), jobs, jobs)
    return {"jobs": jobs / batch.seconds, **cost(batch)}


SUPERVISOR = Workload(
    "supervisor",
    "50 jobs at once: plan → 4 workers → review, three rounds",
    (Metric("jobs", "jobs/s", "more", (Target(3.0, "celery"),)), *COST),
    {"ours": supervisor, "celery": supervisor},
    {"jobs": 50},
    {"jobs": 3},
    seconds=12,
    note="Celery: the plan's task sends its round's chord, the review's task the next plan; no round is known before.",
)


def nested(turn: Turn) -> Figures:
    jobs = turn.size["jobs"]
    batch = drive(turn.lab, turn.column, Shape("nested", turn.size["width"]), jobs, jobs)
    return {"steps": batch.steps / batch.seconds, **join_figures(batch), **cost(batch)}


NESTED = Workload(
    "nested",
    "20 jobs at once, each 20 chains of 3 and a join",
    (Metric("steps", "steps/s", "more", (Target(4.0, "celery", 6.0),)), JOIN, *COST),
    {"ours": nested, "celery": nested},
    {"jobs": 20, "width": 20},
    {"jobs": 2, "width": 5},
    seconds=12,
)


def lone_join(turn: Turn) -> Figures:
    batch = drive(turn.lab, turn.column, Shape("fan_out", turn.size["width"]), turn.size["jobs"], 1)
    return join_figures(batch)


LONE_JOIN = Workload(
    "join",
    "Join latency with nothing else running: 20 fan-outs of 20, one at a time",
    (JOIN, Metric("join after the last branch, max", "ms", "less")),
    {"ours": lone_join, "celery": lone_join},
    {"jobs": 20, "width": 20},
    {"jobs": 3, "width": 5},
    seconds=32,
)
