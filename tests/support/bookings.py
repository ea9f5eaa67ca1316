"""An outside world that can be booked and unbooked, kept in a file: what sagas are for."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workers.context import Context, Permanent, Timeout, Transient


def _append(ctx: Context, line: dict[str, Any]) -> None:
    file = os.open(ctx.config["book"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(file, json.dumps({"step": ctx.step, "attempt": ctx.attempt, **line}).encode() + b"\n")
        os.fsync(file)
    finally:
        os.close(file)


def _jammed(ctx: Context) -> bool:
    """What fails does so while the file ``config.jam`` exists; without one, for ever."""
    jam = ctx.config.get("jam")
    return jam is None or os.access(jam, os.F_OK)


async def book(ctx: Context, input: Any) -> Any:
    """Books under its idempotency key. Fails at the steps named in ``config.fails``: refused before anything is done.

    ``config.silent``: steps that book and then never say so. ``config.delay``: seconds before the booking.
    """
    if ctx.step in ctx.config.get("fails", ()) and _jammed(ctx):
        raise Permanent("fully booked")
    await asyncio.sleep(ctx.config.get("delay", 0.0))
    _append(ctx, {"op": "book", "key": ctx.idempotency_key})
    if ctx.step in ctx.config.get("silent", ()):
        raise Timeout("no answer")
    return {"booking": ctx.idempotency_key}


async def unbook(ctx: Context, input: Any) -> Any:
    """Takes a booking back.

    ``config.stuck``: the steps whose booking cannot be taken back.
    ``config.shaky``: every first attempt takes it back and then says nothing.
    """
    assert ctx.undoing is not None
    if ctx.undoing.step in ctx.config.get("stuck", ()) and _jammed(ctx):
        raise Permanent("the desk is closed")
    told = {"outcome": ctx.undoing.outcome, "input": input, "undoes": ctx.undoing.step}
    _append(ctx, {"op": "unbook", "key": ctx.undoing.key, "own": ctx.idempotency_key, **told})
    if ctx.config.get("shaky") and ctx.attempt == 1:
        raise Transient("no answer")
    return None


@dataclass(frozen=True, slots=True)
class Book:
    """What the outside world has on record."""

    file: Path

    def agents(self, **config: Any) -> dict[str, Any]:
        """The two agents, working on this book."""
        config = {"book": str(self.file), **config}
        retry = {"attempts": 3, "initial": "1ms"}
        return {
            name: {"kind": "python", "target": f"tests.support.bookings:{name}", "config": config, "retry": retry}
            for name in ("book", "unbook")
        }

    def lines(self, op: str | None = None) -> list[dict[str, Any]]:
        text = self.file.read_text() if self.file.exists() else ""
        lines = [json.loads(line) for line in text.splitlines()]
        return [line for line in lines if op is None or line["op"] == op]

    def open(self) -> set[str]:
        """Keys of the bookings that stand: an unbooking of what was never booked changes nothing."""
        standing: set[str] = set()
        for line in self.lines():
            (standing.add if line["op"] == "book" else standing.discard)(line["key"])
        return standing

    def undone(self) -> list[str]:
        """The steps whose bookings were taken back, in the order they were; a repeat counts once."""
        return list(dict.fromkeys(line["undoes"] for line in self.lines("unbook")))
