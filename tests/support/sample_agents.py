"""Python agents that behave in every way one may: imported by target name in the tests of ``python`` agents."""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
import time
from os import getcwd  # noqa: F401  (a borrowed name, which must not become an agent)
from typing import Any

import httpx

from workers import context as errors
from workers.context import Context

NOT_CALLABLE = 3
CALLER = contextvars.ContextVar("caller", default="nobody")


class Gate:
    """How a test and an agent in a thread find each other."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.may_leave = threading.Event()
        self.left = threading.Event()


def echo(ctx: Context, input: Any) -> Any:
    return {"input": input, "thread": threading.current_thread().name, "caller": CALLER.get()}


async def echo_async(ctx: Context, input: Any) -> Any:
    await asyncio.sleep(0)
    return {"input": input, "thread": threading.current_thread().name}


def spins(ctx: Context, input: Any) -> Any:
    """Keeps a processor busy for 5 ms of its own time."""
    end = time.thread_time() + 0.005
    while time.thread_time() < end:
        pass
    return input


def spins_if_told(ctx: Context, input: Any) -> Any:
    return spins(ctx, input) if input == "spin" else input


def naps(ctx: Context, input: Any) -> Any:
    """Takes 5 ms and hardly any of the processor."""
    threading.Event().wait(0.005)
    return input


def echo_awaitable(ctx: Context, input: Any) -> Any:
    """Sync by its looks, but answers with something to await."""
    return echo_async(ctx, input)


class Made:
    async def __call__(self, _ctx: Context, input: Any) -> Any:
        return {"made": input}


made = Made()


def told(ctx: Context, input: Any) -> Any:
    ctx.progress()
    ctx.log.info("sample.told", size=len(input))
    ctx.usage(input_tokens=10, cost_usd=0.5, model="m")
    ctx.usage(output_tokens=5, cost_usd=0.25)
    ctx.config["changed"] = True
    previous = ctx.previous.message if ctx.previous else None
    return [ctx.job_id, ctx.step, ctx.attempt, ctx.idempotency_key, ctx.timeout, ctx.config, previous, ctx.over]


class Unprintable(Exception):
    def __str__(self) -> str:
        raise ValueError("not even this")


def _raised(name: str) -> BaseException:
    made: dict[str, BaseException] = {
        "Transient": errors.Transient("try again", retry_after=3),
        "TransientKnown": errors.Transient("never begun", outcome_known=True),
        "RateLimited": errors.RateLimited(retry_after=2.5),
        "InvalidOutput": errors.InvalidOutput("half a sentence"),
        "Refused": errors.Refused("not allowed"),
        "Permanent": errors.Permanent("no such contract"),
        "PermanentUnknown": errors.Permanent("half done", outcome_known=False),
        "Timeout": errors.Timeout("too slow"),
        "TimeoutError": TimeoutError("slow"),
        "ConnectionRefusedError": ConnectionRefusedError(111, "refused"),
        "ConnectionResetError": ConnectionResetError(104, "reset"),
        "BrokenPipeError": BrokenPipeError(32, "pipe"),
        "httpx.ConnectError": httpx.ConnectError("refused"),
        "httpx.ReadTimeout": httpx.ReadTimeout("slow"),
        "httpx.ReadError": httpx.ReadError("cut"),
        "ValueError": ValueError("bad \0 value \ud800"),
        "StopIteration": StopIteration(1),
        "StopAsyncIteration": StopAsyncIteration(1),
        "KeyError": KeyError("missing"),
        "SystemExit": SystemExit(3),
        "CancelledError": asyncio.CancelledError(),
        "MemoryError": MemoryError(),
        "Unprintable": Unprintable(),
        "Group": ExceptionGroup("one", [errors.RateLimited("inner", retry_after=1)]),
        "Groups": ExceptionGroup("two", [ValueError("a"), KeyError("b")]),
    }
    return made[name]


def fails(ctx: Context, input: str) -> None:
    ctx.usage(input_tokens=7)
    raise _raised(input)


async def fails_async(ctx: Context, input: str) -> None:
    ctx.usage(input_tokens=7)
    await asyncio.sleep(0)
    raise _raised(input)


def takes_nothing() -> None: ...


async def takes_nothing_async() -> None: ...


def recurses(ctx: Context, input: Any) -> Any:
    return recurses(ctx, input)


def gated(ctx: Context, gate: Gate) -> str:
    """Stays until it may leave, deaf to everything."""
    gate.entered.set()
    assert gate.may_leave.wait(30)
    ctx.progress()
    gate.left.set()
    return "late"


def patient(ctx: Context, gate: Gate) -> None:
    """Stays until it is told that nobody waits any more."""
    gate.entered.set()
    while not ctx.over:
        gate.may_leave.wait(0.005)
    gate.left.set()


async def sleeps(ctx: Context, gate: Gate) -> None:
    gate.entered.set()
    try:
        await asyncio.sleep(3600)
    finally:
        gate.left.set()


def imported_modules(ctx: Context, input: str) -> bool:
    return input in sys.modules
