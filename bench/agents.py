"""Our column's agents. Async ones run on the worker's loop; ``call`` blocks, so it is synchronous, in a thread."""

from __future__ import annotations

from typing import Any

from bench import work
from bench.bell import ring
from workers.context import Context, Transient


async def step(_ctx: Context, input: work.Value) -> work.Value:
    return work.step(input)


async def last(_ctx: Context, input: work.Value) -> work.Value:
    return work.last(input)


async def spread(_ctx: Context, input: work.Value) -> list[int]:
    return work.spread(input["width"])


async def member(_ctx: Context, _input: Any) -> float:
    return work.member()


async def meet(_ctx: Context, input: work.Value) -> int:
    return work.meet(input["run"], input["job"], input["ends"])


async def lead(_ctx: Context, input: work.Value) -> work.Value:
    """The supervisor: four assignments a round, content after the third."""
    if input["phase"] == "plan":
        return {"assignments": [{"agent": "worker", "input": n} for n in range(work.WORKERS)]}
    goal = input["goal"]
    return {"score": work.review(goal["run"], goal["job"], input["round"])}


def call(_ctx: Context, input: work.Value) -> work.Value:
    work.call(input["port"], input["seconds"])
    return input


def last_call(ctx: Context, input: work.Value) -> work.Value:
    call(ctx, input)
    ring({"run": input["run"], "job": input["job"]})
    return input


async def paid(ctx: Context, input: work.Value) -> work.Value:
    try:
        return work.paid(input, int(ctx.step.removeprefix("s")), first=ctx.attempt == 1)
    except work.Failed as error:
        raise Transient(str(error)) from error


async def toll(_ctx: Context, input: work.Value) -> None:
    """Rings for a job whose other steps are ``http`` agents."""
    ring({"run": input["run"], "job": input["job"]})
