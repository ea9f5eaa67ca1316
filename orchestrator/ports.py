"""What the engine asks of the outside: the broker, the agents, and those who want to be told.

Each has an in-memory twin in ``testing.py``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from orchestrator.domain.ids import JobId, QueueName, StepPath, StepRef
from orchestrator.domain.outcome import Failure, Usage
from orchestrator.domain.workflow import Agent


class Dispatcher(Protocol):
    """Rings the doorbell. Losing, doubling or delaying what is published changes latency only."""

    def publish(self, refs: Sequence[StepRef]) -> None:
        """Hand ``refs`` to the publisher; returns at once, never raises. Call after the commit that marked them.

        What could not be published is reported to the ``on_lost`` the dispatcher was made with.
        """

    def publish_marker(self, queue: QueueName, number: int) -> None:
        """Send marker ``number`` down the same queue as its steps."""

    def broker_epoch(self) -> str | None:
        """The random key that says "this is the same broker data as before"; None where the broker has no such thing.

        Makes the key if it is missing. Raises ``Unavailable`` when the broker cannot be reached.
        """

    def close(self) -> None:
        """Publish what was handed over, within 2 s, then let go of the connection."""


class Slots(Protocol):
    """How much this process may run at once, shared by what comes by message and what goes on in place."""

    def take(self) -> int:
        """Takes half of the slots that are free now, rounded down; answers how many."""

    def give_back(self, count: int) -> None:
        """``count`` that were taken are free again."""


@dataclass(frozen=True, slots=True)
class Undoing:
    """What a compensator is to undo: the call that ``step`` made under ``key``.

    ``outcome`` is ``known`` (it took effect), or ``unknown``: nobody can say, look it up by its key.
    """

    step: StepPath
    key: str
    outcome: str


@dataclass(frozen=True, slots=True)
class Message:
    """One webhook message, signed and ready to be sent. ``url`` and ``headers`` hold what must not be logged."""

    url: str = field(repr=False)
    headers: dict[str, str] = field(repr=False)
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Reply:
    """What a receiver said. ``status`` None: nothing, for the reason ``why``. ``retry_after`` in seconds."""

    status: int | None
    why: str = ""
    retry_after: float | None = None


class Sender(Protocol):
    """Posts webhook messages; belongs to one event loop."""

    async def send(self, message: Message, seconds: float) -> Reply:
        """One try, over in ``seconds``, whatever the receiver does. Never raises for what went wrong outside."""

    async def close(self) -> None:
        """Lets go of its connections."""


@dataclass(frozen=True, slots=True)
class CallContext:
    """What an agent is told beside its input. ``idempotency_key`` repeats while an earlier outcome is unknown."""

    job_id: JobId
    path: StepPath
    attempt: int
    idempotency_key: str
    #: Seconds this attempt may take.
    timeout: float
    #: Says "I am alive and moving"; resets the progress timeout.
    progress: Callable[[], None] = field(default=lambda: None)
    #: Hears the sum of what the attempt has spent each time it grows: a call that is cut off is paid for too.
    spent: Callable[[Usage], None] = field(default=lambda _: None)
    #: The failure of the attempt before, if any, for agents that can do better when told.
    previous: Failure | None = None
    #: Set when this is a compensator's call.
    undoing: Undoing | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What an agent gave back. ``output`` is still unchecked."""

    output: Any
    usage: Usage = Usage()


class AgentFailed(Exception):
    """A call failed in a way that is already classified."""

    def __init__(self, failure: Failure, usage: Usage = Usage()) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.usage = usage


class AgentCaller(Protocol):
    """Calls one kind of agent. Raises ``AgentFailed``; anything else it raises is a ``bug``."""

    def __call__(self, agent: Agent, context: CallContext, input: Any) -> Awaitable[Answer]: ...
