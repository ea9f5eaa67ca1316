"""A runtime without an engine: records what reaches it, runs what the test tells it to."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from orchestrator.canvas.runtime import Verdict
from orchestrator.clock import Clock
from orchestrator.domain.ids import QueueName, StepRef
from orchestrator.ports import Slots

Behaviour = Callable[[StepRef, Callable[[], None]], Awaitable[Verdict | None]]


async def claim_only(_ref: StepRef, claimed: Callable[[], None]) -> Verdict | None:
    claimed()
    return None


class FakeRunner:
    def __init__(self, behaviour: Behaviour, changed: threading.Condition) -> None:
        self.behaviour = behaviour
        self.changed = changed
        self.ran: list[StepRef] = []
        self.running = 0
        self.most = 0
        self.draining = False

    async def run(self, ref: StepRef, claimed: Callable[[], None]) -> Verdict | None:
        with self.changed:
            if self.draining:
                return None
            self.running += 1
            self.most = max(self.most, self.running)
            self.changed.notify_all()
        try:
            return await self.behaviour(ref, claimed)
        finally:
            with self.changed:
                self.running -= 1
                self.ran.append(ref)
                self.changed.notify_all()

    def lend(self, slots: Slots) -> None:
        self.slots = slots

    async def drain(self) -> None:
        with self.changed:
            self.draining = True
            self.changed.notify_all()
        while self.running:  # noqa: ASYNC110 - the real one looks again too
            await asyncio.sleep(0.01)


class FakeDispatcher:
    def __init__(self) -> None:
        self.published: list[StepRef] = []

    def publish(self, refs: Sequence[StepRef]) -> None:
        self.published += refs

    def publish_marker(self, queue: QueueName, number: int) -> None: ...

    def broker_epoch(self) -> str | None:
        return None

    def close(self) -> None: ...


class FakeRuntime:
    """``wait(lambda: …)`` returns when the condition holds, and fails the test after ``seconds``."""

    def __init__(self, behaviour: Behaviour = claim_only) -> None:
        self.changed = threading.Condition()
        self.runner = FakeRunner(behaviour, self.changed)
        self.dispatcher = FakeDispatcher()
        self.markers: list[tuple[str, int]] = []
        self.quarantined: list[tuple[bytes, str, str]] = []
        self.started = 0
        self.stopped = 0
        self.clock = Clock()

    def on_marker(self, queue: str, number: int) -> None:
        with self.changed:
            self.markers.append((queue, number))
            self.changed.notify_all()

    def on_quarantine(self, raw: bytes, queue: str, reason: str) -> None:
        with self.changed:
            self.quarantined.append((raw, queue, reason))
            self.changed.notify_all()

    def start(self) -> None:
        self.started += 1

    def stop(self) -> None:
        self.stopped += 1

    def wait(self, condition: Callable[[], Any], seconds: float = 30.0) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, seconds), f"not within {seconds:g} s; {self}"

    def __str__(self) -> str:
        return (
            f"ran {len(self.runner.ran)}, running {self.runner.running}, markers {len(self.markers)}, "
            f"quarantined {len(self.quarantined)}: {[reason for _, _, reason in self.quarantined[:5]]}"
        )
