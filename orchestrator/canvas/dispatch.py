"""The dispatcher: hands steps to a publisher thread and forgets them.

``publish`` returns at once, whatever the broker does. The thread sends what has gathered in batches, in order, so that
a marker stays behind the steps published before it by the same process. While the broker is away everything handed over
is reported lost at once: its rows are ready, and are dispatched again when the broker is back.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from orchestrator.canvas.epoch import BrokerProbe
from orchestrator.canvas.messages import Outgoing, marker_message, step_message
from orchestrator.canvas.publisher import Line, open_line
from orchestrator.clock import Clock
from orchestrator.domain.ids import QueueName, StepRef

log = logging.getLogger("orchestrator.canvas")

#: More than this waiting for the publisher is reported lost: the backlog's place is SQL.
MAX_WAITING: Final = 10_000
MAX_BATCH: Final = 500
#: Seconds between two tries to reach a broker that is away.
FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 2.0
#: Seconds that ``close`` gives to what was handed over.
CLOSE_SECONDS: Final = 2.0


class KombuDispatcher:
    """Implements ``ports.Dispatcher``.

    ``on_lost(refs)``: not published, or perhaps not; called on the publisher's thread, or on the caller's when too much
    is waiting. ``on_broker(up)``: the first connection, a loss, a recovery; on the publisher's thread.
    """

    def __init__(
        self,
        app: Any,
        on_lost: Callable[[Sequence[StepRef]], None],
        on_broker: Callable[[bool], None],
        *,
        clock: Clock | None = None,
        line: Line | None = None,
    ) -> None:
        self._on_lost = on_lost
        self._on_broker = on_broker
        self._clock = clock or Clock()
        self._line = line or open_line(app)
        self._probe = BrokerProbe(app, self._clock)
        self._waiting: deque[Outgoing] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._up: bool | None = None
        self._pause = FIRST_PAUSE
        self._thread = threading.Thread(target=self._run, name="orchestrator-publisher", daemon=True)
        self._thread.start()

    def publish(self, refs: Sequence[StepRef]) -> None:
        """See ``ports.Dispatcher``."""
        self._hand_over([step_message(ref) for ref in refs])

    def publish_marker(self, queue: QueueName, number: int) -> None:
        """See ``ports.Dispatcher``. A marker that cannot be sent is dropped: the next one says more."""
        self._hand_over([marker_message(queue, number)])

    def broker_epoch(self) -> str | None:
        """See ``ports.Dispatcher``. Waits for the network, for at most a few seconds."""
        return self._probe.epoch()

    def close(self) -> None:
        """See ``ports.Dispatcher``. What could not be sent in time is reported lost."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(CLOSE_SECONDS)
        self._lose(self._take(MAX_WAITING))
        self._probe.close()

    def _hand_over(self, messages: Sequence[Outgoing]) -> None:
        with self._changed:
            fits = not self._closing and len(self._waiting) + len(messages) <= MAX_WAITING
            if fits:
                self._waiting.extend(messages)
                self._changed.notify_all()
        if not fits:
            self._lose(messages)

    def _take(self, most: int) -> list[Outgoing]:
        with self._changed:
            return [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]

    # The publisher's thread

    def _run(self) -> None:
        while self._step():
            pass
        self._line.close()

    def _step(self) -> bool:
        """One batch, or one try to reconnect; False when there is nothing left to do."""
        if self._up is not True:
            if not self._connect():
                self._lose(self._take(MAX_WAITING))
                return self._rest()
            return True
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
        batch = self._take(MAX_BATCH)
        if not batch:
            return False
        try:
            self._line.send(batch)
        except Exception as error:  # noqa: BLE001 - whatever it is, the batch's fate is unknown, the connection suspect
            self._went_down(error)
            self._lose(batch)
        return True

    def _rest(self) -> bool:
        """Waits for the next try; what is handed over meanwhile is lost at once. False when closing."""
        until = self._clock.monotonic() + self._pause
        self._pause = min(self._pause * 2, LONGEST_PAUSE)
        while (left := until - self._clock.monotonic()) > 0 and not self._closing:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing, left)
            self._lose(self._take(MAX_WAITING))
        return not self._closing

    def _connect(self) -> bool:
        try:
            self._line.connect()
        except Exception as error:  # noqa: BLE001 - the drivers' errors have no common base
            self._went_down(error)
            return False
        self._up, self._pause = True, FIRST_PAUSE
        log.info("broker.up")
        self._tell(self._on_broker, True)
        return True

    def _went_down(self, error: Exception) -> None:
        self._line.close()
        if self._up is not False:
            log.warning("broker.down", extra={"error": f"{type(error).__name__}: {error}"[:300]})
            self._up = False
            self._tell(self._on_broker, False)

    def _lose(self, messages: Sequence[Outgoing]) -> None:
        refs = [message.ref for message in messages if message.ref is not None]
        if refs:
            self._tell(self._on_lost, refs)

    def _tell(self, hear: Callable[[Any], None], news: Any) -> None:
        try:
            hear(news)
        except Exception:
            log.exception("dispatch.listener_failed")
