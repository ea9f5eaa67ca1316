"""Agents that cost something each time they are called, and write every call down before they do anything else."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from workers.context import Context, InvalidOutput, Permanent, RateLimited, Refused, Timeout, Transient

#: Tokens of one call.
INPUT_TOKENS, OUTPUT_TOKENS = 100, 50
TOKENS = INPUT_TOKENS + OUTPUT_TOKENS


async def paid(ctx: Context, input: Any) -> Any:
    """Answers with a score. Step ``config.at`` fails as ``config.how`` says, as long as its first call is the only."""
    calls = _write_down(Path(ctx.config["calls"]), ctx.step)
    ctx.usage(input_tokens=INPUT_TOKENS, output_tokens=OUTPUT_TOKENS, cost_usd=0.01, model="m")
    if ctx.step == ctx.config["at"] and calls == 1:
        return await _fail(ctx.config["how"])
    return {"score": 1}


def _write_down(file: Path, step: str) -> int:
    """How often ``step`` was called by now."""
    with file.open("a") as calls:
        calls.write(f"{step}\n")
    return file.read_text().splitlines().count(step)


ERRORS: dict[str, Exception] = {
    "transient": Transient("again, please"),
    "transient, known": Transient("again, please", outcome_known=True),
    "rate_limited": RateLimited("too many"),
    "rate_limited, retry_after": RateLimited("too many", retry_after=0.01),
    "timeout": Timeout("it did not answer"),
    "invalid_output": InvalidOutput("it makes no sense"),
    "permanent": Permanent("no such clause"),
    "refused_by_policy": Refused("not allowed"),
    "bug": ValueError("nobody thought of this"),
}


async def _fail(how: str) -> Any:
    if how == "too slow":
        await asyncio.sleep(60)
    if how == "bad schema":
        return {"score": "high"}
    raise ERRORS[how]


class Bare(BaseException):
    """Not even an Exception."""


def raises(ctx: Context, input: Any) -> Any:
    """Step ``config.at`` raises ``config.what``, unless ``config.mended`` exists."""
    if ctx.step.endswith(ctx.config["at"]) and not Path(ctx.config["mended"]).exists():
        raise BARE[ctx.config["what"]]
    return {"did": ctx.step}


async def raises_async(ctx: Context, input: Any) -> Any:
    return raises(ctx, input)


class _Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even its text")


BARE: dict[str, BaseException] = {
    "KeyError": KeyError("x"),
    "NUL": RuntimeError("\x00 \ud800"),
    "huge": RuntimeError("x" * 1_000_000),
    "no text": _Unprintable(),
    "StopIteration": StopIteration(1),
    "group": ExceptionGroup("two", [ValueError("a"), KeyError("b")]),
    "SystemExit": SystemExit(3),
    "KeyboardInterrupt": KeyboardInterrupt(),
    "GeneratorExit": GeneratorExit(),
    "BaseException": Bare("bare"),
}
