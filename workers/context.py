"""What the author of a Python agent touches: the ``ctx`` it is called with, and the exceptions that say how it failed.

from workers.context import Context, RateLimited

def classify(ctx: Context, input: dict) -> dict: ...
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping
from typing import Any, ClassVar

import structlog

from orchestrator.domain.outcome import Failure, FailureClass, Usage
from orchestrator.ports import CallContext, Undoing


class AgentError(Exception):
    """Base of the exceptions below; raise one of those. The message is shown to people and stored.

    ``outcome_known=False`` says that the call may have taken effect all the same: then the next attempt gets the same
    ``ctx.idempotency_key`` and the same input. Say True only if nothing happened outside, or what happened is undone.
    """

    kind: ClassVar[FailureClass]
    known_unless_told: ClassVar[bool] = True
    #: The work was done and paid for, only its result is no good.
    answered: ClassVar[bool] = False

    def __init__(
        self, message: str = "", *, retry_after: float | None = None, outcome_known: bool | None = None
    ) -> None:
        super().__init__(message)
        self.message = message or type(self).__name__
        self.retry_after = retry_after
        self.outcome_known = self.known_unless_told if outcome_known is None else outcome_known


class Transient(AgentError):
    """It may work if tried again. The outcome counts as unknown unless you say otherwise."""

    kind = FailureClass.TRANSIENT
    known_unless_told = False


class Timeout(AgentError):
    """Something you called did not answer in time. The outcome counts as unknown unless you say otherwise."""

    kind = FailureClass.TIMEOUT
    known_unless_told = False


class RateLimited(AgentError):
    """Turned away before anything was done; ``retry_after`` is in seconds."""

    kind = FailureClass.RATE_LIMITED


class InvalidOutput(AgentError):
    """The work was done, but what came out of it cannot be used."""

    kind = FailureClass.INVALID_OUTPUT
    answered = True


class Refused(AgentError):
    """A rule forbids doing this; trying again would not help."""

    kind = FailureClass.REFUSED_BY_POLICY


class Permanent(AgentError):
    """It cannot work with this input, however often it is tried."""

    kind = FailureClass.PERMANENT


class Context:
    """One attempt, as its agent sees it. Safe to use from any thread; inert once the attempt is over."""

    def __init__(self, call: CallContext, config: Mapping[str, Any]) -> None:
        self._call = call
        self._config = copy.deepcopy(dict(config))
        self._over = threading.Event()
        self._usage = Usage()
        self._lock = threading.Lock()

    @property
    def idempotency_key(self) -> str:
        """Hand it to whatever you cause outside: it repeats exactly while an earlier attempt's outcome is unknown."""
        return self._call.idempotency_key

    @property
    def job_id(self) -> str:
        return self._call.job_id

    @property
    def step(self) -> str:
        """The step's path in its job, such as ``redraft/round-2/redliner``."""
        return self._call.path

    @property
    def attempt(self) -> int:
        """1 for the first try."""
        return self._call.attempt

    @property
    def timeout(self) -> float:
        """Seconds this attempt may take in all."""
        return self._call.timeout

    @property
    def previous(self) -> Failure | None:
        """Why the attempt before failed, for an agent that does better when told; None on the first."""
        return self._call.previous

    @property
    def undoing(self) -> Undoing | None:
        """For a compensator: which call it is to undo. Its ``outcome`` is ``unknown`` when nobody knows whether that
        call took effect: look it up by ``undoing.key``; undo it if it did, and answer if it did not."""
        return self._call.undoing

    @property
    def config(self) -> dict[str, Any]:
        """The agent's ``config`` of its definition; a copy of your own."""
        return self._config

    @property
    def over(self) -> bool:
        """True once nobody waits for this attempt any more (timed out, cancelled): a long loop should then return."""
        return self._over.is_set()

    @property
    def log(self) -> structlog.stdlib.BoundLogger:
        """A logger that knows job, step and attempt."""
        logger: structlog.stdlib.BoundLogger = structlog.get_logger("agent")
        return logger.bind(job_id=self.job_id, step=self.step, attempt=self.attempt)

    def progress(self) -> None:
        """Say "I am alive and moving"; cheap, call it as often as you like. Resets the progress timeout."""
        if not self.over:
            self._call.progress()

    def usage(
        self, *, input_tokens: int = 0, output_tokens: int = 0, cost_usd: float = 0.0, model: str | None = None
    ) -> None:
        """Add to what this attempt has spent (US dollars); counted whether the attempt succeeds or fails."""
        with self._lock:
            spent = self._usage
            self._usage = Usage(
                spent.input_tokens + input_tokens,
                spent.output_tokens + output_tokens,
                spent.cost_usd + cost_usd,
                model or spent.model,
            )
            self._call.spent(self._usage)

    @property
    def spent(self) -> Usage:
        """The sum of what was reported to ``usage``."""
        with self._lock:
            return self._usage

    def end(self) -> None:
        """The worker's: the attempt is over, whatever its code still does."""
        self._over.set()
