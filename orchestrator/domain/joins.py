"""Where a fan-out meets: a pure function of the join's numbers, taken once."""

from __future__ import annotations

from enum import Enum


class Decision(Enum):
    PENDING = "pending"
    SUCCEED = "succeed"
    FAIL = "fail"


def tolerated(tolerate: int | str, width: int) -> int:
    """How many of ``width`` branches may fail: a number, or a share such as ``"10%"`` rounded down."""
    return width * int(tolerate[:-1]) // 100 if isinstance(tolerate, str) else tolerate


def decide(width: int, succeeded: int, failed: int, tolerate: int | str) -> Decision:
    """All must succeed but for the tolerated; the first failure beyond them decides at once."""
    if failed > tolerated(tolerate, width):
        return Decision.FAIL
    if succeeded + failed == width:
        return Decision.SUCCEED
    return Decision.PENDING
