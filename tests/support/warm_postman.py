"""A postman who delivers every message one to five times, out of order and late."""

from __future__ import annotations

import heapq
import random
import threading
from collections.abc import Callable, Sequence
from typing import Any

from orchestrator import bootstrap
from orchestrator.clock import Clock
from orchestrator.domain.ids import QueueName, StepRef

COPIES = 5


class Postman:
    """A dispatcher before the real one. ``late``: seconds a message is under way at most."""

    def __init__(self, real: Any, seed: int, late: float) -> None:
        self._real = real
        self._random = random.Random(seed)
        self._late = late
        self._clock = Clock()
        self._bag: list[tuple[float, int, Callable[[], None]]] = []
        self._changed = threading.Condition()
        self._posted = 0
        self._closing = False
        threading.Thread(target=self._deliver, name="test-postman", daemon=True).start()

    def publish(self, refs: Sequence[StepRef]) -> None:
        for ref in refs:
            for _ in range(self._random.randint(1, COPIES)):
                self._post(lambda ref=ref: self._real.publish([ref]))  # type: ignore[misc]

    def publish_marker(self, queue: QueueName, number: int) -> None:
        for _ in range(self._random.randint(1, COPIES)):
            self._post(lambda: self._real.publish_marker(queue, number))

    def broker_epoch(self) -> str | None:
        epoch: str | None = self._real.broker_epoch()
        return epoch

    def close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._real.close()

    def _post(self, send: Callable[[], None]) -> None:
        with self._changed:
            self._posted += 1
            due = self._clock.monotonic() + self._random.uniform(0, self._late)
            heapq.heappush(self._bag, (due, self._posted, send))
            self._changed.notify()

    def _deliver(self) -> None:
        while True:
            with self._changed:
                if self._closing:
                    return
                wait = self._bag[0][0] - self._clock.monotonic() if self._bag else None
                if wait is None or wait > 0:
                    self._changed.wait(wait)
                    continue
                _, _, send = heapq.heappop(self._bag)
            send()


def take_over(seed: int, late: float) -> None:
    """Every dispatcher this process makes from now on has a postman before it."""
    real = vars(bootstrap)["KombuDispatcher"]
    vars(bootstrap)["KombuDispatcher"] = lambda *given, **named: Postman(real(*given, **named), seed, late)
