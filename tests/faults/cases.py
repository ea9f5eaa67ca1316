"""Every crash point with the place where it is armed, and every case that cannot occur with the reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from orchestrator.crashpoints import POINTS
from tests.support.shapes import NAMES, Variant

Kind = Literal["kill", "raise", "lie"]
KINDS: tuple[Kind, ...] = ("kill", "raise", "lie")

#: P13: a worker's parent saw it die. Its steps run again within 2 s, which `test_takeover.py` holds on its own; here
#: three installations share the machine, and a second is theirs.
SEEN_DYING = 3.0
#: Nobody held the step: its message is gone, which markers find. Marker (0.5 s) + grace (2 s) + what the machine takes.
LOST_MESSAGE = 8.0


@dataclass(frozen=True, slots=True)
class How:
    """``where``: the process that is armed. ``count``: at which time it is reached, for each shape."""

    where: Literal["submit", "worker", "replay", "decide"]
    variant: Variant = "plain"
    count: tuple[int, int, int] = (1, 1, 1)
    #: A call that had ended may be made again: its result was not committed yet.
    repeats: bool = False


HOW: dict[str, How] = {
    "submit.before_insert": How("submit"),
    "submit.before_commit": How("submit"),
    "submit.after_commit": How("submit"),
    "publish.before_marking": How("worker", "limited", (2, 3, 3)),
    "publish.before": How("worker", "limited", (2, 3, 3)),
    "publish.after": How("worker", "limited", (2, 3, 3)),
    "worker.after_receive": How("worker", "limited", (1, 3, 2)),  # of a limited agent each step is a message
    "claim.after_commit": How("worker", "limited", (1, 2, 2)),
    "worker.before_ack": How("worker", "limited", (1, 2, 2)),
    "call.before": How("worker", count=(2, 3, 3)),
    "call.during": How("worker", count=(2, 3, 3)),
    "call.after_answer": How("worker", count=(2, 3, 3), repeats=True),
    "settle.before_commit": How("worker", count=(3, 2, 4), repeats=True),
    "settle.after_commit": How("worker", count=(3, 2, 4)),
    "join.before_last_child": How("worker", repeats=True),
    "join.after_last_child": How("worker", repeats=True),
    "timer.fire": How("worker", "transient"),
    "lease.renew": How("worker", "slow"),
    "dead_letter.move": How("worker", "permanent"),
    "dead_letter.replay": How("replay", "permanent"),
    "epoch.change": How("replay", "permanent"),
    "decision.before_commit": How("decide", "doubt"),
    "decision.after_commit": How("decide", "doubt"),
}

#: Points of the undoing: a job that fails and owes; `test_saga_crashes.py` runs them, in the same three shapes.
UNDOING = ("compensation.before_call", "compensation.after_call", "compensation.after_commit")

_COMMITTED = "the statement has committed: an exception here is a lie, and that is its own case"
_NOT_COMMITTED = "nothing has committed here that could be denied"


def impossible(point: str, kind: str) -> str | None:
    """Why a case cannot occur; None when it can."""
    committed = point.endswith(".after_commit")
    if kind == "lie" and not committed:
        return _NOT_COMMITTED
    if kind == "raise" and committed:
        return _COMMITTED
    return None


@dataclass(frozen=True, slots=True)
class Case:
    point: str
    kind: Kind
    shape: str

    @property
    def how(self) -> How:
        return HOW[self.point]

    @property
    def armed(self) -> str:
        count = self.how.count[NAMES.index(self.shape)]
        return f"{self.point}={self.kind}@{count}"

    def __str__(self) -> str:
        return f"{self.point}-{self.kind}-{self.shape}"


CASES = [
    Case(point, kind, shape)
    for point in POINTS
    for kind in KINDS
    for shape in NAMES
    if point in HOW and impossible(point, kind) is None
]
