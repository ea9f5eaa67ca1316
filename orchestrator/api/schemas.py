"""The shapes of requests, which are checked, and of answers, which are documented (/openapi.json)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from orchestrator.domain.event_schema import by_type
from orchestrator.domain.events import EventType
from orchestrator.domain.states import JobState, StepState
from orchestrator.domain.webhook import MAX_URL
from orchestrator.domain.workflow import Duration

MAX_DEADLINE = 3650 * 86400.0
MAX_PRIORITY = 1000


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("control characters are not allowed")
    return text


def _sane(seconds: float) -> float:
    if not 0 < seconds <= MAX_DEADLINE:
        raise ValueError("a deadline is longer than nothing and at most 3650d")
    return seconds


#: As it travels: ``2h``.
Deadline = Annotated[
    Duration,
    AfterValidator(_sane),
    Field(json_schema_extra={"type": "string", "pattern": r"^(\d+(?:\.\d+)?)(ms|s|m|h|d)$", "examples": ["2h"]}),
]
TagName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$")]
TagValue = Annotated[str, StringConstraints(max_length=255), AfterValidator(_printable)]
WorkflowName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}(@[0-9a-f]{1,64})?$")]
Key = Annotated[str, StringConstraints(min_length=1, max_length=255), AfterValidator(_printable)]
Note = Annotated[str, StringConstraints(max_length=2000)]


class Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


class WebhookRequest(Request):
    """Who is told of the job's events, and of which: by default of its end."""

    url: Annotated[str, Field(min_length=1, max_length=MAX_URL)]
    events: Annotated[list[EventType], Field(min_length=1)] | None = None
    secret: str | None = Field(
        default=None, description="`whsec_` and 24 to 64 bytes in base64; left out, one is made and answered once."
    )


class JobRequest(Request):
    """One job: a registered ``workflow`` by name (or ``name@version``), or a ``definition`` of its own."""

    workflow: WorkflowName | None = None
    definition: dict[str, Any] | None = Field(default=None, description="A workflow (see `orchestrator schema`).")
    input: Any = None
    priority: Annotated[int, Field(strict=True, ge=-MAX_PRIORITY, le=MAX_PRIORITY)] = 0
    tags: Annotated[dict[TagName, TagValue], Field(max_length=50)] = Field(default_factory=dict)
    deadline: Deadline | None = Field(default=None, description="From now; by default the workflow's own.")
    webhook: Annotated[str, Field(min_length=1, max_length=MAX_URL)] | WebhookRequest | None = Field(
        default=None, description="A URL, or more about it."
    )

    @model_validator(mode="after")
    def _one_of(self) -> JobRequest:
        if (self.workflow is None) == (self.definition is None):
            raise ValueError("name a workflow or send a definition, one of the two")
        return self


class BatchJob(JobRequest):
    key: Key | None = Field(default=None, description="The job's idempotency key.")


class BatchRequest(Request):
    """All are accepted, or none."""

    jobs: Annotated[list[BatchJob], Field(min_length=1, max_length=1000)]


class NoteRequest(Request):
    note: Note | None = None


class ReplayChanges(Request):
    """``input`` in place of what ``with`` says, another ``agent`` of the job's workflow, or the ``output`` itself."""

    input: Any = None
    agent: str | None = None
    output: Any = None


class ReplayRequest(NoteRequest):
    changes: ReplayChanges | None = None


