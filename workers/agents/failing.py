"""Saying how a call failed, in words that are safe to store and to show."""

from __future__ import annotations

from typing import Any

from orchestrator.domain.outcome import Failure, FailureClass, Usage
from orchestrator.ports import AgentFailed

#: Bytes of somebody else's text (an error body, a traceback) that a failure keeps.
EXCERPT = 2048


def excerpt(text: str, limit: int = EXCERPT, *, secret: str | None = None) -> str:
    """``text`` cut to ``limit`` UTF-8 bytes, without NUL, lone surrogates or ``secret``.

    PostgreSQL stores neither NUL nor surrogates, and a failure that cannot be stored would itself be a failure.
    """
    if secret:
        text = text.replace(secret, "***")
    data = text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace")
    if len(data) <= limit:
        return data.decode("utf-8")
    return data[: limit - 3].decode("utf-8", "ignore") + "…"


def failed(
    kind: FailureClass,
    message: str,
    *,
    outcome_known: bool = True,
    answered: bool = False,
    retry_after: float | None = None,
    usage: Usage = Usage(),
    **detail: Any,
) -> AgentFailed:
    """An ``AgentFailed`` to raise. ``detail`` holds JSON values."""
    failure = Failure(
        kind=kind,
        message=excerpt(message),
        outcome_known=outcome_known,
        answered=answered,
        retry_after=retry_after,
        detail=detail,
    )
    return AgentFailed(failure, usage)
