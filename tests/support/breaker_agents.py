"""Agents for the tests of circuit breakers. They remember nothing but what their input and configuration say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.ledger import append
from workers.context import AgentError, Context, InvalidOutput, RateLimited, Transient

_KINDS: dict[str, type[AgentError]] = {
    "transient": Transient,
    "invalid_output": InvalidOutput,
    "rate_limited": RateLimited,
}


def moody(ctx: Context, input: Any) -> Any:
    """Fails as configured, unless its input is ``ok``; every call costs ``usd``."""
    ctx.usage(cost_usd=ctx.config.get("usd", 0.0))
    if input == "ok":
        return "fine"
    raise _KINDS[ctx.config["class"]](
        "not today", retry_after=ctx.config.get("retry_after"), outcome_known=ctx.config.get("known", True)
    )


def boss(ctx: Context, input: Any) -> Any:
    """Plans as configured, a little differently each round, and is never content."""
    if input["phase"] == "review":
        return {"score": 0.1}
    return {**ctx.config["plan"], "round": input["round"]}


def away(ctx: Context, input: Any) -> Any:
    """Cannot be reached until the file ``config.mended`` is there."""
    append(ctx, "start", input)
    if not Path(ctx.config["mended"]).exists():
        raise Transient("nobody there", outcome_known=True)
    append(ctx, "end", input)
    return input
