"""One attempt: the agent's input, the call within its times, and the check of what came back.

Nothing that an agent answers is passed on unchecked: it is JSON (RFC 8259, no NUL, no lone surrogate, within the size
cap), it fits the schema of the agent and of the step, and every ``checks`` expression holds; else ``invalid_output``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from orchestrator.crashpoints import crashpoint
from orchestrator.domain.expressions import ExpressionFailed
from orchestrator.domain.ids import idempotency_key
from orchestrator.domain.json_values import NotJson, dumps, loads
from orchestrator.domain.outcome import Failure, FailureClass, Usage
from orchestrator.domain.result import GaveUp, Result, Retrying
from orchestrator.domain.retry import GiveUp, RetryAfter
from orchestrator.domain.retry import decide as decide_retry
from orchestrator.domain.schemas import Schema, compile_schema
from orchestrator.domain.workflow import Agent, Effect, Retry, Timeout
from orchestrator.engine.context import Engine
from orchestrator.engine.gather import Claimed
from orchestrator.engine.release import after
from orchestrator.ports import AgentFailed, Answer, CallContext, Undoing
from workers.composites import scope
from workers.watchdog import Watchdog


class Calls(Protocol):
    """What ``workers/agents`` gives."""

    async def call(self, agent: Agent, context: CallContext, input: Any) -> Answer: ...

    @property
    def lost_slots(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Done:
    """The output's JSON text, or why there is none."""

    outcome: str | Failure
    usage: Usage = Usage()


@dataclass(slots=True)
class Attempt:
    engine: Engine
    calls: Calls
    #: Runs a suspect alone, in a process of its own.
    alone: Calls
    watchdog: Watchdog
    _schemas: dict[str, Schema] = field(default_factory=dict)

    def agent(self, claimed: Claimed) -> Agent:
        assert claimed.row.agent is not None
        return claimed.plan.agents[claimed.row.agent]

    def input(self, claimed: Claimed) -> Any:
        """The agent's own copy of its input. Raises ``ExpressionFailed``, ``NotJson``."""
        template = claimed.node.input
        return None if template is None else loads(dumps(template.evaluate(scope(claimed, template))))

    def lost_slots(self) -> int:
        return self.calls.lost_slots

    async def call(self, claimed: Claimed, agent: Agent, value: Any, *, alone: bool) -> Done:
        """Never raises, but for cancellation and a bug in here."""
        if agent.input_schema is not None and (problems := self._problems(agent.input_schema, value)):
            text = f"the input misses the agent's input_schema: {'; '.join(problems)}"
            return Done(Failure(FailureClass.PERMANENT, text))
        times = times_of(claimed, agent)
        spent = (claimed.row.started_at or 0.0) - (claimed.row.first_started_at or 0.0)
        limit = min(times.attempt, times.total - spent)
        if limit <= 0:
            return Done(Failure(FailureClass.TIMEOUT, f"all {times.total:g} s for this step are used up"))
        progress = _Progress(times.progress)
        paid = Usage()

        def pay(total: Usage) -> None:
            nonlocal paid
            paid = total

        context = CallContext(
            claimed.row.job_id,
            claimed.row.path,
            claimed.row.attempt,
            idempotency_key(claimed.row.job_id, claimed.row.path, claimed.facts.version, claimed.row.generation),
            limit,
            progress.tick,
            pay,
            claimed.row.failure,
            _undoing(claimed),
        )
        try:
            async with asyncio.timeout(limit):
                answer = await progress.watch(self._called(agent, context, value, alone=alone))
        except AgentFailed as error:
            return Done(error.failure, error.usage)
        except TimeoutError:
            return Done(Failure(FailureClass.TIMEOUT, f"no answer within {limit:g} s", outcome_known=False), paid)
        except NoProgress as error:
            return Done(Failure(FailureClass.TIMEOUT, str(error), outcome_known=False), paid)
        except Exception as error:  # noqa: BLE001 - a bug ends in a row
            text = f"{type(error).__name__}: {error}"
            return Done(Failure(FailureClass.BUG, text[:2000], outcome_known=False))
        return self._checked(claimed, agent, value, answer)

    async def _called(self, agent: Agent, context: CallContext, value: Any, *, alone: bool) -> Answer:
        crashpoint("call.during")
        return await (self.alone if alone else self.calls).call(agent, context, value)

    def _checked(self, claimed: Claimed, agent: Agent, value: Any, answer: Answer) -> Done:
        def invalid(message: str) -> Done:
            return Done(Failure(FailureClass.INVALID_OUTPUT, message, answered=True), answer.usage)

        try:
            text = dumps(answer.output)
        except NotJson as error:
            return invalid(f"the output is not JSON: {error}")
        cap = self.engine.caps.output_bytes
        if len(text) > cap // 4 and len(text.encode()) > cap:
            return invalid(f"the output is larger than {cap} bytes")
        schemas = [schema for schema in (agent.output_schema, claimed.node.output_schema) if schema is not None]
        checks = claimed.node.checks
        if not schemas and not checks:
            return Done(text, answer.usage)
        output = loads(text)
        for schema in schemas:
            if problems := self._problems(schema, output):
                return invalid(f"the output misses its schema: {'; '.join(problems)}")
        for check in checks:
            names: Mapping[str, Any] = {**scope(claimed, check), "output": output, "input": value}
            try:
                if not check.evaluate(names):
                    return invalid(f"the check {check.source!r} does not hold")
            except ExpressionFailed as error:
                return invalid(f"the check {check.source!r} cannot be evaluated: {error}")
        return Done(text, answer.usage)

    def _problems(self, schema: Mapping[str, Any], value: Any) -> list[str]:
        key = dumps(dict(schema))
        compiled = self._schemas.get(key)
        if compiled is None:
            compiled = self._schemas[key] = compile_schema(dict(schema), "schema")
        return compiled.problems(value)

    def owes(self, claimed: Claimed, text: str) -> str | None:
        """The JSON text of what the compensator will be called with. Raises ``ExpressionFailed``, ``NotJson``."""
        template = claimed.node.owes
        if template is None:
            return None
        return dumps(template.evaluate({**scope(claimed, template), "output": loads(text)}))

    def lost_alone(self, claimed: Claimed) -> Result:
        """The step took its own process down, and nobody else's."""
        return after(claimed.row, claimed.plan, alone=True)


