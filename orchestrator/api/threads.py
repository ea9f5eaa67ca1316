"""From the event loop to the synchronous engine: a bounded number of threads, and a bounded line before them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ParamSpec, TypeVar

import anyio
import anyio.to_thread

from orchestrator.domain.errors import Unavailable

P = ParamSpec("P")
T = TypeVar("T")

#: Calls that may wait for each thread; more are turned away at once, while an answer is still worth something.
WAITING = 32
#: Seconds a call waits for a thread at most: behind a stalled database the line must not grow old.
PATIENCE = 10.0


class Threads:
    """``size`` should be the database's connections: more threads would only wait for those."""

    def __init__(self, size: int) -> None:
        self._most = size * (WAITING + 1)
        self._calls = 0
        self._gate = anyio.Semaphore(size)
        self._limiter = anyio.CapacityLimiter(size)

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """``work``'s answer. Raises ``Unavailable`` when too many calls wait already, or this one has waited too long.

        A cancelled caller waits for the work to end: a transaction is never left without its owner.
        """
        if self._calls >= self._most:
            raise Unavailable("too many requests are waiting.", mend="Try again in a moment.")
        self._calls += 1
        try:
            await self._turn()
            try:
                return await anyio.to_thread.run_sync(partial(work, *args, **kwargs), limiter=self._limiter)
            finally:
                self._gate.release()
        finally:
            self._calls -= 1

    async def _turn(self) -> None:
        try:
            with anyio.fail_after(PATIENCE):
                await self._gate.acquire()
        except TimeoutError:
            raise Unavailable(f"nobody was free within {PATIENCE:g} s.", mend="Try again in a moment.") from None
