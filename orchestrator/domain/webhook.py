"""Webhooks: what a caller may ask for, what a message is called, and what an answer to it means. Pure.

The form is that of https://www.standardwebhooks.com. A message is one event of a job's history; its id follows from
the job and the event's number, so a message that is sent twice has the same id.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from orchestrator.domain.errors import InvalidInput
from orchestrator.domain.events import EventType
from orchestrator.domain.ids import JobId

#: What a webhook is told that names no events: how the job ended.
JOB_ENDS = (EventType.JOB_SUCCEEDED, EventType.JOB_FAILED, EventType.JOB_CANCELLED)
#: Version of the message around the event (the event has its own, ``v``).
VERSION = 1
MAX_URL = 2048
KEY_MARK = "whsec_"
#: Bytes of a key, as Standard Webhooks has it.
SECRET_BYTES = (24, 64)

_FIELDS = frozenset({"url", "events", "secret"})


@dataclass(frozen=True, slots=True)
class Webhook:
    """Who is told of what. ``secret`` None: one is made at submit, and answered there once."""

    url: str
    events: tuple[EventType, ...] = JOB_ENDS
    secret: str | None = field(default=None, repr=False)

    @classmethod
    def read(cls, value: str | Mapping[str, Any]) -> Self:
        """From a URL, or ``{url, events?, secret?}``. Raises ``InvalidInput``; what may be called is not asked here."""
        given: Mapping[str, Any] = {"url": value} if isinstance(value, str) else value
        if unknown := sorted(set(given) - _FIELDS):
            raise InvalidInput(f"webhook.{unknown[0]} is not known.", mend="It has url, events and secret.")
        url, events, secret = given.get("url"), given.get("events"), given.get("secret")
        if not isinstance(url, str) or not 0 < len(url) <= MAX_URL or not (url.isascii() and url.isprintable()):
            raise InvalidInput(f"webhook.url is a URL of at most {MAX_URL} printable ASCII characters.")
        if secret is not None:
            _check_secret(secret)
        return cls(url, JOB_ENDS if events is None else _types(events), secret)

    def as_given(self) -> list[Any]:
        """What makes two of them the same to an idempotency key."""
        return [self.url, [kind.value for kind in self.events], self.secret]


def _types(names: Iterable[str]) -> tuple[EventType, ...]:
    known = {kind.value: kind for kind in EventType}
    found = {known[name] for name in names if name in known}
    if not found or len(found) < len(set(names)):
        wrong = sorted(set(names) - known.keys())
        what = f"{wrong[0]!r} is no event" if wrong else "no event is named"
        raise InvalidInput(f"webhook.events: {what}.", mend=f"Leave it out, or choose from {', '.join(known)}.")
    return tuple(kind for kind in EventType if kind in found)


def _check_secret(secret: Any) -> None:
    """Raises ``InvalidInput``, which does not quote the secret."""
    least, most = SECRET_BYTES
    if not (isinstance(secret, str) and secret.startswith(KEY_MARK)) or not least <= _size(secret) <= most:
        raise InvalidInput(
            f"webhook.secret is {KEY_MARK} and {least} to {most} bytes in base64.",
            mend="Leave it out: one is made and answered once.",
        )


def _size(secret: str) -> int:
    """Bytes of the key; 0 when it is no base64."""
    try:
        return len(base64.b64decode(secret.removeprefix(KEY_MARK), validate=True))
    except (ValueError, binascii.Error):
        return 0


def message_id(job_id: JobId, number: int) -> str:
    """The same whenever the event is sent, so that a receiver can drop what it has."""
    return f"evt_{job_id}_{number}"


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds: the first pause after a failure, the longest one, and how long a receiver may fail in a row."""

    first: float = 5.0
    longest: float = 4 * 3600.0
    give_up: float = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Delivered:
    """The receiver has it."""


@dataclass(frozen=True, slots=True)
class Again:
    delay: float
    why: str


@dataclass(frozen=True, slots=True)
class Stop:
    """No more is sent until somebody resumes it."""

    why: str


Verdict = Delivered | Again | Stop


def judge(
    status: int | None,
    why: str,
    *,
    failures: int,
    failing_for: float,
    retry_after: float | None,
    patience: Patience,
    draw: float,
) -> Verdict:
    """What an answer means: ``status`` None is none, for the reason ``why``.

    ``failures`` and ``failing_for`` (seconds) count what went wrong before; ``draw`` is in [0, 1). A receiver that
    names its wait is not asked before, nor waited for beyond ``longest``.
    """
    if status is not None and 200 <= status < 300:
        return Delivered()
    said = why if status is None else f"it answered {status}"
    if status == 410:
        return Stop(f"{said}: it wants no more")
    if failing_for >= patience.give_up:
        return Stop(f"it has failed for {failing_for / 3600:.1f} h; last: {said}")
    pause = min(patience.longest, patience.first * 2.0 ** min(failures, 62)) * (0.5 + draw / 2)
    return Again(max(pause, min(retry_after or 0.0, patience.longest)), said)
