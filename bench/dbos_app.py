"""The same sequences as DBOS workflows: ``python -m bench.dbos_app NUMBER`` is one worker process.

Its settings: one database queue, dequeued by both processes, polled as often as it pays here; JSON is left to it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from dbos import DBOS

from bench import work
from bench.bell import ring

QUEUE = "bench"
#: Seconds between two looks of a worker at its queue. DBOS's default is 1: it would dominate every figure.
POLL = 0.05

made_step: Callable[[Callable[..., Any]], Any] = DBOS.step()


@made_step
def step(value: work.Value) -> work.Value:
    return work.step(value)


@made_step
def last(value: work.Value) -> work.Value:
    return work.last(value)


@made_step
def call(value: work.Value) -> work.Value:
    work.call(value["port"], value["seconds"])
    return value


def sequence(value: work.Value, size: int) -> None:
    for _ in range(size - 1):
        value = step(value)
    last(value)


def calls(value: work.Value, size: int) -> None:
    for _ in range(size):
        call(value)
    ring({"run": value["run"], "job": value["job"]})


def main() -> None:
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    DBOS(
        config={
            "name": "bench",
            "system_database_url": os.environ["BENCH_DBOS"],
            "sys_db_pool_size": 20,
            "log_level": "WARNING",
            "application_version": "1",
            "executor_id": sys.argv[1],
        }
    )
    DBOS.workflow(name="sequence")(sequence)
    DBOS.workflow(name="calls")(calls)
    DBOS.launch()
    DBOS.register_queue(QUEUE, worker_concurrency=int(os.environ["BENCH_SLOTS"]), polling_interval_sec=POLL)
    print("ready", flush=True)
    stop.wait()
    DBOS.destroy()


if __name__ == "__main__":
    main()
