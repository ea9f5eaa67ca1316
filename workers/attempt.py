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
from orchestrator.domain.breaker import NOT_CALLED
from orchestrator.domain.fallback import after_giving_up
from orchestrator.domain.json_values import dumps, loads
from orchestrator.domain.outcome import Failure, FailureClass, Usage
from orchestrator.domain.plan import idempotency_key
from orchestrator.domain.result import Doubted, GaveUp, NotHappened, Released, Result, Retrying, Succeeded, Unreconciled
from orchestrator.domain.retry import Again, GiveUp, InDoubt, RetryAfter, after_not_happened
from orchestrator.domain.retry import decide as decide_retry
from orchestrator.domain.schemas import Schema, compile_schema
from orchestrator.domain.workflow import RECONCILED, Agent, Effect, Retry, Timeout
from orchestrator.engine.answers import Rejected, passed
from orchestrator.engine.context import Engine, PayloadSizes
from orchestrator.engine.gather import Claimed
from orchestrator.engine.release import after
from orchestrator.engine.scope import input_of, scope
from orchestrator.ports import AgentFailed, Answer, CallContext, Undoing
from workers.agents.failing import EXCERPT, excerpt
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
class Bill:
    """What a call has reported as spent so far: all that is known of a call that is cut off."""

    usage: Usage = Usage()

    def pay(self, total: Usage) -> None:
        """May be called from any thread."""
        self.usage = total


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
        return input_of(claimed)

    def lost_slots(self) -> int:
        return self.calls.lost_slots

    async def call(self, claimed: Claimed, agent: Agent, value: Any, bill: Bill, *, alone: bool) -> Done:
        """Never raises, but for cancellation and a bug in here. ``bill`` is kept up to date meanwhile."""
        if agent.input_schema is not None and (problems := self._problems(agent.input_schema, value)):
            text = f"the input misses the agent's input_schema: {'; '.join(problems)}"
            return Done(Failure(FailureClass.PERMANENT, text))
        answer = await self._answer(claimed, agent, value, claimed.row.attempt, bill, alone=alone)
        return answer if isinstance(answer, Done) else self._checked(claimed, agent, value, answer)

    async def reconcile(self, claimed: Claimed, value: Any, bill: Bill, *, alone: bool) -> Done | bool | None:
        """Asks whether the call in doubt took effect: its output or a failure to ask, False if it did not, else None.

        It is asked with the key and the input of that call, and its output is checked as the agent's.
        """
        assert claimed.row.doubt is not None
        agent = claimed.plan.agents[claimed.row.doubt.agent]
        asked = agent.reconciler()
        if asked is None:
            return None
        answer = await self._answer(claimed, asked, value, claimed.row.tries + 1, bill, alone=alone)
        if isinstance(answer, Done):
            return answer
        if problems := self._problems(RECONCILED, answer.output):
            text = f"the reconciler's answer is none: {'; '.join(problems)}"
            return Done(Failure(FailureClass.INVALID_OUTPUT, text, answered=True), answer.usage)
        happened: bool | None = answer.output["happened"]
        if not happened:
            return happened
        return self._checked(claimed, agent, value, Answer(answer.output.get("output"), answer.usage))

    async def _answer(
        self, claimed: Claimed, agent: Agent, value: Any, number: int, bill: Bill, *, alone: bool
    ) -> Answer | Done:
        """What the agent says, unchecked, within the step's times; or how the call failed."""
        times = times_of(claimed, agent)
        spent = (claimed.row.started_at or 0.0) - (claimed.row.first_started_at or 0.0)
        limit = min(times.attempt, times.total - spent)
        if limit <= 0:
            text = f"all {times.total:g} s for this step are used up"
            return Done(Failure(FailureClass.TIMEOUT, text, detail=NOT_CALLED))
        progress = _Progress(times.progress)
        context = CallContext(
            claimed.row.job_id,
            claimed.row.path,
            number,
            idempotency_key(claimed.row, claimed.facts.version),
            limit,
            progress.tick,
            bill.pay,
            claimed.row.failure,
            _undoing(claimed),
        )
        try:
            async with asyncio.timeout(limit):
                return await progress.watch(self._called(agent, context, value, alone=alone))
        except AgentFailed as error:
            return Done(error.failure, error.usage)
        except TimeoutError:
            return Done(Failure(FailureClass.TIMEOUT, f"no answer within {limit:g} s", outcome_known=False), bill.usage)
        except NoProgress as error:
            return Done(Failure(FailureClass.TIMEOUT, str(error), outcome_known=False), bill.usage)
        except Exception as error:  # noqa: BLE001 - a bug ends in a row
            text = f"{type(error).__name__}: {error}"
            return Done(Failure(FailureClass.BUG, text[:2000], outcome_known=False), bill.usage)

    async def _called(self, agent: Agent, context: CallContext, value: Any, *, alone: bool) -> Answer:
        crashpoint("call.during")
        return await (self.alone if alone else self.calls).call(agent, context, value)

    def _checked(self, claimed: Claimed, agent: Agent, value: Any, answer: Answer) -> Done:
        try:
            cap = self.engine.caps.output_bytes
            text = passed(claimed, agent, value, answer.output, cap=cap, problems=self._problems)
        except Rejected as error:
            detail = {} if error.text is None else {"answer": excerpt(error.text[:EXCERPT])}
            return Done(Failure(FailureClass.INVALID_OUTPUT, str(error), answered=True, detail=detail), answer.usage)
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
    policy = policy_of(claimed, agent)
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
        case InDoubt(final, was):
            return Doubted(final, was)
        case GiveUp(final):
            return GaveUp(final)


def after_reconcile(claimed: Claimed, said: Done | bool | None, sizes: PayloadSizes, draw: float) -> Result:
    """What follows from what the reconciler said of the call in doubt."""
    row = claimed.row
    assert row.doubt is not None
    policy = policy_of(claimed, claimed.plan.agents[row.doubt.agent])
    if said is None or said is True:
        return Unreconciled()
    if isinstance(said, Done):
        if isinstance(said.outcome, str):
            return Succeeded(sizes.prepare(said.outcome), {"reconciled": True})
        again = decide_retry(said.outcome, policy, row.tries + 1, draw)  # to ask is to read
        if isinstance(again, RetryAfter):
            return Retrying(said.outcome, again.delay, new_key=False, charged=again.charged)
        return Unreconciled(said.outcome)
    match after_not_happened(row.doubt.failure, policy, row.doubt.tries, draw, alone=row.losses_alone):
        case RetryAfter(delay):
            return NotHappened(Retrying(row.doubt.failure, delay, new_key=True, charged=False))
        case Again():
            return NotHappened(Released(lost=False))
        case GiveUp(final):
            return NotHappened(after_giving_up(claimed.node, row, final))


def policy_of(claimed: Claimed, agent: Agent) -> Retry:
    return claimed.node.retry if claimed.node.step is not None else (agent.retry or Retry())


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
