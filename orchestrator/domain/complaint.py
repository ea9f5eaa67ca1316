"""What an attempt is told of the one before, which is all by which two inputs of a step differ. Pure.

A ``python`` agent reads ``ctx.previous``, a ``chat`` agent's prompt ends with why its answer was rejected; the other
kinds are sent the same again. While an outcome is unknown the very same input is sent again, complaint and all.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from orchestrator.domain.outcome import Failure, FailureClass
from orchestrator.domain.plan import StepRow
from orchestrator.domain.workflow import Agent, ChatAgent, PythonAgent

_CARRIED = "complaint"


def complaint(previous: Failure | None) -> str | None:
    """Why the last answer was rejected; None where there was none, or it was good enough."""
    if previous is None:
        return None
    if previous.kind is FailureClass.INVALID_OUTPUT:
        return previous.message
    carried = previous.detail.get(_CARRIED)
    return None if carried is None else str(carried)


def carried(failure: Failure, previous: Failure | None) -> Failure:
    """``failure`` as the next attempt is told of it: with what this one was told, if it may have taken effect."""
    told = complaint(previous)
    if failure.outcome_known or told is None:
        return failure
    return replace(failure, detail={**failure.detail, _CARRIED: told})


def input_change(agent: Agent | None, row: StepRow) -> dict[str, Any]:
    """How the input of the attempt that holds ``row`` differs from what ``with`` says, for the record."""
    changed: dict[str, Any] = {"input": "given"} if row.given is not None else {}
    if isinstance(agent, PythonAgent) and row.failure is not None:
        changed["told"] = {"class": row.failure.kind.value, "message": row.failure.message}
    if isinstance(agent, ChatAgent) and (text := complaint(row.failure)) is not None:
        changed["told"] = {"class": FailureClass.INVALID_OUTPUT.value, "message": text}
    return changed
