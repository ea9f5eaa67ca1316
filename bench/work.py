"""What the steps do: nothing but note when. The same functions in every column, so that only the systems differ.

Times are the machine's monotonic clock, which all its processes share.
"""

from __future__ import annotations

import socket
import time
from typing import Any

from bench.bell import ring

Value = dict[str, Any]
ROUNDS = 3
WORKERS = 4


def step(value: Value) -> Value:
    """Notes how long after its predecessor's end it began; the first one, how long after the submit."""
    gaps = [*value.get("gaps", ()), round(time.monotonic() - value["at"], 6)]
    return {"run": value["run"], "job": value["job"], "gaps": gaps, "at": time.monotonic()}


def last(value: Value) -> Value:
    """The last step of a sequence."""
    done = step(value)
    ring({"run": done["run"], "job": done["job"], "gaps": done["gaps"]})
    return done


def spread(width: int) -> list[int]:
    return list(range(width))


def member() -> float:
    """When this branch ended."""
    return time.monotonic()


def meet(run: int, job: int, ends: list[float]) -> int:
    """The body of a join: how long after the last branch's end it began."""
    ring({"run": run, "job": job, "join": time.monotonic() - max(ends), "width": len(ends)})
    return len(ends)


def review(run: int, job: int, number: int) -> int:
    """The score of a round; the last one ends the job."""
    if number >= ROUNDS:
        ring({"run": run, "job": job})
    return number


#: What each call of ``paid`` costs.
TOKENS = 1000


class Failed(Exception):
    """The one failure of a job."""


def paid(value: Value, number: int, *, first: bool) -> Value:
    """Step ``number``: rings what the call costs, then fails if it is the one to fail and this is its ``first`` try."""
    fails = first and number == value["fails"]
    ends = number == value["size"] - 1 and not fails
    ring({"run": value["run"], "job": value["job"], "tokens": TOKENS, "failed": fails, "ended": ends})
    if fails:
        raise Failed(f"step {number} of job {value['job']}")
    return value


def call(port: int, seconds: float) -> int:
    """One HTTP call over a plain socket to ``fake_server``; answers the status. A connection for each call."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as wire:
        head = (
            f"POST /delay/{seconds:g} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}"
        )
        wire.sendall(head.encode())
        answer = b""
        while data := wire.recv(4096):
            answer += data
    status = int(answer.split(b" ", 2)[1])
    if status != 200:
        raise ConnectionError(f"the fake server answered {status}")
    return status
