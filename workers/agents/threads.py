"""Threads for synchronous agents: bounded, reused, and abandoned when they overrun, because Python cannot kill one.

Not ``ThreadPoolExecutor``: its threads are joined when the interpreter exits, so a single hung agent would keep a
drained worker from ever ending. These are daemons.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any


class _State(Enum):
    WAITING = auto()
    RUNNING = auto()
    OVER = auto()


@dataclass(slots=True)
class _Call:
    function: Callable[[], Any]
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[Any]
    context: contextvars.Context
    state: _State = _State.WAITING
    abandoned: bool = False


class AgentThreads:
    """At most ``size`` threads at work, and as many again in place of those that hang.

    A call whose awaiter is cancelled while it runs is abandoned: its thread counts in ``lost`` until it returns, its
    result is dropped, and another thread may be started in its stead, until ``size`` are lost. Then calls wait.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._changed = threading.Condition()
        self._waiting: deque[_Call] = deque()
        self._threads = 0
        self._idle = 0
        self._lost = 0
        self._closed = False

    @property
    def lost(self) -> int:
        """Threads that still run an abandoned call."""
        return self._lost

    async def run(self, function: Callable[[], Any]) -> Any:
        """What ``function`` returns, called in a thread with the caller's context variables.

        ``function`` turns its exceptions into values (a future cannot carry every exception); one that it lets
        through becomes a ``RuntimeError``.
        """
        loop = asyncio.get_running_loop()
        call = _Call(function, loop, loop.create_future(), contextvars.copy_context())
        with self._changed:
            if self._closed:
                raise RuntimeError("the agent threads are closed")
            self._waiting.append(call)
            if self._idle >= len(self._waiting):
                self._changed.notify()
            else:
                self._start_thread()
        try:
            return await call.done
        finally:
            self._leave(call)

    def close(self) -> None:
        """Take no more calls and let idle threads end; does not wait for those at work."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _surplus(self) -> bool:
        return self._threads > self._size + min(self._lost, self._size)

    def _start_thread(self) -> None:
        if self._threads < self._size + min(self._lost, self._size):
            self._threads += 1
            threading.Thread(target=self._work, name="agent", daemon=True).start()

    def _leave(self, call: _Call) -> None:
        """The awaiter is going: with its result, or because it was cancelled."""
        with self._changed:
            match call.state:
                case _State.WAITING:
                    self._waiting.remove(call)
                case _State.RUNNING:
                    call.abandoned = True
                    self._lost += 1
                    if self._waiting:
                        self._start_thread()
                case _State.OVER:
                    pass
            call.state = _State.OVER

    def _work(self) -> None:
        while (call := self._next()) is not None:
            try:
                self._finish(call, call.context.run(call.function))
            except BaseException as error:  # noqa: BLE001  (whatever it is, the thread lives on and the awaiter hears of it)
                self._finish(call, RuntimeError(f"a call in an agent thread raised {error!r}"), raised=True)
            del call  # an idle thread must not keep an agent's input alive

    def _next(self) -> _Call | None:
        with self._changed:
            while self._surplus() or not self._waiting:
                if self._surplus() or self._closed:
                    self._threads -= 1
                    self._changed.notify_all()  # in case the wake-up that came here was for a waiting call
                    return None
                self._idle += 1
                self._changed.wait()
                self._idle -= 1
            call = self._waiting.popleft()
            call.state = _State.RUNNING
            return call

    def _finish(self, call: _Call, result: Any, *, raised: bool = False) -> None:
        with self._changed:
            if call.abandoned:
                self._lost -= 1
                self._changed.notify_all()
                return
            call.state = _State.OVER
        with suppress(RuntimeError):  # the loop is closed: the process is ending and nobody waits
            call.loop.call_soon_threadsafe(_resolve, call.done, result, raised)


def _resolve(done: asyncio.Future[Any], result: Any, raised: bool) -> None:
    if done.done():  # cancelled in this very moment
        return
    if raised:
        done.set_exception(result)
    else:
        done.set_result(result)
