"""RabbitMQ: what a queue's delivery limit gave up on lies in a queue of its own, and is taken from there.

Such a message was delivered ``app.DELIVERY_LIMIT`` times to processes that died or let go before its claim.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any, Final

from orchestrator.canvas.messages import DEAD_QUEUE
from orchestrator.canvas.publisher import let_go, open_for_write
from orchestrator.clock import Clock
from orchestrator.domain.errors import OrchestratorError

log = logging.getLogger("orchestrator.canvas")

#: Seconds between two looks, and messages taken in one.
LOOK_SECONDS: Final = 5.0
MOST: Final = 100


class DeadMessages:
    """``drain`` hands each to ``keep(queue, reason, raw)`` and acks it once that has returned: at least once."""

    def __init__(self, app: Any, keep: Callable[[str, str, bytes], None], clock: Clock) -> None:
        self._app = app
        self._keep = keep
        self._clock = clock
        self._lock = threading.Lock()
        self._connection: Any = None
        self._next = float("-inf")

    def drain(self) -> int:
        """At most one look in ``LOOK_SECONDS``; answers how many messages it kept. A broker that is away is another
        duty's news. Raises what ``keep`` raises: the message stays."""
        with self._lock:
            if self._clock.monotonic() < self._next:
                return 0
            self._next = self._clock.monotonic() + LOOK_SECONDS
            try:
                return self._take()
            except OrchestratorError:
                self._drop()
                raise
            except Exception as error:  # noqa: BLE001 - the drivers' errors have no common base
                log.info("dead_messages.waiting", extra={"error": f"{type(error).__name__}: {error}"[:300]})
                self._drop()
                return 0

    def close(self) -> None:
        with self._lock:
            self._drop()

    def _take(self) -> int:
        if self._connection is None:
            self._connection = open_for_write(self._app)
            self._app.amqp.queues[DEAD_QUEUE](self._connection.default_channel).declare()
        channel = self._connection.default_channel
        for count in range(MOST):
            message = channel.basic_get(DEAD_QUEUE, no_ack=False)
            if message is None:
                return count
            self._keep(*_death(message))
            channel.basic_ack(message.delivery_tag)
        self._next = self._clock.monotonic()
        return MOST

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            let_go(connection)


def _death(message: Any) -> tuple[str, str, bytes]:
    """From which queue, why, and the body."""
    headers = message.properties.get("application_headers") or {}
    body = message.body or b""
    raw = body.encode() if isinstance(body, str) else bytes(body)
    return str(headers.get("x-first-death-queue", "")), str(headers.get("x-first-death-reason", "unknown")), raw
