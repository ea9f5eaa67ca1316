"""Agents that answer at once, on the loop: what is left is what the house itself costs."""

from __future__ import annotations

from typing import Any

from workers.context import Context

WORKERS = 4
ROUNDS = 3


async def echo(_ctx: Context, input: Any) -> Any:
    return input


async def lead(_ctx: Context, input: Any) -> dict[str, Any]:
    """A supervisor: four assignments a round, content after the third."""
    if input["phase"] == "plan":
        return {"assignments": [{"agent": "echo", "input": n} for n in range(WORKERS)]}
    return {"score": input["round"]}
