"""``AsyncClient``: as ``Client``, awaited. What is sent and how answers are read is the same code (``calls.py``)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from orchestrator.client import calls, faults
from orchestrator.client.calls import Call, Page, View
from orchestrator.client.enlist import Enlister
from orchestrator.client.stream import SILENCE, Frames, Position
from orchestrator.client.words import Event, Job, NewJob
from orchestrator.clock import Clock
from orchestrator.domain.errors import InvalidInput, OrchestratorError

T = TypeVar("T")


class AsyncClient:
    """See ``Client``; belongs to one event loop. Close it with ``await client.close()``, or use ``async with``."""

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float = 30.0,
        tenant: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._url = url
        self._tenant = tenant
        self._timeout = timeout
        self._clock = Clock()
        self._enlister = Enlister(self._clock)
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.AsyncClient(base_url=url or "", headers=headers, timeout=timeout, transport=transport)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    # -- jobs

    async def submit(
        self,
        workflow: str | Mapping[str, Any],
        input: Any = None,
        *,
        key: str | None = None,
        priority: int = 0,
        tags: Mapping[str, str] | None = None,
        deadline: float | None = None,
        webhook: str | Mapping[str, Any] | None = None,
        wait: float = 0.0,
        connection: Any = None,
    ) -> Job:
        """Hands over one job: ``workflow`` is ``name``, ``name@version`` or a definition; ``deadline`` in seconds.

        As ``Client.submit``; ``connection``: SQLAlchemy's ``AsyncConnection`` or ``AsyncSession`` over psycopg.
        """
        job = NewJob(workflow, input, key, priority, tags or {}, deadline, webhook)
        if connection is not None:
            return await self._enlist(connection, job)
        done = await self._send(calls.submit(job, tenant=self._tenant, wait=wait))
        return await self._until(done, wait - calls.MAX_WAIT) if wait > calls.MAX_WAIT else done

    async def _enlist(self, connection: Any, job: NewJob) -> Job:
        if not hasattr(connection, "run_sync"):
            raise InvalidInput(
                "connection= takes SQLAlchemy's AsyncConnection or AsyncSession here.",
                mend="Use Client for a connection that blocks.",
            )
        tenant = self._tenant or "default"
        found: Job = await connection.run_sync(lambda plain: self._enlister.submit(plain, job, tenant))
        return found

    async def submit_batch(self, jobs: Sequence[NewJob]) -> list[Job]:
        """Up to 1,000 jobs in one transaction: all, or none."""
        return await self._send(calls.submit_batch(jobs, tenant=self._tenant))

    async def job(self, job_id: str) -> Job:
        """One job with input and output. Raises ``NotFound``."""
        return await self._send(calls.job(job_id, tenant=self._tenant))

    async def wait(self, job_id: str, timeout: float | None = None) -> Job:  # noqa: ASYNC109 - Client's word
        """The job once it has ended, however it did. Raises ``TimeoutError`` after ``timeout`` seconds."""
        done = await self._until(await self.job(job_id), timeout)
        if not done.ended:
            raise TimeoutError(f"job {job_id} is still {done.state.value} after {timeout:g} s")
        return done

    async def _until(self, job: Job, seconds: float | None) -> Job:
        end = None if seconds is None else self._clock.monotonic() + seconds
        while not job.ended:
            left = calls.WAIT_SLICE if end is None else end - self._clock.monotonic()
            if left <= 0:
                break
            job = await self._send(calls.job(job.id, tenant=self._tenant, wait=min(left, calls.WAIT_SLICE)))
        return job

    def jobs(
        self,
        *,
        state: Sequence[str] = (),
        workflow: str | None = None,
        tag: tuple[str, str] | None = None,
        created_after: float | None = None,
        created_before: float | None = None,
        page: int = 100,
    ) -> AsyncIterator[Job]:
        """All that match, newest first, fetched ``page`` by page as you go. Times are seconds since the epoch."""
        params = {
            "state": list(state) or None,
            "workflow": workflow,
            "tag": ":".join(tag) if tag else None,
            "created_after": created_after,
            "created_before": created_before,
            "limit": page,
            "tenant": self._tenant,
        }
        return self._pages(calls.jobs, params)

    def steps(self, job_id: str, *, page: int = 200) -> AsyncIterator[View]:
        """A job's steps by path."""
        return self._pages(lambda p: calls.steps(job_id, p), {"limit": page, "tenant": self._tenant})

    async def attempts(self, job_id: str) -> list[View]:
        return await self._send(calls.attempts(job_id, tenant=self._tenant))

    async def cancel(self, job_id: str) -> Job:
        """Asks it to stop; again is no error. Raises ``Conflict`` if it ended in another way."""
        return await self._send(calls.cancel(job_id, tenant=self._tenant))

    async def resume_webhook(self, job_id: str) -> Job:
        """Sends again what its webhook is owed, stopped or failing. Raises ``NotFound`` if it has none."""
        return await self._send(calls.resume_webhook(job_id, tenant=self._tenant))

    async def events(self, job_id: str, *, after: int = 0) -> AsyncIterator[Event]:
        """The history after event ``after``, as it is made, until the job has ended: gap-free, each event once.

        A cut connection is opened again where it was cut. Raises ``Unavailable`` after eight tries without an event.
        """
        position = Position(after)
        while True:
            fault: OrchestratorError | None = None
            try:
                async for event in self._stream(job_id, position):
                    yield event
                if position.complete:
                    return
            except httpx.TransportError as error:
                fault = faults.unreachable(self._url or "", error)
            except OrchestratorError as error:
                if faults.delay(error, 0, 0.0, repeatable=True, unsent=False) is None:
                    raise
                fault = error
            seconds = position.failed(self._clock.uniform())
            if seconds is None:
                raise fault or faults.unreachable(self._url or "", EOFError("the stream ends without an event"))
            await asyncio.sleep(seconds)

    async def _stream(self, job_id: str, position: Position) -> AsyncIterator[Event]:
        """One connection's events."""
        self._require_url()
        timeout = httpx.Timeout(self._timeout, read=SILENCE)
        params = {"tenant": self._tenant} if self._tenant else {}
        async with self._http.stream(
            "GET", calls.events_path(job_id), params=params, headers=position.headers(), timeout=timeout
        ) as answer:
            if answer.status_code == 204:
                position.complete = True
                return
            if answer.status_code != 200:
                raise faults.error_of(answer.status_code, answer.headers, await answer.aread())
            frames = Frames()
            async for piece in answer.aiter_bytes():
                for event in frames.feed(piece):
                    if position.take(event):
                        yield event

    # -- the desk

    def dead_letters(
        self,
        *,
        state: str = "open",
        workflow: str | None = None,
        reason: str | None = None,
        job: str | None = None,
        page: int = 100,
    ) -> AsyncIterator[View]:
        """Newest first. ``state``: open, replayed, discarded or all."""
        params = {"state": state, "workflow": workflow, "reason": reason, "job": job, "limit": page}
        return self._pages(calls.dead_letters, {**params, "tenant": self._tenant})

    async def invalidate(self, job_id: str, step: str, *, note: str | None = None, repeat_effects: bool = False) -> Job:
        """Does a finished ``step`` (its path) and its transitive dependents again; the rest keeps its results.

        Raises ``Conflict``: the job has not ended, the step has not finished, or steps with an effect would act again.
        """
        body = {"note": note, "repeat_effects": repeat_effects}
        return await self._send(calls.invalidate(job_id, step, body, tenant=self._tenant, read=Job.read))

    async def stale(self, job_id: str, step: str) -> View:
        """What ``invalidate`` would do: ``again``, ``around``, ``gone``, ``effects``, as paths. Writes nothing."""
        return await self._send(calls.invalidate(job_id, step, {"dry_run": True}, tenant=self._tenant, read=dict))

    async def fork(
        self,
        job_id: str,
        from_step: str,
        *,
        changes: Mapping[str, Any] | None = None,
        reuse: Sequence[str] = (),
        key: str | None = None,
        note: str | None = None,
    ) -> Job:
        """A new job: what ``from_step`` does not reach is taken over, the rest is done.

        ``changes``: ``input``, ``agent``, ``workflow`` (another version); ``reuse``: changed steps that keep results.
        """
        body = {"from_step": from_step, "changes": changes, "reuse": list(reuse), "note": note}
        return await self._send(calls.fork(job_id, body, key=key, tenant=self._tenant, read=Job.read))

    async def drift(
        self, job_id: str, from_step: str, *, changes: Mapping[str, Any] | None = None, reuse: Sequence[str] = ()
    ) -> View:
        """What ``fork`` would do: ``again``, ``kept``, and the ``drift`` between the versions. Writes nothing."""
        body = {"from_step": from_step, "changes": changes, "reuse": list(reuse), "dry_run": True}
        return await self._send(calls.fork(job_id, body, key=None, tenant=self._tenant, read=dict))

    async def dead_letter(self, letter_id: str) -> View:
        """One with its attempts."""
        return await self._send(calls.dead_letter(letter_id, tenant=self._tenant))

    async def replay(self, letter_id: str, *, note: str | None = None, changes: Mapping[str, Any] | None = None) -> Job:
        """Continues the job from what failed. ``changes`` to the failed step: ``input``, ``agent`` or ``output``.

        Raises ``Conflict`` if the letter is not open, ``InvalidInput`` for changes that do not fit.
        """
        return await self._send(calls.replay(letter_id, note, changes, tenant=self._tenant))

    async def discard(self, letter_id: str, *, note: str | None = None) -> View:
        """Closes the letter; the job stays failed."""
        return await self._send(calls.discard(letter_id, note, tenant=self._tenant))

    # -- the inbox

    def decisions(self, *, state: str = "open", job: str | None = None, page: int = 100) -> AsyncIterator[View]:
        """What people are asked, newest first. ``state``: open, decided, cancelled or all."""
        return self._pages(calls.decisions, {"state": state, "job": job, "limit": page, "tenant": self._tenant})

    async def decision(self, wait_id: str) -> View:
        """One question with the step's attempts; ``decisions`` is what may be answered."""
        return await self._send(calls.decision(wait_id, tenant=self._tenant))

    async def decide(self, wait_id: str, decision: str, *, output: Any = None, note: str | None = None) -> View:
        """Answers it; the step moves. Raises ``Conflict``, which says who decided what, if somebody was first."""
        return await self._send(calls.decide(wait_id, decision, output, note, tenant=self._tenant))

    # -- the rest of the house

    async def register(self, name: str, definition: Mapping[str, Any] | str, *, strict: bool = False) -> str:
        """Makes ``definition`` (a mapping, or a file's text) the newest version of ``name``; answers the version.

        ``strict`` refuses steps that leave it to the default what happens when they fail.
        """
        return await self._send(calls.register(name, definition, strict=strict))

    async def workflows(self) -> list[View]:
        return await self._send(calls.workflows())

    async def workflow(self, name: str, version: str | None = None) -> View:
        return await self._send(calls.workflow(name, version))

    async def queues(self) -> list[View]:
        return await self._send(calls.queues())

    async def workers(self) -> list[View]:
        return await self._send(calls.workers())

    # -- sending

    async def _pages(
        self, make: Callable[[Mapping[str, Any]], Call[Page[T]]], params: Mapping[str, Any]
    ) -> AsyncIterator[T]:
        cursor: str | None = None
        while True:
            page = await self._send(make({**params, "cursor": cursor}))
            for item in page.items:
                yield item
            cursor = page.next
            if cursor is None:
                return

    def _require_url(self) -> None:
        if self._url is None:
            raise faults.no_url()

    async def _send(self, call: Call[T]) -> T:
        self._require_url()
        tries = 0
        while True:
            tries += 1
            unsent = False
            try:
                answer = await self._http.request(
                    call.method,
                    call.path,
                    params=call.query(),
                    headers=dict(call.headers),
                    content=call.body,
                    timeout=httpx.Timeout(self._timeout, read=self._timeout + call.patience),
                )
                if answer.is_success:
                    return call.read(calls.parse(answer.content))
                fault = faults.error_of(answer.status_code, answer.headers, answer.content)
            except httpx.TransportError as error:
                unsent = isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout))
                fault = faults.unreachable(self._url or "", error)
            seconds = faults.delay(fault, tries, self._clock.uniform(), repeatable=call.repeatable, unsent=unsent)
            if seconds is None:
                raise fault
            await asyncio.sleep(seconds)