class Problem(BaseModel):
    """RFC 9457. ``code`` is stable; docs/errors has a page for each."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    instance: str
    problems: list[dict[str, Any]] | None = None


class FailureView(BaseModel):
    model_config = ConfigDict(populate_by_name=True)

    kind: str = Field(alias="class")
    message: str
    outcome_known: bool
    answered: bool
    retry_after: float | None
    detail: dict[str, Any]


class WebhookView(BaseModel):
    """``delivered`` and ``owed`` are numbers of events. In the answer to a submit there is only a ``secret`` made here.

    ``state``: done (the job has ended, nothing is owed), active, or stopped until it is resumed.
    """

    url: str | None = None
    events: list[EventType] | None = None
    state: Literal["active", "done", "stopped"] | None = None
    delivered: int | None = None
    owed: int | None = None
    failures: int | None = None
    error: str | None = None
    next_at: float | None = None
    delivered_at: float | None = None
    secret: str | None = None


class GapView(BaseModel):
    """A call that failed in a job that succeeded all the same. ``kind``: ``failed``: its branch is left out of the
    output; ``default`` or ``skipped``: what ``on_failure`` put in its place."""

    path: str
    kind: Literal["failed", "default", "skipped"]
    failure: FailureView | None


class JobView(BaseModel):
    """Times are seconds since the epoch. ``input``, ``output``, ``gaps`` and ``webhook`` only where one job is asked
    for. ``gaps``: what a success lacks, the first 100."""

    id: str
    workflow: str
    version: str
    state: JobState
    run: int
    tenant: str
    priority: int
    tags: dict[str, str]
    created_at: float | None
    started_at: float | None
    finished_at: float | None
    deadline_at: float | None
    steps: int
    cost_usd: float
    input_tokens: int
    output_tokens: int
    failure: FailureView | None
    origin: str | None = Field(default=None, description="The job it was forked of.")
    input: Any = None
    output: Any = None
    gaps: list[GapView] = []
    webhook: WebhookView | None = None


class JobPage(BaseModel):
    jobs: list[JobView]
    next: str | None


class BatchView(BaseModel):
    jobs: list[JobView]


class StepView(BaseModel):
    path: str
    kind: str
    state: StepState
    agent: str | None
    queue: str
    epoch: int
    attempt: int
    losses: int
    worker: str | None
    ready_at: float | None
    started_at: float | None
    finished_at: float | None
    failure: FailureView | None
    failed_at: str | None
    output: Any = None


class StepPage(BaseModel):
    steps: list[StepView]
    next: str | None


class AttemptView(BaseModel):
    path: str
    epoch: int
    attempt: int
    agent: str | None
    worker: str | None
    started_at: float | None
    ended_at: float
    outcome: str
    failure: FailureView | None
    model: str | None
    input_tokens: int
    output_tokens: int
    cost_usd: float
    output: Any = Field(default=None, description="What it answered, if the step was done again since.")
    changed: dict[str, Any] | None = Field(default=None, description="How its input differed from the attempt before.")


class AttemptList(BaseModel):
    attempts: list[AttemptView]


class EventView(BaseModel):
    """``v`` is the version of this form, ``number`` gap-free in its job. Pages, SSE and webhooks have the same."""

    model_config = ConfigDict(json_schema_extra=lambda schema: schema.update(allOf=by_type()))

    v: int
    job: str
    number: int
    run: int
    type: str
    path: str | None
    at: float
    data: dict[str, Any]


class WebhookMessage(BaseModel):
    """What is posted to a webhook, in the form of https://www.standardwebhooks.com. ``timestamp``: when it happened."""

    type: str
    version: Literal[1]
    timestamp: str
    data: EventView


class EventPage(BaseModel):
    """``next`` goes into ``after``; ``complete``: the job has ended and nothing follows."""

    events: list[EventView]
    next: int
    complete: bool


class DeadLetterView(BaseModel):
    """``input``, ``prompt`` (of a ``chat`` agent) and ``attempts`` only where one letter is asked for."""

    id: str
    job_id: str
    path: str
    run: int
    tenant: str
    workflow: str
    state: Literal["open", "replayed", "discarded"]
    reason: str
    message: str
    fingerprint: str
    failure: FailureView
    created_at: float
    closed_at: float | None
    closed_by: str | None
    note: str | None
    operation: str | None = None
    input: Any = None
    prompt: Any = None
    attempts: list[AttemptView] | None = None


class DeadLetterPage(BaseModel):
    dead_letters: list[DeadLetterView]
    next: str | None


class QuarantinedRow(BaseModel):
    id: str
    queue: str
    reason: str
    size: int
    at: float


class QuarantinedView(QuarantinedRow):
    raw: str
    text: str | None


class QuarantinePage(BaseModel):
    messages: list[QuarantinedRow]
    next: str | None


class WorkflowVersion(BaseModel):
    version: str
    listed_at: float
    created_at: float


class WorkflowSummary(BaseModel):
    name: str
    version: str
    versions: int


class WorkflowList(BaseModel):
    workflows: list[WorkflowSummary]


class WorkflowView(BaseModel):
    """``versions``: newest first."""

    name: str
    version: str
    definition: dict[str, Any]
    versions: list[WorkflowVersion]


class Registered(BaseModel):
    """``warnings``: steps that leave it to the default what happens when they fail."""

    name: str
    version: str
    warnings: list[str] = Field(default_factory=list)


class QueueView(BaseModel):
    """``oldest_seconds``: how long the oldest ready step has waited."""

    queue: str
    ready: int
    running: int
    slots: int
    oldest_seconds: float | None


class QueueList(BaseModel):
    queues: list[QueueView]


class WorkerView(BaseModel):
    incarnation: str
    name: str
    role: str
    queues: list[str]
    slots: int
    busy: int
    lost_slots: int
    draining: bool
    version: str
    started_at: float
    heartbeat_at: float


class WorkerList(BaseModel):
    workers: list[WorkerView]


class Health(BaseModel):
    status: Literal["ok", "degraded"]
    database: Literal["ok"]
    broker: Literal["ok", "down"]


class Live(BaseModel):
    status: Literal["ok"]
