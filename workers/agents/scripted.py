"""``scripted`` agents: a deterministic stand-in for tests and demos. What it does depends on the attempt alone."""

from __future__ import annotations

import asyncio
import os
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from orchestrator.domain.expressions import ExpressionError, ExpressionFailed, Template
from orchestrator.domain.outcome import FailureClass
from orchestrator.domain.workflow import Duration, ScriptedAgent
from orchestrator.ports import AgentFailed, Answer, CallContext
from workers.agents.failing import failed

#: What a SIGKILL looks like from outside.
KILLED = 137
_UNKNOWN = frozenset({FailureClass.TIMEOUT, FailureClass.WORKER_LOST, FailureClass.IN_DOUBT})
_ANSWERED = frozenset({FailureClass.INVALID_OUTPUT, FailureClass.BUG})


class Fail(BaseModel):
    """``outcome_known`` and ``answered`` default to what is usual for the class."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    class_: FailureClass = Field(alias="class")
    message: str = "scripted failure"
    retry_after: float | None = Field(default=None, ge=0)
    outcome_known: bool | None = None
    answered: bool | None = None

    def raised(self) -> AgentFailed:
        known = self.class_ not in _UNKNOWN if self.outcome_known is None else self.outcome_known
        answered = self.class_ in _ANSWERED if self.answered is None else self.answered
        return failed(self.class_, self.message, outcome_known=known, answered=answered, retry_after=self.retry_after)


class Turn(BaseModel):
    """One entry of a script: an optional ``delay``, then exactly one of the others."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    delay: Duration = 0.0
    output: Any = None
    fail: Fail | None = None
    exit: Literal[True] | None = None


class ScriptedCalls:
    """Plays scripts. ``allow_exit`` lets ``{exit: true}`` kill this process, for tests of poison steps only."""

    def __init__(self, *, allow_exit: bool = False) -> None:
        self._allow_exit = allow_exit

    async def __call__(self, agent: ScriptedAgent, context: CallContext, input: Any) -> Answer:
        """Attempt n plays entry n, the last one repeats; without a script the input is the answer."""
        if not agent.script:
            return Answer(input)
        index = min(context.attempt, len(agent.script)) - 1
        turn = _turn(agent.script[index], index)
        if turn.exit and not self._allow_exit:
            raise failed(FailureClass.REFUSED_BY_POLICY, f"script[{index}]: exit is for tests, and is off here.")
        if turn.delay:
            await asyncio.sleep(turn.delay)
        if turn.exit:
            os._exit(KILLED)
        if turn.fail:
            raise turn.fail.raised()
        return Answer(_rendered(turn.output, input, index))


def _turn(entry: dict[str, Any], index: int) -> Turn:
    try:
        turn = Turn.model_validate(entry)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(["", *map(str, first["loc"])])
        raise failed(FailureClass.PERMANENT, f"script[{index}]{place}: {first['msg']}") from error
    if len(turn.model_fields_set - {"delay"}) != 1:
        raise failed(FailureClass.PERMANENT, f"script[{index}] must have exactly one of output, fail and exit.")
    return turn


def _rendered(output: Any, input: Any, index: int) -> Any:
    try:
        return Template.compile(output).evaluate({"input": input})
    except (ExpressionError, ExpressionFailed) as error:
        raise failed(FailureClass.PERMANENT, f"script[{index}].output: {error}") from error
