"""The desk over HTTP: the API at ``ORCHESTRATOR_URL``, with ``ORCHESTRATOR_API_KEY``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from orchestrator.cli.desk import Row
from orchestrator.client import Client, Job
from orchestrator.client.calls import Call, dead_letters, events_path
from orchestrator.domain.json_values import dumps
from orchestrator.settings import Settings

if TYPE_CHECKING:
    from orchestrator.domain.workflow import Workflow
    from orchestrator.store.operations import LetterFilter

#: Events in one answer, at most.
PAGE = 500


class HistoryClient(Client):
    """A client that also reads a history as pages, which end where the job is."""

    def history(self, job_id: str, after: int) -> tuple[list[Row], bool]:
        """Events after ``after``, and whether they are the last."""
        params = {"after": after, "limit": PAGE}
        return self._send(Call("GET", events_path(job_id), lambda page: (page["events"], page["complete"]), params))

    def view(self, job_id: str) -> Row:
        """A job with every field the server gives, also those this client does not know."""
        return self.ask("GET", f"/v1/jobs/{job_id}")

    def ask(self, method: str, path: str, body: Row | None = None, params: Mapping[str, Any] | None = None) -> Row:
        """A call that has no method of its own; one that changes something is not repeated."""
        sent = None if body is None else dumps(body).encode()
        headers = {} if body is None else {"Content-Type": "application/json"}
        return self._send(Call(method, quote(path), dict, params or {}, headers, sent, repeatable=method == "GET"))

    def letters(self, params: Mapping[str, Any]) -> Iterator[Row]:
        """Dead letters by any filter, page by page."""
        return self._pages(dead_letters, {**params, "limit": 100})


class RemoteDesk:
    def __init__(self, settings: Settings) -> None:
        key = settings.api_key.get_secret_value() if settings.api_key is not None else None
        self._client = HistoryClient(settings.url, api_key=key)

    def close(self) -> None:
        self._client.close()

    def submit(
        self,
        workflow: str | Workflow,
        input: Any,
        *,
        key: str | None,
        priority: int,
        tags: Mapping[str, str],
        deadline: float | None,
        webhook: Row | None = None,
    ) -> Row:
        return bare(
            self._client.submit(
                workflow if isinstance(workflow, str) else definition(workflow),
                input,
                key=key,
                priority=priority,
                tags=tags,
                deadline=deadline,
                webhook=webhook,
            )
        )

    def job(self, job_id: str) -> Row:
        return self._client.view(job_id)

    def jobs(self, *, state: str | None, workflow: str | None, tag: tuple[str, str] | None) -> Iterator[Row]:
        states = [state] if state is not None else []
        return map(bare, self._client.jobs(state=states, workflow=workflow, tag=tag))

    def steps(self, job_id: str) -> Iterator[Row]:
        return self._client.steps(job_id)

    def events(self, job_id: str, after: int) -> tuple[list[Row], bool]:
        return self._client.history(job_id, after)

    def cancel(self, job_id: str) -> Row:
        return bare(self._client.cancel(job_id))

    def resume_webhook(self, job_id: str) -> Row:
        return self._client.ask("POST", f"/v1/jobs/{job_id}/webhook/resume", {})

    def fork(self, job_id: str, from_step: str, *, dry_run: bool, key: str | None, **how: Any) -> Row:
        if dry_run:
            return self._client.drift(job_id, from_step, changes=how["changes"], reuse=how["reuse"])
        return bare(self._client.fork(job_id, from_step, key=key, **how))

    def invalidate(self, job_id: str, step: str, *, note: str | None, repeat_effects: bool) -> Row:
        return bare(self._client.invalidate(job_id, step, note=note, repeat_effects=repeat_effects))

    def stale(self, job_id: str, step: str) -> Row:
        return self._client.stale(job_id, step)

    def dead_letters(
        self, *, state: str, workflow: str | None, reason: str | None, job: str | None, fingerprint: str | None = None
    ) -> Iterator[Row]:
        return self._client.letters(
            {"state": state, "workflow": workflow, "reason": reason, "job": job, "fingerprint": fingerprint}
        )

    def dead_letter(self, letter_id: str) -> Row:
        return self._client.dead_letter(letter_id)

    def replay(self, letter_id: str, *, note: str | None, changes: Mapping[str, Any] | None = None) -> Row:
        return bare(self._client.replay(letter_id, note=note, changes=changes))

    def discard(self, letter_id: str, *, note: str | None) -> Row:
        return self._client.discard(letter_id, note=note)

    def undiscard(self, letter_id: str, *, note: str | None) -> Row:
        return self._client.ask("POST", f"/v1/dead-letters/{letter_id}/undiscard", {"note": note})

    def decisions(self, *, state: str, job: str | None) -> Iterator[Row]:
        return self._client.decisions(state=state, job=job)

    def decision(self, wait_id: str) -> Row:
        return self._client.decision(wait_id)

    def decide(self, wait_id: str, decision: str, *, output: Any, note: str | None) -> Row:
        return self._client.decide(wait_id, decision, output=output, note=note)

    def explain(self, job_id: str) -> Row:
        return self._client.ask("GET", f"/v1/jobs/{job_id}/explain")

    def compensations(self, job_id: str) -> list[Row]:
        rows: list[Row] = self._client.ask("GET", f"/v1/jobs/{job_id}/compensations")["compensations"]
        return rows

    def groups(self, wanted: LetterFilter) -> list[Row]:
        rows: list[Row] = self._client.ask("GET", "/v1/dead-letters/groups", params=wanted.given())["groups"]
        return rows

    def replay_all(self, wanted: LetterFilter, *, everything: bool, dry_run: bool, **how: Any) -> Row:
        chosen = {**wanted.given(), "all": everything}
        return self._client.ask("POST", "/v1/dead-letters/replay", {"filter": chosen, "dry_run": dry_run, **how})

    def operations(self) -> list[Row]:
        rows: list[Row] = self._client.ask("GET", "/v1/operations")["operations"]
        return rows

    def operation(self, operation_id: str) -> Row:
        return self._client.ask("GET", f"/v1/operations/{operation_id}")

    def cancel_operation(self, operation_id: str, *, note: str | None) -> Row:
        return self._client.ask("POST", f"/v1/operations/{operation_id}/cancel", {"note": note})

    def open_breaker(self, name: str, seconds: float, *, note: str | None) -> list[Row]:
        body = {"seconds": seconds, "note": note}
        rows: list[Row] = self._client.ask("POST", f"/v1/breakers/{name}/open", body)["breakers"]
        return rows

    def breakers(self) -> list[Row]:
        rows: list[Row] = self._client.ask("GET", "/v1/breakers")["breakers"]
        return rows

    def reset_breaker(self, name: str, *, note: str | None) -> list[Row]:
        rows: list[Row] = self._client.ask("POST", f"/v1/breakers/{name}/reset", {"note": note})["breakers"]
        return rows

    def audit(self, subject: str | None) -> list[Row]:
        rows: list[Row] = self._client.ask("GET", "/v1/audit", params={"subject": subject})["entries"]
        return rows

    def apply(self, workflow: Workflow, *, strict: bool = False) -> Row:
        version = self._client.register(workflow.name, definition(workflow), strict=strict)
        return {"name": workflow.name, "version": version}

    def workflows(self) -> list[Row]:
        return self._client.workflows()

    def workflow(self, name: str) -> Row:
        bare_name, _, version = name.partition("@")
        return self._client.workflow(bare_name, version or None)


def definition(workflow: Workflow) -> Row:
    """As it is stored, so that it has the same version whichever way it came."""
    return workflow.model_dump(mode="json", by_alias=True, exclude_unset=True)


def whole(job: Job) -> Row:
    return {
        **asdict(job),
        "state": job.state.value,
        "failure": job.failure.as_dict() if job.failure is not None else None,
    }


def bare(job: Job) -> Row:
    """Without input and output, which only ``job`` asks for, and without a webhook where none is spoken of."""
    left_out = {"input", "output"} if job.webhook is not None else {"input", "output", "webhook"}
    return {name: value for name, value in whole(job).items() if name not in left_out}
