"""Calling one agent in a test: a context, and a call that ends with everything closed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from pydantic import TypeAdapter

from orchestrator.domain.ids import JobId, StepPath
from orchestrator.domain.outcome import Failure, Usage
from orchestrator.domain.workflow import Agent
from orchestrator.ports import AgentFailed, Answer, CallContext
from workers.agents import AgentCalls, Egress

T = TypeVar("T")
_AGENT: TypeAdapter[Agent] = TypeAdapter(Agent)


def agent(**definition: Any) -> Agent:
    return _AGENT.validate_python(definition)


def call_context(*, attempt: int = 1, key: str = "key-1", timeout: float = 10.0, **more: Any) -> CallContext:
    return CallContext(JobId("job-1"), StepPath("extract"), attempt, key, timeout, **more)


def with_calls(use: Callable[[AgentCalls], Awaitable[T]], **parameters: Any) -> T:
    """Run ``use`` in a loop of its own with an ``AgentCalls`` that is closed afterwards."""

    async def body() -> T:
        calls = AgentCalls(**{"egress": Egress(unrestricted=True), **parameters})
        try:
            return await use(calls)
        finally:
            await calls.close()

    return asyncio.run(body())


def answer_of(agent: Agent, input: Any = None, context: CallContext | None = None, **parameters: Any) -> Answer:
    return with_calls(lambda calls: calls.call(agent, context or call_context(), input), **parameters)


def failure_of_call(
    agent: Agent, input: Any = None, context: CallContext | None = None, **parameters: Any
) -> tuple[Failure, Usage]:
    """The failure (and what it cost) of a call that must fail."""
    try:
        answer = answer_of(agent, input, context, **parameters)
    except AgentFailed as error:
        return error.failure, error.usage
    raise AssertionError(f"the call should have failed, but answered {answer.output!r}")
