"""Named dangerous instants. In production a look-up in an empty dictionary; a test arms one and sees what survives.

Armed by the environment, so that a child inherits it: ``ORCHESTRATOR_CRASHPOINT=settle.after_commit=kill@2`` kills the
process the second time that point is reached. Kinds: ``kill`` (SIGKILL), ``raise``, and ``lie`` (the statement has
committed, then failure is reported: only at points named ``….after_commit``).
"""

from __future__ import annotations

import logging
import os
import signal
from typing import Final

log = logging.getLogger("orchestrator.crashpoints")

#: Every point in the code; a crashpoint() that is not listed here fails when reached, and one without a test case fails
#: the suite.
POINTS: Final = (
    "submit.before_insert",
    "submit.before_commit",
    "submit.after_commit",
    "publish.before",
    "publish.after",
    "publish.before_marking",
    "worker.after_receive",
    "claim.after_commit",
    "call.before",
    "call.during",
    "call.after_answer",
    "settle.before_commit",
    "settle.after_commit",
    "worker.before_ack",
    "join.before_last_child",
    "join.after_last_child",
    "timer.fire",
    "lease.renew",
    "dead_letter.move",
    "dead_letter.replay",
    "epoch.change",
    "compensation.before_call",
    "compensation.after_call",
    "compensation.after_commit",
    "decision.before_commit",
    "decision.after_commit",
)

VARIABLE: Final = "ORCHESTRATOR_CRASHPOINT"


class CrashPointReached(Exception):
    """Raised by an armed point of kind ``raise`` or ``lie``."""


class _Armed:
    """The points this process was told to die at."""

    def __init__(self, text: str) -> None:
        self.points: dict[str, tuple[str, int]] = {}
        for entry in filter(None, text.split(",")):
            name, _, rest = entry.partition("=")
            kind, _, count = rest.partition("@")
            if name not in POINTS or kind not in {"kill", "raise", "lie"}:
                raise ValueError(f"{VARIABLE}: {entry!r} is not POINT=kill|raise|lie[@COUNT]")
            self.points[name] = (kind, int(count or 1))


_armed = _Armed(os.environ.get(VARIABLE, ""))


def crashpoint(name: str) -> None:
    """Does nothing, unless a test armed ``name``."""
    if _armed.points:
        _reach(name)


def arm(text: str) -> None:
    """Arms points in this process (``""`` disarms all); for tests that run in process."""
    _armed.points = _Armed(text).points


def _reach(name: str) -> None:
    if name not in POINTS:
        raise ValueError(f"crash point {name!r} is not in POINTS")
    kind, left = _armed.points.get(name, ("", 0))
    if not kind:
        return
    if left > 1:
        _armed.points[name] = (kind, left - 1)
        return
    del _armed.points[name]
    log.warning("crashpoint.reached", extra={"point": name, "kind": kind})
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise CrashPointReached(name)
