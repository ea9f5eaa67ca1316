"""Outcome is data: what an attempt ended in, as a closed union of frozen values.

A step never raises out of its Celery task. The worker turns whatever happened into one of these, and the settle
writes it under the attempt's fence.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class FailureClass(StrEnum):
    """How an attempt failed. Each class maps to one action (``domain/retry.py``)."""

    TRANSIENT = "transient"
    RATE_LIMITED = "rate_limited"
    TIMEOUT = "timeout"
    INVALID_OUTPUT = "invalid_output"
    REFUSED_BY_POLICY = "refused_by_policy"
    BUDGET = "budget"
    PERMANENT = "permanent"
    WORKER_LOST = "worker_lost"
    IN_DOUBT = "in_doubt"
    BUG = "bug"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt did not succeed.

    ``outcome_known`` is False when the call may have taken effect (a timeout, a cut connection, a lost worker): then
    the idempotency key stays for the next attempt. ``retry_after`` is in seconds, as the other side asked.
    """

    kind: FailureClass
    message: str
    outcome_known: bool = True
    #: True when the agent answered (its call is over and paid for), False when it was turned away before acting.
    answered: bool = False
    retry_after: float | None = None
    #: Where: an expression's place, a schema path, an exception type.
    detail: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return {
            "class": self.kind.value,
            "message": self.message,
            "outcome_known": self.outcome_known,
            "answered": self.answered,
            "retry_after": self.retry_after,
            "detail": self.detail,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Failure:
        return cls(
            kind=FailureClass(data["class"]),
            message=data["message"],
            outcome_known=data.get("outcome_known", True),
            answered=data.get("answered", False),
            retry_after=data.get("retry_after"),
            detail=data.get("detail") or {},
        )


@dataclass(frozen=True, slots=True)
class Doubt:
    """A call that may have taken effect, until somebody knows: whose it was, how it failed, and the tries charged."""

    agent: str
    failure: Failure
    tries: int

    def as_dict(self) -> dict[str, Any]:
        return {"agent": self.agent, "failure": self.failure.as_dict(), "tries": self.tries}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Doubt:
        return cls(data["agent"], Failure.from_dict(data["failure"]), data["tries"])


@dataclass(frozen=True, slots=True)
class Usage:
    """What an attempt spent. Cost in US dollars."""

    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float = 0.0
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """A JSON value on its way to or from SQL: inline text, or a reference into ``payloads`` with its text beside it.

    ``text`` is None only for a reference that has not been fetched.
    """

    text: str | None
    ref: str | None = None


NULL = Stored("null")
