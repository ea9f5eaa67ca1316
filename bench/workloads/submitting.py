"""How many jobs a second are accepted; no worker runs, so nothing competes with the submitter."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import cast

import psycopg

from bench.columns.column import Fleet
from bench.columns.ours import BATCH, Ours, definition_of
from bench.figures import Metric, Target
from bench.shapes import Shape
from bench.workloads.workload import Figures, Turn, Workload
from orchestrator.client import Client

TEN = Shape("sequence", 10)
#: Threads that submit over HTTP.
THREADS = 8


def rate(turn: Turn, jobs: int, at_once: int) -> float:
    """Jobs a second through the column's own submit, ``at_once`` in each call of it."""
    clock = turn.lab.clock
    run = turn.lab.bell.next_run()
    started = clock.monotonic()
    for start in range(0, jobs, at_once):
        inputs = [TEN.input(run, number, started) for number in range(start, min(jobs, start + at_once))]
        turn.column.submit(TEN, inputs)
    return jobs / (clock.monotonic() - started)


def stock(turn: Turn) -> Figures:
    alone = rate(turn, turn.size["jobs"], 1)
    return {"in batches": batched(turn), "one by one": alone, "on the caller's connection": alone}


def batched(turn: Turn) -> float:
    """Celery's quickest: chains sent inside kombu's publish batch, where this kombu has one."""
    return rate(turn, turn.size["jobs"], BATCH)


def ours(turn: Turn) -> Figures:
    column = cast("Ours", turn.column)
    client = Client()
    jobs = turn.size["jobs"]
    dsn = column.database.replace("+psycopg", "")
    name = column.register("submitted", definition_of(TEN))
    with psycopg.connect(dsn, autocommit=False) as connection:

        def one(number: int) -> None:
            client.submit(name, TEN.input(0, number, 0.0), connection=connection)
            connection.commit()

        in_sql = _timed(turn, jobs, one)
    client.close()
    return {
        "in batches": rate(turn, jobs, BATCH),
        "one by one": rate(turn, jobs, 1),
        "on the caller's connection": in_sql,
        "over HTTP": over_http(turn, column, name),
    }


def over_http(turn: Turn, column: Ours, name: str) -> float:
    url, key = column.api()
    jobs, numbers = turn.size["jobs"], iter(range(turn.size["jobs"]))
    lock = threading.Lock()
    failed: list[BaseException] = []

    def body() -> None:
        try:
            with Client(url, api_key=key) as client:
                while True:
                    with lock:
                        number = next(numbers, None)
                    if number is None:
                        return
                    client.submit(name, TEN.input(0, number, 0.0))
        except BaseException as error:  # noqa: BLE001 - raised below
            failed.append(error)

    threads = [threading.Thread(target=body) for _ in range(THREADS)]
    started = turn.lab.clock.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return jobs / (turn.lab.clock.monotonic() - started)


def _timed(turn: Turn, count: int, work: Callable[[int], None]) -> float:
    started = turn.lab.clock.monotonic()
    for number in range(count):
        work(number)
    return count / (turn.lab.clock.monotonic() - started)


SUBMIT = Workload(
    "submit",
    "Submitting jobs of 10 steps",
    (
        Metric("in batches", "jobs/s", "more", (Target(3.0, "celery"),)),
        Metric("one by one", "jobs/s", "more", (Target(1.0, "celery"),)),
        Metric("on the caller's connection", "jobs/s", "more", (Target(1.0, "celery"),)),
        Metric("over HTTP", "jobs/s", "more", (Target(300.0),)),
    ),
    {"ours": ours, "celery": stock},
    {"jobs": 1000},
    {"jobs": 40},
    fleet=Fleet(workers=0),
    note="Batches of 100; Celery's go through kombu's publish batch. HTTP: one API process, 8 client threads."
    " On the caller's connection: our client in the caller's own transaction, against Celery one by one.",
    seconds=30,
)
