"""What our processes ask of the database when there is nothing to do."""

from __future__ import annotations

from typing import cast

from bench.columns.ours import Ours
from bench.figures import Metric, Target
from bench.workloads.workload import Figures, Turn, Workload

#: Two workers, the scheduler, and the driver, which runs a feed of its own.
PROCESSES = 4
#: PostgreSQL reports counts at most so many seconds late.
SETTLING = 2.0
COUNT = "SELECT xact_commit + xact_rollback AS n FROM pg_stat_database WHERE datname = current_database()"


def idle(turn: Turn) -> Figures:
    column, clock = cast("Ours", turn.column), turn.lab.clock
    clock.sleep(SETTLING)
    before, started = column.rows(COUNT)[0]["n"], clock.monotonic()
    spent = column.cpu()
    clock.sleep(turn.size["seconds"])
    seconds = clock.monotonic() - started
    return {
        "transactions": (column.rows(COUNT)[0]["n"] - before) / seconds / PROCESSES,
        "CPU": (column.cpu() - spent) / seconds / (PROCESSES - 1) * 100,
    }


IDLE = Workload(
    "idle",
    "Nothing to do for 10 s",
    (
        Metric("transactions", "1/s per process", "less", (Target(5.0),)),
        Metric("CPU", "% of a core per process", "less"),
    ),
    {"ours": idle},
    {"seconds": 10},
    {"seconds": 3},
    seconds=13,
    note="Transactions stand for queries: an idle process sends one or two statements in each.",
)
