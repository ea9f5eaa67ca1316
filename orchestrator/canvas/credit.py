"""How many messages a worker may hold: never more than it can run (docs/decisions/0008-slots-and-acks.md).

A message is acked when its step's claim is committed, so what is unacked does not tell how much runs. On Redis and
in-process a full worker just does not ask (``OpenGate``). RabbitMQ pushes: it delivers until ``prefetch`` messages are
unacked. ``AmqpGate`` therefore keeps back the last acks while fewer slots are free than RabbitMQ could push messages:

    deliverable = prefetch - unacked <= free slots,  so it acks only while unacked > prefetch - free

An ack is kept until a slot is free, or for a minute at most: then consuming begins anew with a prefetch that fits.

All of it runs on the consumer's thread, or under the pool's lock when there is no event loop.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

#: Most unacked messages RabbitMQ may push. More would not be quicker: acks are claims away, and claims take 1-5 ms.
MAX_PREFETCH: Final = 16
#: Seconds between looks at acks kept back. RabbitMQ closes the channel of one kept for 30 minutes.
LOOK_SECONDS: Final = 30.0


class Gate(Protocol):
    def delivered(self) -> int:
        """A message was given to the pool; a receipt for it."""

    def claimed(self, receipt: int, accept: Callable[[], None]) -> None:
        """Its claim is decided: ``accept`` acks it, now or when the gate allows."""

    def freed(self) -> None:
        """A slot became free."""

    def promised(self) -> int:
        """How many messages the broker may still push: so many free slots are theirs. From any thread."""

    def wants(self) -> bool:
        """Whether something is kept back until a slot is free. From any thread."""

    def close(self) -> None:
        """The worker consumes no more: every ack kept back is sent, and those to come are sent at once."""


class OpenGate:
    """For transports that fetch: acks at once, which costs nothing there."""

    def delivered(self) -> int:
        return 0

    def claimed(self, _receipt: int, accept: Callable[[], None]) -> None:
        accept()

    def freed(self) -> None:
        """The transport asks for the next message by itself."""

    def promised(self) -> int:
        return 0

    def wants(self) -> bool:
        return False

    def close(self) -> None:
        """Nothing was kept back."""


class AmqpGate:
    """``free``: how many slots are free now. ``consumer``: a kombu consumer, whose prefetch this sets."""

    def __init__(self, consumer: Any, free: Callable[[], int], slots: int) -> None:
        self._consumer = consumer
        self._free = free
        self._most = max(1, min(slots // 2, MAX_PREFETCH))
        self._prefetch = self._most
        #: Counts subscriptions; a message's receipt. Unacked messages of earlier ones do not bound RabbitMQ.
        self._subscription = 1
        self._unacked = 0
        self._kept: deque[Callable[[], None]] = deque()
        #: The oldest ack kept back at the last look.
        self._seen: Callable[[], None] | None = None
        self._paused = False
        self._closed = False
        consumer.qos(prefetch_count=self._prefetch)

    def delivered(self) -> int:
        self._unacked += 1
        return self._subscription

    def claimed(self, receipt: int, accept: Callable[[], None]) -> None:
        if receipt != self._subscription:
            accept()
            return
        self._kept.append(accept)
        self._release()

    def freed(self) -> None:
        if self._paused and not self._closed and self._free() > 0:
            self._subscribe(min(self._free(), self._most))
        self._release()

    def promised(self) -> int:
        return 0 if self._paused or self._closed else max(0, self._prefetch - self._unacked)

    def wants(self) -> bool:
        return bool(self._kept) or self._paused

    def close(self) -> None:
        self._closed = True
        self._release()

    def look(self) -> None:
        """Every ``LOOK_SECONDS``: fits the prefetch to the free slots, so that no ack is kept much longer than that."""
        oldest = self._kept[0] if self._kept else None
        is_stale = oldest is not None and oldest is self._seen
        self._seen = oldest
        if not self._paused and (is_stale or self._prefetch < min(self._most, self._free())):
            self._consumer.cancel()
            self._paused = True
            self.freed()

    def _subscribe(self, prefetch: int) -> None:
        # RabbitMQ fixes a consumer's prefetch when it begins to consume.
        self._release()
        self._prefetch = prefetch
        self._paused = False
        self._subscription += 1
        self._unacked = 0
        self._consumer.qos(prefetch_count=prefetch)
        self._consumer.consume()

    def _release(self) -> None:
        while self._kept and (self._paused or self._closed or self._unacked > self._prefetch - self._free()):
            self._unacked -= 1
            self._kept.popleft()()
