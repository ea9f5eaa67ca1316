"""The in-process broker behind ``memory://``: lists and one condition variable; nothing polls.

kombu's own memory transport looks once a second and shares one set of queues among all that the process does. Here each
app has a ``Broker`` of its own, and a consumer sleeps until there is a message it may take, or until it is woken.
It keeps nothing beyond the process; that is allowed, because a broker may be lost at any time.
"""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from queue import Empty
from typing import Any

from kombu.transport import virtual
from kombu.utils.json import dumps

from orchestrator.clock import Clock


class Broker:
    """Queues of raw envelopes, first in first out, for all threads of one process."""

    def __init__(self, clock: Clock) -> None:
        #: Another broker, another epoch: what the one before held is gone.
        self.epoch = clock.new_id()
        self._clock = clock
        self._changed = threading.Condition()
        self._queues: defaultdict[str, deque[bytes]] = defaultdict(deque)

    def put(self, queue: str, raw: bytes) -> None:
        with self._changed:
            self._queues[queue].append(raw)
            self._changed.notify_all()

    def take(self, queue: str) -> bytes | None:
        with self._changed:
            waiting = self._queues[queue]
            return waiting.popleft() if waiting else None

    def wait(
        self, wanted: Callable[[], Sequence[str]], is_woken: Callable[[], bool], timeout: float | None
    ) -> tuple[str, bytes] | None:
        """The next entry of one of the ``wanted`` queues, asked again at each change; None when woken or timed out."""
        deadline = None if timeout is None else self._clock.monotonic() + timeout
        with self._changed:
            while not is_woken():
                for queue in wanted():
                    if self._queues[queue]:
                        return queue, self._queues[queue].popleft()
                left = None if deadline is None else deadline - self._clock.monotonic()
                if (left is not None and left <= 0) or not self._changed.wait(left):
                    return None
            return None

    def wake(self, mark: Callable[[], None]) -> None:
        """Runs ``mark`` and lets every waiter look again."""
        with self._changed:
            mark()
            self._changed.notify_all()

    def size(self, queue: str) -> int:
        with self._changed:
            return len(self._queues[queue])

    def clear(self, queue: str | None = None) -> int:
        """Forgets what ``queue``, or every queue, holds; how many entries that were."""
        with self._changed:
            names = list(self._queues) if queue is None else [queue]
            return sum(len(self._queues.pop(name, ())) for name in names)


class Channel(virtual.Channel):
    """A channel whose options hold ``broker``, ``guard`` and ``pulse``."""

    from_transport_options = (*virtual.Channel.from_transport_options, "broker", "guard", "pulse")
    broker: Broker
    guard: Any
    pulse: Any

    def _put(self, queue: str, message: Any, **_: Any) -> None:
        self.broker.put(queue, dumps(message).encode())

    def _get(self, queue: str, **_: Any) -> Any:
        while (raw := self.broker.take(queue)) is not None:
            envelope = self.guard.open(raw, queue)
            if envelope is not None:
                return envelope
        raise Empty

    def _size(self, queue: str) -> int:
        return self.broker.size(queue)

    def _purge(self, queue: str) -> int:
        return self.broker.clear(queue)

    def wanted(self) -> list[str]:
        return list(self._active_queues) if self._consumers and self.qos.can_consume() else []


class Transport(virtual.Transport):
    """``drain_events`` sleeps on the broker's condition; ``wake`` ends that sleep."""

    Channel = Channel
    driver_type = "memory"
    driver_name = "orchestrator"

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        self._options = client.transport_options
        self._woken = False
        self._turn = 0

    def driver_version(self) -> str:
        return "1"

    def wake(self) -> None:
        """Makes the running or the next ``drain_events`` return at once."""
        self._options["broker"].wake(self._mark)

    def _mark(self) -> None:
        self._woken = True

    def _wanted(self) -> list[str]:
        queues = [queue for channel in list(self.channels) for queue in channel.wanted()]
        # Each queue comes first in turn, so that a busy one cannot starve its neighbours.
        first = self._turn % len(queues) if queues else 0
        return queues[first:] + queues[:first]

    def drain_events(self, _connection: Any, timeout: float | None = None, **_: Any) -> None:
        """Delivers one message. Raises ``TimeoutError`` when woken or after ``timeout`` seconds without one."""
        self._options["pulse"].beat()
        found = self._options["broker"].wait(self._wanted, lambda: self._woken, timeout)
        if found is None:
            self._woken = False
            raise TimeoutError
        self._turn += 1
        queue, raw = found
        envelope = self._options["guard"].open(raw, queue)
        if envelope is not None:
            self._deliver(envelope, queue)

    def close_connection(self, connection: Any) -> None:
        super().close_connection(connection)
        self.wake()
