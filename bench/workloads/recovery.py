"""What a crash costs: the time of some jobs with a crash in their middle, less their time without."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import NamedTuple

from bench.children import Child
from bench.columns.column import Column, Fleet
from bench.columns.registry import COLUMNS
from bench.drive import drive
from bench.figures import Metric, Target
from bench.shapes import Shape
from bench.workloads.waiting import fake_server
from bench.workloads.workload import Figures, Turn, Workload

#: Seconds after which Celery redelivers what a dead worker had: its best case; its default is an hour.
REDELIVER = 10


class Run(NamedTuple):
    seconds: float
    #: Calls that were made again.
    repeated: int


def run_calls(turn: Turn, column: Column, crash: Callable[[], None] | None) -> Run:
    """All jobs, none lost; ``crash`` happens halfway through the time of a clean run."""
    seconds = turn.size["milliseconds"] / 1000
    with fake_server(turn.lab) as (server, port):
        shape = Shape("calls", turn.size["calls"], port, seconds)
        timer = threading.Timer(seconds * turn.size["calls"] / 2, crash) if crash else None
        if timer is not None:
            timer.start()
        try:
            batch = drive(turn.lab, column, shape, turn.size["jobs"], turn.size["jobs"])
        finally:
            if timer is not None:
                timer.cancel()
                timer.join()
        server.say("how many?")
        return Run(batch.seconds, int(server.read()) - batch.steps)


def with_crash(turn: Turn, make: Callable[[Column], Callable[[], None]] | None) -> Run:
    """A fresh fleet for each: a crash leaves one worker less, or a new one that is still cold."""
    column = COLUMNS[turn.column.name](turn.lab)
    threads = Fleet(workers=2, slots=50, pool="threads", redeliver_after=REDELIVER)
    try:
        column.start(threads)
        drive(turn.lab, column, Shape("sequence", 10), 10, 10)
        return run_calls(turn, column, make(column) if make else None)
    finally:
        column.stop()


def kill_pool(column: Column) -> Callable[[], None]:
    """SIGKILL to a worker's pool process; its parent lives."""
    child = column.workers[0].family()[1]
    return lambda: os.kill(child, signal.SIGKILL)


def kill_command(column: Column) -> Callable[[], None]:
    """SIGKILL to a whole worker command, parent and child."""
    child: Child = column.workers[0]

    def crash() -> None:
        for pid in child.family():
            os.kill(pid, signal.SIGKILL)

    return crash


def ours(turn: Turn) -> Figures:
    crashes = {
        "pool process killed": kill_pool,
        "command killed": kill_command,
        "FLUSHALL": lambda _: turn.lab.flush_redis,
    }
    return _figures(turn, crashes)


def stock(turn: Turn) -> Figures:
    return _figures(turn, {"command killed": kill_command})


def _figures(turn: Turn, crashes: dict[str, Callable[[Column], Callable[[], None]]]) -> Figures:
    clean = with_crash(turn, None).seconds
    runs = {name: with_crash(turn, make) for name, make in crashes.items()}
    lost = {name: run.seconds - clean for name, run in runs.items()}
    return {"clean": clean, **lost, "calls repeated": max(run.repeated for run in runs.values())}


RECOVERY = Workload(
    "recovery",
    "50 jobs of 4 calls of 500 ms; a crash in the middle, time lost by it",
    (
        Metric("clean", "s", "less"),
        Metric("pool process killed", "s", "less", (Target(2.0),)),
        Metric("command killed", "s", "less", (Target(4.0),)),
        Metric("FLUSHALL", "s", "less"),
        Metric("calls repeated", "calls", "less", (Target(50),)),
    ),
    {"ours": ours, "celery": stock},
    {"jobs": 50, "calls": 4, "milliseconds": 500},
    {"jobs": 6, "calls": 2, "milliseconds": 300},
    started=False,
    seconds=60,
    note=f"Celery: late acknowledgement, redelivery after {REDELIVER} s. Its FLUSHALL loses jobs and is not run.",
)