def _undoing(claimed: Claimed) -> Undoing | None:
    if claimed.row.undoes is None or claimed.vars is None:
        return None
    return Undoing(**claimed.texts.value(claimed.vars)["undoing"])


def times_of(claimed: Claimed, agent: Agent) -> Timeout:
    return claimed.node.timeout if claimed.node.step is not None else (agent.timeout or Timeout())


def decide(claimed: Claimed, agent: Agent, effect: Effect, failure: Failure, draw: float) -> Result:
    """What follows from a failed attempt, by the step's policy; the decision itself is ``domain/retry``'s."""
    policy = claimed.node.retry if claimed.node.step is not None else (agent.retry or Retry())
    spent = (claimed.row.started_at or 0.0) - (claimed.row.first_started_at or 0.0)
    decision = decide_retry(
        failure,
        policy,
        claimed.row.tries + 1,
        draw,
        effect=effect,
        honours_key=agent.honours_key,
        total_left=times_of(claimed, agent).total - spent,
    )
    match decision:
        case RetryAfter(delay, new_key, charged):
            return Retrying(failure, delay, new_key, charged)
        case GiveUp(final):
            return GaveUp(final)


class NoProgress(Exception):
    """An agent was silent for longer than its progress timeout."""


class _Progress:
    """Ends a call that shows no sign of life for ``seconds``."""

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._sign = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def tick(self) -> None:
        """May be called from any thread."""
        if self._seconds is not None:
            self._loop.call_soon_threadsafe(self._sign.set)

    async def watch(self, call: Coroutine[Any, Any, Answer]) -> Answer:
        if self._seconds is None:
            return await call
        task = asyncio.ensure_future(call)
        try:
            while True:
                sign = asyncio.ensure_future(self._sign.wait())
                done, _ = await asyncio.wait({task, sign}, timeout=self._seconds, return_when=asyncio.FIRST_COMPLETED)
                sign.cancel()
                if task in done:
                    return task.result()
                if not done:
                    raise NoProgress(f"no sign of progress for {self._seconds:g} s")
                self._sign.clear()
        finally:
            task.cancel()
