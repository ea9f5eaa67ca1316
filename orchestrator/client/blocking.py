"""``Client``: one thread or many, an open connection pool beneath."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from orchestrator.client import calls, faults
from orchestrator.client.calls import Call, Page, View
from orchestrator.client.enlist import Enlister
from orchestrator.client.stream import SILENCE, Frames, Position
from orchestrator.client.words import Event, Job, NewJob
from orchestrator.clock import Clock
from orchestrator.domain.errors import OrchestratorError

T = TypeVar("T")


class Client:
    """The API at ``url``. ``timeout``: seconds for one answer. ``tenant``: for an admin's key, whose jobs.

    Errors are those of ``orchestrator.domain.errors``, as the server raised them; ``Unavailable`` where none answers.
    What is safe to send twice (reading; submitting with a key) is tried up to four times. Close it, or use ``with``.
    Without ``url`` it can only submit on a ``connection``.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float = 30.0,
        tenant: str | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._url = url
        self._tenant = tenant
        self._timeout = timeout
        self._clock = Clock()
        self._enlister = Enlister(self._clock)
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.Client(base_url=url or "", headers=headers, timeout=timeout, transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    # -- jobs

    def submit(
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

        ``key``: the same key and body is the same job. ``wait``: up to so many seconds for its end.
        ``webhook``: a URL that is told of its end, or ``{"url", "events"?, "secret"?}``; ``job.webhook["secret"]`` is
        the one the server made.
        ``connection``: a SQLAlchemy ``Connection`` or ``Session``, or a psycopg or sqlite3 connection, to the
        orchestrator's database: the job is written in its open transaction and exists exactly if that commits. Then
        ``workflow`` is a registered name, ``wait`` has no meaning, and work begins at most about 1 s after the commit.
        """
        job = NewJob(workflow, input, key, priority, tags or {}, deadline, webhook)
        if connection is not None:
            return self._enlister.submit(connection, job, self._tenant or "default")
        done = self._send(calls.submit(job, tenant=self._tenant, wait=wait))
        return self._until(done, wait - calls.MAX_WAIT) if wait > calls.MAX_WAIT else done

    def submit_batch(self, jobs: Sequence[NewJob]) -> list[Job]:
        """Up to 1,000 jobs in one transaction: all, or none."""
        return self._send(calls.submit_batch(jobs, tenant=self._tenant))

    def job(self, job_id: str) -> Job:
        """One job with input and output. Raises ``NotFound``."""
        return self._send(calls.job(job_id, tenant=self._tenant))

    def wait(self, job_id: str, timeout: float | None = None) -> Job:
        """The job once it has ended, however it did. Raises ``TimeoutError`` after ``timeout`` seconds."""
        done = self._until(self.job(job_id), timeout)
        if not done.ended:
            raise TimeoutError(f"job {job_id} is still {done.state.value} after {timeout:g} s")
        return done

    def _until(self, job: Job, seconds: float | None) -> Job:
        end = None if seconds is None else self._clock.monotonic() + seconds
        while not job.ended:
            left = calls.WAIT_SLICE if end is None else end - self._clock.monotonic()
            if left <= 0:
                break
            job = self._send(calls.job(job.id, tenant=self._tenant, wait=min(left, calls.WAIT_SLICE)))
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
    ) -> Iterator[Job]:
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

    def steps(self, job_id: str, *, page: int = 200) -> Iterator[View]:
        """A job's steps by path."""
        return self._pages(lambda p: calls.steps(job_id, p), {"limit": page, "tenant": self._tenant})

    def attempts(self, job_id: str) -> list[View]:
        return self._send(calls.attempts(job_id, tenant=self._tenant))

    def cancel(self, job_id: str) -> Job:
        """Asks it to stop; again is no error. Raises ``Conflict`` if it ended in another way."""
        return self._send(calls.cancel(job_id, tenant=self._tenant))

    def resume_webhook(self, job_id: str) -> Job:
        """Sends again what its webhook is owed, stopped or failing. Raises ``NotFound`` if it has none."""
        return self._send(calls.resume_webhook(job_id, tenant=self._tenant))

    def events(self, job_id: str, *, after: int = 0) -> Iterator[Event]:
        """The history after event ``after``, as it is made, until the job has ended: gap-free, each event once.

        A cut connection is opened again where it was cut. Raises ``Unavailable`` after eight tries without an event.
        """
        position = Position(after)
        while True:
            fault: OrchestratorError | None = None
            try:
                yield from self._stream(job_id, position)
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
            self._clock.sleep(seconds)

    def _stream(self, job_id: str, position: Position) -> Iterator[Event]:
        """One connection's events."""
        self._require_url()
        timeout = httpx.Timeout(self._timeout, read=SILENCE)
        params = {"tenant": self._tenant} if self._tenant else {}
        with self._http.stream(
            "GET", calls.events_path(job_id), params=params, headers=position.headers(), timeout=timeout
        ) as answer:
            if answer.status_code == 204:
                position.complete = True
                return
            if answer.status_code != 200:
                raise faults.error_of(answer.status_code, answer.headers, answer.read())
            frames = Frames()
            for piece in answer.iter_bytes():
                yield from (event for event in frames.feed(piece) if position.take(event))

    # -- the desk

    def dead_letters(
        self,
        *,
        state: str = "open",
        workflow: str | None = None,
        reason: str | None = None,
        job: str | None = None,
        page: int = 100,
    ) -> Iterator[View]:
        """Newest first. ``state``: open, replayed, discarded or all."""
        params = {"state": state, "workflow": workflow, "reason": reason, "job": job, "limit": page}
        return self._pages(calls.dead_letters, {**params, "tenant": self._tenant})

    def invalidate(self, job_id: str, step: str, *, note: str | None = None, repeat_effects: bool = False) -> Job:
        """Does a finished ``step`` (its path) and its transitive dependents again; the rest keeps its results.

        Raises ``Conflict``: the job has not ended, the step has not finished, or steps with an effect would act again.
        """
        body = {"note": note, "repeat_effects": repeat_effects}
        return self._send(calls.invalidate(job_id, step, body, tenant=self._tenant, read=Job.read))

    def stale(self, job_id: str, step: str) -> View:
        """What ``invalidate`` would do: ``again``, ``around``, ``gone``, ``effects``, as paths. Writes nothing."""
        return self._send(calls.invalidate(job_id, step, {"dry_run": True}, tenant=self._tenant, read=dict))

    def fork(
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
        return self._send(calls.fork(job_id, body, key=key, tenant=self._tenant, read=Job.read))

    def drift(
        self, job_id: str, from_step: str, *, changes: Mapping[str, Any] | None = None, reuse: Sequence[str] = ()
    ) -> View:
        """What ``fork`` would do: ``again``, ``kept``, and the ``drift`` between the versions. Writes nothing."""
        body = {"from_step": from_step, "changes": changes, "reuse": list(reuse), "dry_run": True}
        return self._send(calls.fork(job_id, body, key=None, tenant=self._tenant, read=dict))

    def dead_letter(self, letter_id: str) -> View:
        """One with its attempts."""
        return self._send(calls.dead_letter(letter_id, tenant=self._tenant))

    def replay(self, letter_id: str, *, note: str | None = None, changes: Mapping[str, Any] | None = None) -> Job:
        """Continues the job from what failed. ``changes`` to the failed step: ``input``, ``agent`` or ``output``.

        Raises ``Conflict`` if the letter is not open, ``InvalidInput`` for changes that do not fit.
        """
        return self._send(calls.replay(letter_id, note, changes, tenant=self._tenant))

    def discard(self, letter_id: str, *, note: str | None = None) -> View:
        """Closes the letter; the job stays failed."""
        return self._send(calls.discard(letter_id, note, tenant=self._tenant))

    # -- the inbox

    def decisions(self, *, state: str = "open", job: str | None = None, page: int = 100) -> Iterator[View]:
        """What people are asked, newest first. ``state``: open, decided, cancelled or all."""
        return self._pages(calls.decisions, {"state": state, "job": job, "limit": page, "tenant": self._tenant})

    def decision(self, wait_id: str) -> View:
        """One question with the step's attempts; ``decisions`` is what may be answered."""
        return self._send(calls.decision(wait_id, tenant=self._tenant))

    def decide(self, wait_id: str, decision: str, *, output: Any = None, note: str | None = None) -> View:
        """Answers it; the step moves. Raises ``Conflict``, which says who decided what, if somebody was first."""
        return self._send(calls.decide(wait_id, decision, output, note, tenant=self._tenant))

    # -- the rest of the house

    def register(self, name: str, definition: Mapping[str, Any] | str, *, strict: bool = False) -> str:
        """Makes ``definition`` (a mapping, or a file's text) the newest version of ``name``; answers the version.

        ``strict`` refuses steps that leave it to the default what happens when they fail.
        """
        return self._send(calls.register(name, definition, strict=strict))

    def workflows(self) -> list[View]:
        return self._send(calls.workflows())

    def workflow(self, name: str, version: str | None = None) -> View:
        return self._send(calls.workflow(name, version))

    def queues(self) -> list[View]:
        return self._send(calls.queues())

    def workers(self) -> list[View]:
        return self._send(calls.workers())

    # -- sending

    def _pages(self, make: Callable[[Mapping[str, Any]], Call[Page[T]]], params: Mapping[str, Any]) -> Iterator[T]:
        cursor: str | None = None
        while True:
            page = self._send(make({**params, "cursor": cursor}))
            yield from page.items
            cursor = page.next
            if cursor is None:
                return

    def _require_url(self) -> None:
        if self._url is None:
            raise faults.no_url()

    def _send(self, call: Call[T]) -> T:
        self._require_url()
        tries = 0
        while True:
            tries += 1
            unsent = False
            try:
                answer = self._http.request(
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
            self._clock.sleep(seconds)
