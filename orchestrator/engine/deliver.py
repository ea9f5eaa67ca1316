"""Sends webhook messages: at least once each, in order for each job, a slow receiver holding up nobody else.

One thread with an event loop, begun when the reconciler first finds something due. A webhook is claimed for some
seconds, its events are posted one by one, and after each its position moves, under the claim's fence. Dead in between,
the same event goes out again, with the same ``webhook-id``. Any number of processes may do this at once.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Self, TypeVar, assert_never

from standardwebhooks import Webhook as Signer

from orchestrator.domain.errors import OrchestratorError
from orchestrator.domain.events import Event
from orchestrator.domain.ids import JobId
from orchestrator.domain.json_values import dumps
from orchestrator.domain.webhook import VERSION, Again, Delivered, Patience, Stop, Verdict, judge, message_id
from orchestrator.engine.context import Engine
from orchestrator.engine.policy import Policy, RefusedByPolicy, enforce_address
from orchestrator.engine.queries import event_view
from orchestrator.ports import Message, Reply, Sender
from orchestrator.store import webhooks
from orchestrator.store.session import Session
from orchestrator.store.webhooks import Claim

log = logging.getLogger("orchestrator.webhooks")

T = TypeVar("T")
#: Beyond the time a try may take: what the database may need before the claim counts as lost. With tries of 10 s, what
#: a dead scheduler was sending goes out again after 15 s.
SLACK = 5.0
#: Seconds that tries under way are given when the process stops.
LAST_TRIES = 3.0


@dataclass(frozen=True, slots=True)
class Manners:
    """Seconds of one ``timeout``; tries at once, and at once to one host; whom to call; how long to go on."""

    timeout: float = 10.0
    at_once: int = 64
    per_host: int = 8
    policy: Policy = field(default_factory=Policy)
    patience: Patience = field(default_factory=Patience)


class Courier:
    """``wake`` when something is due; ``close`` ends it. ``told`` hears how each try ended (the metric's words)."""

    def __init__(
        self,
        engine: Engine,
        sender: Callable[[], Sender],
        manners: Manners | None = None,
        told: Callable[[str], None] = lambda _outcome: None,
    ) -> None:
        self._engine = engine
        self._make_sender = sender
        self._manners = manners or Manners()
        self._told = told
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._woken: asyncio.Event | None = None
        self._closing = False
        self._began = threading.Event()

    def wake(self) -> None:
        """Something may be due. Returns at once."""
        if self._closing:
            return
        if self._thread is None or not self._thread.is_alive():
            self._began.clear()
            self._thread = threading.Thread(target=self._run, name="orchestrator-webhooks", daemon=True)
            self._thread.start()
            self._began.wait()
        self._nudge()

    def close(self) -> None:
        """Ends the thread; a try that is not over by then is made again by somebody."""
        self._closing = True
        if self._thread is not None:
            self._nudge()
            self._thread.join(timeout=2 * LAST_TRIES)

    def _nudge(self) -> None:
        assert self._loop is not None
        assert self._woken is not None
        with suppress(RuntimeError):  # the loop has ended by itself
            self._loop.call_soon_threadsafe(self._woken.set)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception:  # the next wake begins anew
            log.exception("webhook.bug")

    async def _serve(self) -> None:
        self._loop, woken = asyncio.get_running_loop(), asyncio.Event()
        self._woken = woken
        self._began.set()
        async with _Round(self._engine, self._make_sender(), self._manners, self._told, woken.set) as work:
            while True:
                await woken.wait()
                woken.clear()
                if self._closing:
                    return
                await work.take()

    async def deliver(self) -> None:
        """Sends what is due now, and what falls due by it, then returns; for one who has no reconciler."""
        async with _Round(self._engine, self._make_sender(), self._manners, self._told, lambda: None) as work:
            while True:
                ended = work.ended
                if not (await work.take() or work.unfinished):
                    return
                if work.ended == ended:  # else there is room that `take` had not seen
                    await work.some_end()


class _Round:
    """What is being sent. Coroutines never touch the store: threads do."""

    def __init__(
        self,
        engine: Engine,
        sender: Sender,
        manners: Manners,
        told: Callable[[str], None],
        again: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._sender = sender
        self._manners = manners
        self._told = told
        self._again = again
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="orchestrator-webhooks")
        self._tasks: dict[asyncio.Task[None], str] = {}
        self.ended = 0
        #: More was due than there was room for.
        self._more = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=LAST_TRIES)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._sender.close()
        self._threads.shutdown(wait=True)

    @property
    def unfinished(self) -> bool:
        """Whether something is being sent, or was left because there was no room."""
        return bool(self._tasks) or self._more

    async def some_end(self) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)

    async def take(self) -> int:
        """Begins to send what is due, as much as there is room for; answers how many webhooks it took."""
        taken = 0
        try:
            while claims := await self._claims():
                taken += len(claims)
                for claim in claims:
                    task = asyncio.create_task(self._send_all(claim))
                    self._tasks[task] = claim.host
                    task.add_done_callback(self._ended)
        except OrchestratorError as error:
            log.warning("webhook.waiting", extra={"error": str(error)})
        return taken

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._tasks[task]
        self.ended += 1
        if not task.cancelled() and (error := task.exception()) is not None:
            # What it did not write is done again when the claim runs out.
            bug = None if isinstance(error, OrchestratorError) else error
            log.warning("webhook.interrupted", extra={"error": str(error)}, exc_info=bug)
        if self._more:
            self._again()

    async def _claims(self) -> list[Claim]:
        manners, busy = self._manners, Counter(self._tasks.values())
        room = manners.at_once - len(self._tasks)
        full = [host for host, count in busy.items() if count >= manners.per_host]
        self._more = room <= 0 or bool(full)
        if room <= 0:
            return []

        def work(session: Session) -> list[Claim]:
            chosen, taken = list[JobId](), Counter(busy)
            for job_id, host in webhooks.due(session, full, 4 * manners.at_once):
                if taken[host] < manners.per_host and len(chosen) < room:
                    taken[host] += 1
                    chosen.append(job_id)
            return webhooks.claim(session, chosen, manners.timeout + SLACK) if chosen else []

        return await self._stored(work)

    def _stored(self, work: Callable[[Session], T]) -> Awaitable[T]:
        return asyncio.get_running_loop().run_in_executor(self._threads, self._engine.db.run, work)

    async def _send_all(self, claim: Claim) -> None:
        """One after the other, until one is not delivered, or the claim is lost."""
        for event in claim.events:
            verdict = await self._send(claim, event)
            last = event is claim.events[-1]
            if not await self._stored(lambda session: self._note(session, claim, event, verdict, last=last)):  # noqa: B023
                log.info("webhook.claim_lost", extra={"job": claim.job_id, "number": event.number})
                return
            self._tell(claim, event, verdict)
            if not isinstance(verdict, Delivered):
                return
        self._more = self._more or claim.events[-1].number < claim.upto

    async def _send(self, claim: Claim, event: Event) -> Verdict:
        try:
            enforce_address(claim.url, self._manners.policy, "webhook.url")
        except RefusedByPolicy as error:
            return Stop(str(error))
        reply: Reply = await self._sender.send(self._message(claim, event), self._manners.timeout)
        return judge(
            reply.status,
            reply.why,
            failures=claim.failures if event is claim.events[0] else 0,
            failing_for=claim.failing_for if event is claim.events[0] else 0.0,
            retry_after=reply.retry_after,
            patience=self._manners.patience,
            draw=self._engine.clock.uniform(),
        )

    def _message(self, claim: Claim, event: Event) -> Message:
        name, sent_at = message_id(event.job_id, event.number), datetime.fromtimestamp(self._engine.clock.now(), UTC)
        body = dumps(body_of(event))
        headers = {
            "Content-Type": "application/json",
            "webhook-id": name,
            "webhook-timestamp": str(int(sent_at.timestamp())),
            "webhook-signature": Signer(claim.secret).sign(name, sent_at, body),
        }
        return Message(claim.url, headers, body.encode())

    def _note(self, session: Session, claim: Claim, event: Event, verdict: Verdict, *, last: bool) -> bool:
        match verdict:
            case Delivered():
                keep = None if last else self._manners.timeout + SLACK
                return webhooks.delivered(session, claim, event.number, keep=keep)
            case Again(delay, why):
                return webhooks.failed(session, claim, delay, why)
            case Stop(why):
                return webhooks.stop(session, claim, why)
            case never:
                assert_never(never)

    def _tell(self, claim: Claim, event: Event, verdict: Verdict) -> None:
        about = {"job": claim.job_id, "number": event.number, "host": claim.host}
        match verdict:
            case Delivered():
                self._told("delivered")
            case Again(delay, why):
                self._told("failed")
                log.info("webhook.failed", extra={**about, "error": why, "delay": round(delay, 1)})
            case Stop(why):
                self._told("stopped")
                log.warning("webhook.stopped", extra={**about, "error": why})
            case never:
                assert_never(never)


def body_of(event: Event) -> dict[str, Any]:
    """A message's body: the event as everybody sees it, in the frame of Standard Webhooks."""
    assert event.at is not None
    at = datetime.fromtimestamp(event.at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {"type": event.type.value, "version": VERSION, "timestamp": at, "data": event_view(event)}
