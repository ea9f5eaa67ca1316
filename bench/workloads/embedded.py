"""Everything in one process on SQLite, against one worker process on PostgreSQL and Redis."""

from __future__ import annotations

from bench.columns.column import Fleet
from bench.figures import Metric, Target
from bench.workloads.sequence import sequence
from bench.workloads.workload import Workload

EMBEDDED = Workload(
    "embedded",
    "Sequences in one process on SQLite (FULL), against one worker process on PostgreSQL: 300 jobs, 100 in flight",
    (
        Metric("steps", "steps/s", "more", (Target(1.5, "ours", of="embedded"),)),
        Metric("handoff p50", "ms", "less"),
        Metric("handoff p99", "ms", "less"),
        Metric("worker CPU per step", "ms", "less"),
    ),
    {"ours": sequence, "embedded": sequence},
    {"jobs": 300, "in_flight": 100},
    {"jobs": 20, "in_flight": 10},
    fleet=Fleet(workers=1),
    seconds=12,
    note="Both durable: each commit reaches the disk. The embedded process also submits; to ours the driver does.",
)
