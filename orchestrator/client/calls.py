"""Every call of the API as a value: what to send, how to read the answer, whether it may be sent again. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from urllib.parse import quote

from orchestrator.client.words import Job, NewJob
from orchestrator.domain.errors import InvalidInput
from orchestrator.domain.json_values import dumps, loads

T = TypeVar("T")
#: Seconds the server waits for a job's end in one request, at most.
MAX_WAIT = 60.0
#: One wait of ``wait``: short enough for proxies.
WAIT_SLICE = 25.0

View = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """``repeatable``: sending it twice does what sending it once does. ``patience``: seconds beyond the time-out."""

    method: str
    path: str
    read: Callable[[Any], T]
    params: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    repeatable: bool = True
    patience: float = 0.0

    def query(self) -> dict[str, Any]:
        return {name: value for name, value in self.params.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    items: list[T]
    next: str | None


def submit(job: NewJob, *, tenant: str | None, wait: float) -> Call[Job]:
    """May be repeated only with a key."""
    headers = {"Content-Type": "application/json"}
    if job.key is not None:
        headers["Idempotency-Key"] = _header(job.key)
    if wait > 0:
        headers["Prefer"] = f"wait={int(min(wait, MAX_WAIT)) or 1}"
    body = dumps(job_body(job)).encode()
    patience = min(wait, MAX_WAIT)
    return Call("POST", "/v1/jobs", Job.read, {"tenant": tenant}, headers, body, job.key is not None, patience)


def submit_batch(jobs: Sequence[NewJob], *, tenant: str | None) -> Call[list[Job]]:
    """May be repeated only if every job has a key."""
    body = {"jobs": [{**job_body(job), "key": job.key} for job in jobs]}
    return Call(
        "POST",
        "/v1/jobs/batch",
        lambda answer: [Job.read(view) for view in answer["jobs"]],
        {"tenant": tenant},
        {"Content-Type": "application/json"},
        dumps(body).encode(),
        all(job.key is not None for job in jobs),
    )


def job_body(job: NewJob) -> View:
    body: View = {"input": job.input, "priority": job.priority, "tags": dict(job.tags)}
    if isinstance(job.workflow, str):
        body["workflow"] = job.workflow
    else:
        body["definition"] = dict(job.workflow)
    if job.deadline is not None:
        body["deadline"] = f"{job.deadline:f}s"
    if job.webhook is not None:
        body["webhook"] = job.webhook if isinstance(job.webhook, str) else dict(job.webhook)
    return body


def _header(text: str) -> str:
    if not (text.isascii() and text.isprintable()):
        raise InvalidInput(f"the key {text!r} cannot travel in a header.", mend="Use printable ASCII characters.")
    return text


def job(job_id: str, *, tenant: str | None, wait: float = 0.0) -> Call[Job]:
    headers = {"Prefer": f"wait={max(1, int(wait))}"} if wait > 0 else {}
    return Call("GET", f"/v1/jobs/{_part(job_id)}", Job.read, {"tenant": tenant}, headers, patience=wait)


def jobs(params: Mapping[str, Any]) -> Call[Page[Job]]:
    return Call("GET", "/v1/jobs", lambda a: Page([Job.read(view) for view in a["jobs"]], a["next"]), params)


def steps(job_id: str, params: Mapping[str, Any]) -> Call[Page[View]]:
    return Call("GET", f"/v1/jobs/{_part(job_id)}/steps", lambda a: Page(a["steps"], a["next"]), params)


def attempts(job_id: str, *, tenant: str | None) -> Call[list[View]]:
    return Call("GET", f"/v1/jobs/{_part(job_id)}/attempts", lambda a: list(a["attempts"]), {"tenant": tenant})


def cancel(job_id: str, *, tenant: str | None) -> Call[Job]:
    return Call("POST", f"/v1/jobs/{_part(job_id)}/cancel", Job.read, {"tenant": tenant})


def resume_webhook(job_id: str, *, tenant: str | None) -> Call[Job]:
    return Call("POST", f"/v1/jobs/{_part(job_id)}/webhook/resume", Job.read, {"tenant": tenant})


def invalidate(job_id: str, path: str, body: View, *, tenant: str | None, read: Callable[[Any], T]) -> Call[T]:
    """Not repeated: the second time the job is running, and nobody could tell by whom."""
    where = f"/v1/jobs/{_part(job_id)}/steps/{'/'.join(map(_part, path.split('/')))}/invalidate"
    headers = {"Content-Type": "application/json"}
    return Call("POST", where, read, {"tenant": tenant}, headers, dumps(body).encode(), repeatable=False)


def fork(job_id: str, body: View, *, key: str | None, tenant: str | None, read: Callable[[Any], T]) -> Call[T]:
    """May be repeated only with a key, or dry."""
    headers = {"Content-Type": "application/json"} | ({} if key is None else {"Idempotency-Key": _header(key)})
    again = key is not None or bool(body.get("dry_run"))
    path = f"/v1/jobs/{_part(job_id)}/fork"
    return Call("POST", path, read, {"tenant": tenant}, headers, dumps(body).encode(), again)


def dead_letters(params: Mapping[str, Any]) -> Call[Page[View]]:
    return Call("GET", "/v1/dead-letters", lambda a: Page(a["dead_letters"], a["next"]), params)


def dead_letter(letter_id: str, *, tenant: str | None) -> Call[View]:
    return Call("GET", f"/v1/dead-letters/{_part(letter_id)}", dict, {"tenant": tenant})


def replay(
    letter_id: str, note: str | None, changes: Mapping[str, Any] | None = None, *, tenant: str | None
) -> Call[Job]:
    """Not repeated: the second time the letter is closed, and nobody could tell by whom."""
    return _decide(letter_id, "replay", {"note": note, "changes": changes}, tenant, Job.read)


def discard(letter_id: str, note: str | None, *, tenant: str | None) -> Call[View]:
    return _decide(letter_id, "discard", {"note": note}, tenant, dict)


def _decide(letter_id: str, verb: str, body: View, tenant: str | None, read: Callable[[Any], T]) -> Call[T]:
    path = f"/v1/dead-letters/{_part(letter_id)}/{verb}"
    headers = {"Content-Type": "application/json"}
    return Call("POST", path, read, {"tenant": tenant}, headers, dumps(body).encode(), repeatable=False)


def decisions(params: Mapping[str, Any]) -> Call[Page[View]]:
    return Call("GET", "/v1/decisions", lambda a: Page(a["decisions"], a["next"]), params)


def decision(wait_id: str, *, tenant: str | None) -> Call[View]:
    return Call("GET", f"/v1/decisions/{_part(wait_id)}", dict, {"tenant": tenant})


def decide(wait_id: str, word: str, output: Any, note: str | None, *, tenant: str | None) -> Call[View]:
    """Not repeated: the second time it is closed, and nobody could tell by whom."""
    body = dumps({"decision": word, "output": output, "note": note}).encode()
    headers = {"Content-Type": "application/json"}
    return Call("POST", f"/v1/decisions/{_part(wait_id)}", dict, {"tenant": tenant}, headers, body, repeatable=False)


def register(name: str, definition: Mapping[str, Any] | str, *, strict: bool = False) -> Call[str]:
    """``definition``: a mapping, or the text of a YAML or JSON file."""
    yaml = isinstance(definition, str)
    kind = "application/yaml" if yaml else "application/json"
    body = definition.encode() if isinstance(definition, str) else dumps(dict(definition)).encode()
    path = f"/v1/workflows/{_part(name)}"
    params = {"strict": "true"} if strict else {}
    return Call("PUT", path, lambda a: str(a["version"]), params, {"Content-Type": kind}, body)


def workflows() -> Call[list[View]]:
    return Call("GET", "/v1/workflows", lambda a: list(a["workflows"]))


def workflow(name: str, version: str | None) -> Call[View]:
    return Call("GET", f"/v1/workflows/{_part(name)}", dict, {"version": version})


def queues() -> Call[list[View]]:
    return Call("GET", "/v1/queues", lambda a: list(a["queues"]))


def workers() -> Call[list[View]]:
    return Call("GET", "/v1/workers", lambda a: list(a["workers"]))


def events_path(job_id: str) -> str:
    return f"/v1/jobs/{_part(job_id)}/events"


def _part(name: str) -> str:
    """One segment of a path, whatever is in it."""
    return quote(name, safe="") if name not in ("", ".", "..") else "%00"


def parse(raw: bytes) -> Any:
    return loads(raw)
