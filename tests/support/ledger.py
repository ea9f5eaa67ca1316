"""What agents did, written by the agents themselves, outside the engine: one line at the start and end of each call.

A line is appended with O_APPEND and fsync, so it is there whatever kills the worker next. ``Ledger`` reads it back and
checks I3: one effect for each key, calls within the kills that were injected, the same input for the same key.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.domain.json_values import digest
from workers.context import Context, Permanent, Transient


def append(ctx: Context, at: str, input: Any) -> None:
    line = {
        "at": at,
        "key": ctx.idempotency_key,
        "job": ctx.job_id,
        "step": ctx.step,
        "attempt": ctx.attempt,
        "input": digest(input),
        "pid": os.getpid(),
        "parent": os.getppid(),
        "time": time.clock_gettime(time.CLOCK_REALTIME),  # the machine's: a test may have set the process's wrong
    }
    file = os.open(ctx.config["ledger"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(file, json.dumps(line).encode() + b"\n")
        os.fsync(file)
    finally:
        os.close(file)


async def work(ctx: Context, input: Any) -> Any:
    """``{"n": n}`` → ``{"n": n + 1}`` after ``config.delay`` seconds.

    Where n is 1, ``config.slow`` is the delay (with ``config.first_only``: under its first key), and ``config.first``
    how it fails under its first key.
    """
    append(ctx, "start", input)
    odd = ctx.config if input["n"] == 1 else {}
    if ctx.config.get("first_only") and not ctx.idempotency_key.endswith(":1"):
        odd = {}
    await asyncio.sleep(odd.get("slow", ctx.config.get("delay", 0.0)))
    if ctx.idempotency_key.endswith(":1"):
        match odd.get("first"):
            case "permanent":
                raise Permanent("not under this key")
            case "transient":
                raise Transient("again, please", outcome_known=True)
            case "doubt":
                raise Transient("the line was cut")
            case _:
                pass
    append(ctx, "end", input)
    return {"n": input["n"] + 1}


def found(ctx: Context, input: Any) -> Any:
    """A reconciler that finds the effect of ``work``."""
    return {"happened": True, "output": {"n": input["n"] + 1}}


def not_found(ctx: Context, input: Any) -> Any:
    """A reconciler that knows that ``work`` had no effect."""
    return {"happened": False}


async def spread(ctx: Context, input: Any) -> Any:
    """``{"n": n}`` → ``[{"n": 0}, …]``, ``config.width`` long."""
    append(ctx, "start", input)
    append(ctx, "end", input)
    return [{"n": number} for number in range(ctx.config["width"])]


async def total(ctx: Context, input: Any) -> Any:
    append(ctx, "start", input)
    append(ctx, "end", input)
    return {"n": sum(one["n"] for one in input)}


async def lead(ctx: Context, input: Any) -> Any:
    """A supervisor: two assignments a round, and a review whose score is the round's number."""
    append(ctx, "start", input)
    append(ctx, "end", input)
    if input["phase"] == "review":
        return {"score": input["round"]}
    return {"assignments": [{"agent": agent, "input": {"n": input["round"]}} for agent in input["workers"]]}


async def falls(ctx: Context, input: Any) -> Any:
    """Takes its process down, every time."""
    append(ctx, "start", input)
    await asyncio.sleep(ctx.config.get("delay", 0.0))
    os._exit(9)


@dataclass(frozen=True, slots=True)
class Call:
    """One call of an agent, with the times of its two lines; ``ended`` is None where the process died in between."""

    key: str
    job: str
    step: str
    attempt: int
    input: str
    pid: int
    #: The worker's pid, where the call ran in a process of its own.
    parent: int
    started: float
    ended: float | None


#: Seconds; whoever calls a settled step again does so after a lease has run out, or a message has come twice.
LAG = 0.02


class Ledger:
    def __init__(self, file: Path) -> None:
        self.file = file

    def calls(self, jobs: Iterable[str] | None = None) -> list[Call]:
        """Every call so far, of ``jobs`` if given."""
        wanted = None if jobs is None else set(jobs)
        open_calls: dict[tuple[str, int, int], dict[str, Any]] = {}
        ends: dict[tuple[str, int, int], float] = {}
        for text in self.file.read_text().splitlines() if self.file.exists() else []:
            line = json.loads(text)
            if wanted is not None and line["job"] not in wanted:
                continue
            call = (line["key"], line["attempt"], line["pid"])
            if line["at"] == "start":
                assert call not in open_calls, f"attempt {call} was made twice"
                open_calls[call] = line
            else:
                ends[call] = line["time"]
        return [self._call(line, ends.get(at)) for at, line in open_calls.items()]

    def _call(self, line: dict[str, Any], ended: float | None) -> Call:
        who = (line["key"], line["job"], line["step"], line["attempt"])
        return Call(*who, line["input"], line["pid"], line["parent"], line["time"], ended)

    def called_again(self, settled: Mapping[tuple[str, str], float]) -> list[Call]:
        """Calls that began after their step had settled, given when each (job, step) did: there must be none.

        A step's times are the database's as its worker could tell them: they may lag behind those of a call.
        """
        return [call for call in self.calls() if call.started > settled.get((call.job, call.step), call.started) + LAG]

    def check(self, jobs: Iterable[str] | None = None, *, kills: int = 0) -> dict[str, int]:
        """I3. Answers how many calls there were, and how many repeated one whose answer was lost with its worker."""
        calls = self.calls(jobs)
        by_key: dict[str, list[Call]] = defaultdict(list)
        for call in calls:
            by_key[call.key].append(call)
        repeats = 0
        for key, same in by_key.items():
            assert len({call.input for call in same}) == 1, f"{key} was sent with different inputs"
            assert len(same) <= 1 + kills, f"{key} was called {len(same)} times for {kills} kills"
            repeats += max(0, sum(call.ended is not None for call in same) - 1)
        return {"calls": len(calls), "keys": len(by_key), "repeats": repeats}
