"""Agents for the tests of attempts. They remember nothing but what their input and context say."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from workers.context import Context


def second_thoughts(ctx: Context, input: Any) -> Any:
    """Answers badly at first; told what was wrong, it answers well and says what it was told."""
    ctx.usage(input_tokens=10, output_tokens=5, cost_usd=0.01, model="m")
    if ctx.previous is None:
        return {"score": "high"}
    return {"score": 1, "told": ctx.previous.message}


#: Set when `spender` has spent.
SPENT = threading.Event()


async def spender(ctx: Context, input: Any) -> Any:
    """Spends at once, and never answers."""
    ctx.usage(input_tokens=10, cost_usd=0.25, model="m")
    SPENT.set()
    await asyncio.Event().wait()


async def sleeper(ctx: Context, input: Any) -> Any:
    """Sleeps, showing a sign of life every ``tick`` seconds."""
    left = float(input["seconds"])
    while left > 0:
        await asyncio.sleep(input["tick"])
        left -= input["tick"]
        if input["signs"]:
            ctx.progress()
    return "awake"


def vandal(ctx: Context, input: Any) -> Any:
    """Changes its input: nobody else may see that."""
    input["list"].append("vandal was here")
    return input["list"]


def nul(ctx: Context, input: Any) -> Any:
    """Not storable: no JSON text may hold NUL here."""
    return {"text": "a\x00b"}


def flood(ctx: Context, input: Any) -> Any:
    """As many bytes as it is asked for, two to a character."""
    return "é" * (input["bytes"] // 2)


def well(ctx: Context, input: Any) -> Any:
    """A list in a list, as deep as it is asked for."""
    value: Any = 1
    for _ in range(input["deep"]):
        value = [value]
    return value


def surrogate(ctx: Context, input: Any) -> Any:
    """Not encodable."""
    return {"text": "\ud800"}


def counted(ctx: Context, input: Any) -> Any:
    """Answers with the number of its attempt, and its input."""
    return {**input, "n": ctx.attempt}


def shrinking(ctx: Context, input: Any) -> Any:
    """A list of three at first, then of two, then of one."""
    return list(range(4 - ctx.attempt))
