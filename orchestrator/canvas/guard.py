"""The envelope guard: whatever arrives neither kills nor stalls the worker. It is counted, kept, acked and passed over.

Six of seventeen kinds of odd message kill a stock worker, two of them at every restart. The guard stands at two places:
in the Redis and in-process channels, before kombu decodes an entry, and in the consumer, before Celery looks at the
message (``consumer.py``). What is bad is decided in ``envelope.py``.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any, Final

from orchestrator.canvas.envelope import MAX_BYTES, BadMessage, check_message, open_envelope

#: Where an opened envelope keeps the bytes it was made of, for the quarantine.
ENTRY: Final = "_entry"

log = logging.getLogger("orchestrator.canvas")


class Guard:
    """One for each app. ``keep(raw, queue, reason)`` puts a bad message where people can look at it."""

    def __init__(self, *, is_known: Callable[[str], bool], keep: Callable[[bytes, str, str], None]) -> None:
        self._is_known = is_known
        self._keep = keep
        self._lock = threading.Lock()
        #: Messages refused by this process.
        self.refused = 0

    def open(self, raw: bytes, queue: str) -> dict[str, Any] | None:
        """A queue entry as kombu wants it; None when it was refused."""
        try:
            envelope = open_envelope(raw)
        except BadMessage as bad:
            self.refuse(raw, queue, str(bad))
            return None
        envelope[ENTRY] = raw
        return envelope

    def problem(self, message: Any) -> str | None:
        """What is wrong with a kombu message; None when Celery may have it."""
        try:
            check_message(message, self._is_known)
        except BadMessage as bad:
            return str(bad)
        except Exception as error:
            log.exception("message.check_failed")
            return f"check failed: {error!r}"[:200]
        return None

    def refuse(self, raw: bytes, queue: str, reason: str) -> None:
        """Counts and keeps it; never raises. What cannot be kept stands in the log."""
        with self._lock:
            self.refused += 1
        log.warning("message.quarantined", extra={"queue": queue, "reason": reason, "bytes": len(raw)})
        try:
            self._keep(raw[:MAX_BYTES], queue, reason)
        except Exception:
            log.exception("quarantine.failed", extra={"queue": queue, "reason": reason, "raw": repr(raw[:2000])})
