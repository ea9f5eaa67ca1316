"""In-memory twins of the ports, for our tests and for users' own. The store's twin is SQLite in a file."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from orchestrator.domain.ids import QueueName, StepRef
from orchestrator.ports import Message, Reply


@dataclass(slots=True)
class ListDispatcher:
    """A broker that is a list. ``publish`` appends; nothing is lost unless a test takes it out."""

    refs: list[StepRef] = field(default_factory=list)
    markers: list[tuple[QueueName, int]] = field(default_factory=list)
    epoch: str | None = "epoch-1"

    def publish(self, refs: Sequence[StepRef]) -> None:
        self.refs.extend(refs)

    def publish_marker(self, queue: QueueName, number: int) -> None:
        self.markers.append((queue, number))

    def broker_epoch(self) -> str | None:
        return self.epoch

    def close(self) -> None:
        """Nothing to let go of."""


@dataclass(slots=True)
class CountedSlots:
    """So many slots."""

    free: int = 0

    def take(self) -> int:
        half = self.free // 2
        self.free -= half
        return half

    def give_back(self, count: int) -> None:
        self.free += count


@dataclass(slots=True)
class ListSender:
    """A receiver of webhooks that is a list; ``answers`` says what it answers to whom, 204 if nothing is said."""

    sent: list[Message] = field(default_factory=list)
    answers: Callable[[Message], Reply] = lambda _: Reply(204)

    async def send(self, message: Message, seconds: float) -> Reply:  # noqa: ARG002 - the port's words
        self.sent.append(message)
        return self.answers(message)

    async def close(self) -> None:
        """Nothing to let go of."""


@dataclass(slots=True)
class SilentMeters:
    """Counts nothing but what a test may ask for."""

    fences: int = 0

    def step_finished(self, agent: str, seconds: float) -> None: ...

    def step_waited(self, queue: str, seconds: float) -> None: ...

    def handoff(self, seconds: float) -> None: ...

    def job_finished(self, workflow: str, seconds: float) -> None: ...

    def batch_written(self, size: int) -> None: ...

    def fenced(self) -> None:
        self.fences += 1


async def until(condition: Callable[[], bool], *, seconds: float = 10.0) -> None:
    """Waits for ``condition``; raises ``TimeoutError`` after ``seconds``."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - any condition, so nothing to be told by
            await asyncio.sleep(0.01)
