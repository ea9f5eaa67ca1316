"""``python`` agents: a callable ``agent(ctx, input) -> output`` of an allowed package, sync (in a thread) or async."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
import traceback
from typing import Any, Final

import httpx

from orchestrator.domain.outcome import FailureClass, Usage
from orchestrator.domain.workflow import PythonAgent
from orchestrator.ports import AgentFailed, Answer, CallContext
from workers.agents.failing import excerpt, failed
from workers.agents.targets import Target, Targets
from workers.agents.threads import AgentThreads
from workers.context import AgentError, Context

#: A synchronous agent whose calls take less of a processor than this, in seconds, is light: so long does it take for
#: another process to hear of a call.
LIGHT: Final = 0.002
#: How much of what is known of an agent the newest call makes up.
NEWEST: Final = 0.25


class PythonCalls:
    """Calls ``python`` agents. Import happens at the first call, in a thread, because it may take seconds."""

    def __init__(self, targets: Targets, threads: AgentThreads) -> None:
        self._targets = targets
        self._threads = threads
        #: Seconds of a processor that a call of each synchronous target takes, the newest calls counting most.
        self._seconds: dict[str, float] = {}

    def light(self, agent: PythonAgent) -> bool:
        """Whether its calls are known to leave the processor to others."""
        target = self._targets.known(agent.target)
        if target is None:
            return False
        return inspect.iscoroutinefunction(target) or self._seconds.get(agent.target, LIGHT) < LIGHT

    async def __call__(self, agent: PythonAgent, context: CallContext, input: Any) -> Answer:
        """Raises ``AgentFailed``, with the usage reported until then."""
        target = self._targets.known(agent.target) or await self._resolve(agent.target)
        ctx = Context(context, agent.config)
        try:
            if inspect.iscoroutinefunction(target):
                output = await self._on_loop(target, ctx, input)
            else:
                output = await self._in_thread(agent.target, target, ctx, input)
            return Answer(output, ctx.spent)
        finally:
            ctx.end()

    async def _resolve(self, name: str) -> Target:
        def attempt() -> Target | AgentFailed:
            try:
                return self._targets.resolve(name)
            except AgentFailed as failure:
                return failure
            except BaseException as error:  # noqa: BLE001  (it says what the agent did, and must not end the thread)
                return failure_of(error, Usage())

        target: Target = _value(await self._threads.run(attempt))
        return target

    async def _in_thread(self, name: str, target: Target, ctx: Context, input: Any) -> Any:
        def attempt() -> Any:
            began = time.thread_time()
            try:
                return target(ctx, input)
            except BaseException as error:  # noqa: BLE001  (as above)
                return failure_of(error, ctx.spent)
            finally:
                took = time.thread_time() - began
                self._seconds[name] = took * NEWEST + self._seconds.get(name, took) * (1 - NEWEST)

        output = _value(await self._threads.run(attempt))
        return await self._awaited(output, ctx) if inspect.isawaitable(output) else output

    async def _on_loop(self, target: Target, ctx: Context, input: Any) -> Any:
        try:
            pending = target(ctx, input)
        except TypeError as error:  # it takes other arguments
            raise failure_of(error, ctx.spent) from error
        return await self._awaited(pending, ctx)

    async def _awaited(self, pending: Any, ctx: Context) -> Any:
        task = asyncio.current_task()
        try:
            return await pending
        except KeyboardInterrupt as error:
            if threading.current_thread() is threading.main_thread():  # where Ctrl-C arrives
                raise
            raise failure_of(error, ctx.spent) from error
        except GeneratorExit as error:
            if task is None or _running_task() is not task:  # we are being closed
                raise
            raise failure_of(error, ctx.spent) from error
        except asyncio.CancelledError as error:
            if task is None or task.cancelling():
                raise
            # The agent's own: something inside it was cancelled and it let that through.
            raise failure_of(error, ctx.spent) from error
        except BaseException as error:  # SystemExit too: it would end the worker's loop
            raise failure_of(error, ctx.spent) from error


def _running_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # no loop is running
        return None


def _value(result: Any) -> Any:
    if isinstance(result, AgentFailed):
        raise result
    return result


def failure_of(error: BaseException, usage: Usage) -> AgentFailed:
    """How an exception out of an agent's code counts: as it says itself, else by its type, else as a bug."""
    if isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        return failure_of(error.exceptions[0], usage)
    name = type(error).__name__
    said = f"{name}: {_words(error)}"
    match error:
        case AgentError():
            return failed(
                error.kind,
                error.message,
                outcome_known=error.outcome_known,
                answered=error.answered,
                retry_after=error.retry_after,
                usage=usage,
                exception=name,
            )
        case ConnectionRefusedError() | httpx.ConnectError() | httpx.ConnectTimeout() | httpx.PoolTimeout():
            return failed(FailureClass.TRANSIENT, said, usage=usage, exception=name)
        case TimeoutError() | httpx.TimeoutException():
            return failed(FailureClass.TIMEOUT, said, outcome_known=False, usage=usage, exception=name)
        case ConnectionError() | httpx.TransportError():
            return failed(FailureClass.TRANSIENT, said, outcome_known=False, usage=usage, exception=name)
        case _:
            return failed(
                FailureClass.BUG, said, answered=True, usage=usage, exception=name, traceback=_last_lines(error)
            )


def _words(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001  (a __str__ of the agent's own)
        return "(its text cannot be shown)"


def _last_lines(error: BaseException) -> str:
    """The end of the traceback, where the error is, within the excerpt's size."""
    lines = "".join(traceback.format_exception(error, limit=-8))
    return excerpt(lines if len(lines) <= 2000 else f"…{lines[-2000:]}")
