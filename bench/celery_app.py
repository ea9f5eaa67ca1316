"""A stock Celery application doing the same work: no code of ours beneath it.

Its best documented settings: prefork, ignored results except where a chord must count them, a Redis result backend,
early acknowledgement, long prefetch for short tasks, hiredis, JSON; gossip, mingle and heartbeats off, no events, no
rate limits. Read from BENCH_* variables, because Celery imports this module in each process.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from celery import Celery, chain, chord
from celery.canvas import Signature

from bench import work
from bench.bell import ring
from bench.shapes import Shape

app = Celery("bench", broker=os.environ.get("BENCH_BROKER"), backend=os.environ.get("BENCH_RESULTS"))
app.conf.update(
    accept_content=["json"],
    task_serializer="json",
    result_serializer="json",
    task_ignore_result=True,
    task_store_errors_even_if_ignored=False,
    task_acks_late="BENCH_REDELIVER" in os.environ,
    task_reject_on_worker_lost="BENCH_REDELIVER" in os.environ,
    worker_prefetch_multiplier=int(os.environ.get("BENCH_PREFETCH", "64")),
    worker_disable_rate_limits=True,
    worker_send_task_events=False,
    task_send_sent_event=False,
    worker_enable_remote_control=False,
    broker_connection_retry_on_startup=True,
    broker_pool_limit=10,
    result_expires=600,
)
if "BENCH_REDELIVER" in os.environ:
    # Its quickest recovery: redeliver after so long, and look for it each second instead of each hundred.
    app.conf.broker_transport_options = {
        "visibility_timeout": int(os.environ["BENCH_REDELIVER"]),
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
    }


task: Callable[[Callable[..., Any]], Any] = app.task
#: A chord counts its results.
counted: Callable[[Callable[..., Any]], Any] = app.task(ignore_result=False)


@task
def step(value: work.Value) -> work.Value:
    return work.step(value)


@task
def last(value: work.Value) -> work.Value:
    return work.last(value)


@task
def spread(value: work.Value) -> list[int]:
    return work.spread(value["width"])


@counted
def member(_before: Any, _number: int = 0) -> float:
    return work.member()


@task
def link(_before: Any) -> float:
    """A branch's step whose result nobody counts."""
    return work.member()


@task
def meet(ends: list[float], run: int, job: int) -> int:
    return work.meet(run, job, ends)


@task
def plan(value: work.Value, number: int) -> None:
    """A round: its assignments are known only now, so the round's chord is sent from here."""
    assignments = range(work.WORKERS)
    chord([member.s(None, one) for one in assignments], review.s(value, number)).apply_async()


@task
def review(_results: list[float], value: work.Value, number: int) -> None:
    if work.review(value["run"], value["job"], number) < work.ROUNDS:
        plan.apply_async((value, number + 1))


@task
def call(value: work.Value) -> work.Value:
    work.call(value["port"], value["seconds"])
    return value


@task
def last_call(value: work.Value) -> work.Value:
    work.call(value["port"], value["seconds"])
    ring({"run": value["run"], "job": value["job"]})
    return value


@task
def paid(value: work.Value, number: int) -> work.Value:
    """A chain of which one task failed ends there; its caller sends it again from the start, with ``again``."""
    return work.paid(value, number, first="again" not in value)


def canvas(shape: Shape, value: work.Value) -> Signature:
    """The shape as Celery's documentation would write it."""
    match shape.kind:
        case "sequence":
            return chain(step.s(value), *(step.s() for _ in range(shape.size - 2)), last.s())
        case "calls":
            return chain(call.s(value), *(call.s() for _ in range(shape.size - 2)), last_call.s())
        case "fan_out":
            header = [member.s(number) for number in range(shape.size)]
            return chain(spread.s(value), chord(header, meet.s(value["run"], value["job"])))
        case "nested":
            branch = [chain(link.s(number), link.s(), member.s()) for number in range(shape.size)]
            return chord(branch, meet.s(value["run"], value["job"]))
        case "supervisor":
            return plan.s(value, 1)
        case "failing":
            return chain(paid.s(value, 0), *(paid.s(number) for number in range(1, shape.size)))
        case "http_calls":
            raise ValueError("Celery has no http agents")
