"""What an HTTP exchange that did not succeed means: one failure class, and whether it may have taken effect.

"Known" outcomes are those where the call cannot have been acted on; only they may get a new idempotency key. So where
a proxy may stand between (500, 502, 503 without Retry-After, 504) the outcome is unknown.
"""

from __future__ import annotations

import re
from datetime import UTC
from email.utils import parsedate_to_datetime

import httpx

from orchestrator.domain.outcome import FailureClass
from orchestrator.ports import AgentFailed
from workers.agents.body import BodyTooLarge, BodyUndecodable
from workers.agents.egress import shown
from workers.agents.failing import excerpt, failed
from workers.agents.transport import HttpAnswer

#: What post() raises instead of answering.
EXCHANGE_ERRORS = (TimeoutError, httpx.TransportError, BodyTooLarge, BodyUndecodable)
#: However long the other side asks to be left alone (seconds).
LONGEST_RETRY_AFTER = 86400.0

_MENDS = {
    401: "It wants credentials: check the agent's headers, or the key named by api_key_env on the worker.",
    403: "The credentials lack the right to do this: check the agent's headers, or the key named by api_key_env.",
    404: "Check the path of the agent's url.",
    405: "The agent must accept POST.",
    413: "The input is larger than the agent takes.",
}


def exchange_failure(error: Exception, url: httpx.URL, timeout: float) -> AgentFailed:
    """The failure for an exchange that ended in one of ``EXCHANGE_ERRORS`` instead of a complete answer."""
    where = shown(url)
    match error:
        case httpx.ConnectError() | httpx.ConnectTimeout():
            return failed(
                FailureClass.TRANSIENT, f"Could not connect to {where}: {error}", exception=type(error).__name__
            )
        case TimeoutError() | httpx.TimeoutException():
            return failed(
                FailureClass.TIMEOUT, f"{where} did not answer in full within {timeout:g} s.", outcome_known=False
            )
        case httpx.TransportError():
            return failed(
                FailureClass.TRANSIENT,
                f"The connection to {where} broke before the answer was complete: {error}",
                outcome_known=False,
                exception=type(error).__name__,
            )
        case _:
            return failed(FailureClass.INVALID_OUTPUT, f"{where} answered, but {error}.", answered=True)


def status_failure(answer: HttpAnswer, url: httpx.URL, now: float, *, secret: str | None = None) -> AgentFailed:
    """The failure for a complete answer whose status is not 2xx. ``now``: seconds since the epoch, for HTTP dates."""
    retry_after = parse_retry_after(answer.headers.get("Retry-After"), now)
    kind, known = _meaning(answer.status, retry_after)
    message = f"{shown(url)} answered {answer.status}."
    if 300 <= answer.status < 400:
        message += " Redirects are not followed: set the agent's url to the final address."
    elif answer.status in _MENDS:
        message += f" {_MENDS[answer.status]}"
    return failed(
        kind,
        message,
        outcome_known=known,
        retry_after=retry_after if kind in (FailureClass.RATE_LIMITED, FailureClass.TRANSIENT) else None,
        status=answer.status,
        body=excerpt(answer.body.decode("utf-8", "replace"), secret=secret),
    )


def _meaning(status: int, retry_after: float | None) -> tuple[FailureClass, bool]:
    """(failure class, outcome known)"""
    match status:
        case 429:
            return FailureClass.RATE_LIMITED, True
        case 408 | 425:
            return FailureClass.TRANSIENT, True
        case 409:  # the same key is being worked on by an earlier call of ours
            return FailureClass.TRANSIENT, False
        case 503:
            return FailureClass.TRANSIENT, retry_after is not None
        case 501 | 505:
            return FailureClass.PERMANENT, True
        case _ if status >= 500:
            return FailureClass.TRANSIENT, False
        case _:
            return FailureClass.PERMANENT, True


def parse_retry_after(value: str | None, now: float) -> float | None:
    """Seconds to wait, from a Retry-After header (a number or an HTTP date), in [0, ``LONGEST_RETRY_AFTER``]."""
    if value is None:
        return None
    if re.fullmatch(r"\s*\d{1,12}(\.\d{1,6})?\s*", value, re.ASCII):
        return min(float(value), LONGEST_RETRY_AFTER)
    try:
        date = parsedate_to_datetime(value)
        when = date if date.tzinfo else date.replace(tzinfo=UTC)
        return min(max(when.timestamp() - now, 0.0), LONGEST_RETRY_AFTER)
    except (ValueError, TypeError, OverflowError):
        return None
