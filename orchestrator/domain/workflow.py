"""The workflow language as pydantic models: what a file may say. ``domain/parse.py`` reads text into these.

Durations are written ``250ms``, ``30s``, ``10m``, ``48h``, ``30d`` and held in seconds.
"""

from __future__ import annotations

import re
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, WithJsonSchema, model_validator

from orchestrator.domain.json_values import canonical
from orchestrator.domain.outcome import FailureClass

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"^(\d+(?:\.\d+)?)(ms|s|m|h|d)$")
_RATE = re.compile(r"^(\d+)/(s|m|h)$")
NAME = r"^[A-Za-z_][A-Za-z0-9_-]{0,62}$"


def parse_duration(value: object) -> object:
    """Seconds from ``"30s"``; numbers are refused, because nobody can tell seconds from milliseconds."""
    if isinstance(value, str):
        match = _DURATION.match(value.strip())
        if match:
            return float(match[1]) * _UNITS[match[2]]
    if isinstance(value, float):  # a model that was already parsed
        return value
    raise ValueError("not a duration: write a number and a unit, as in 250ms, 30s, 10m, 48h or 30d")


Duration = Annotated[
    float,
    BeforeValidator(parse_duration),
    WithJsonSchema({"type": "string", "pattern": _DURATION.pattern, "examples": ["30s", "10m", "48h"]}),
]


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True, frozen=True)


class Retry(Model):
    """Exponential backoff: ``min(max, initial * 2**(attempt-1))``, drawn uniformly from [0, that] (full jitter)."""

    attempts: int = Field(default=4, ge=1, le=100)
    initial: Duration = 1.0
    max: Duration = 60.0
    jitter: Literal["full", "none"] = "full"
    on: tuple[FailureClass, ...] = (FailureClass.TRANSIENT, FailureClass.RATE_LIMITED, FailureClass.TIMEOUT)


class Timeout(Model):
    """``attempt`` bounds one try, ``total`` all tries with their waits, ``progress`` the silence between two signs."""

    attempt: Duration = 600.0
    total: Duration = 3600.0
    progress: Duration | None = None


class Price(Model):
    """US dollars per million tokens."""

    input: float = Field(default=0.0, ge=0)
    output: float = Field(default=0.0, ge=0)


class Limits(Model):
    """Hold across all workers; enforced when steps are dispatched."""

    concurrency: int | None = Field(default=None, ge=1)
    rate: str | None = Field(default=None, pattern=_RATE.pattern)

    def rate_per_second(self) -> float | None:
        match = _RATE.match(self.rate) if self.rate else None
        return int(match[1]) / _UNITS[match[2]] if match else None


class Breaker(Model):
    """When the agent is left alone for a while, by all workers. ``breaker: {}`` takes the defaults.

    It opens when ``failures`` of at least ``calls`` calls within ``window`` failed, after ``quality`` invalid outputs
    in a row, when the agent gave the same answer in ``loop`` rounds of a loop in a row, or spent more than ``usd``
    within ``window``. After ``cooldown`` one call is tried: it closes the breaker, or doubles the wait, at most to
    ``longest_cooldown``. Null turns a signal off.
    """

    failures: str | None = Field(default="50%", pattern=r"^([1-9]\d?|100)%$")
    calls: int = Field(default=10, ge=1, le=10_000)
    window: Duration = 60.0
    quality: int | None = Field(default=3, ge=1, le=100)
    loop: int | None = Field(default=3, ge=2, le=100)
    usd: float | None = Field(default=None, gt=0)
    cooldown: Duration = 30.0
    longest_cooldown: Duration = 600.0
    #: Of http and chat agents: failed calls also count for the host, which all agents with a breaker share.
    provider: bool = True

    @model_validator(mode="after")
    def _times(self) -> Breaker:
        if not 1.0 <= self.window <= 3600.0:
            raise ValueError("window is 1s to 1h")
        if not 0.0 < self.cooldown <= self.longest_cooldown:
            raise ValueError("cooldown is longer than nothing and at most longest_cooldown")
        return self


Effect = Literal["read", "reversible", "irreversible"]


class AgentBase(Model):
    version: str | None = None
    queue: str = Field(default="default", pattern=NAME)
    limits: Limits | None = None
    breaker: Breaker | None = None
    effect: Effect = "read"
    #: False: the agent ignores the idempotency key, so a call whose outcome is unknown is never blindly repeated.
    honours_key: bool = True
    retry: Retry | None = None
    timeout: Timeout | None = None
    input_schema: dict[str, Any] | None = None
    output_schema: dict[str, Any] | None = None

    @property
    def metered(self) -> bool:
        """Whether its steps are counted when they are dispatched: never continued in place, never rung unasked."""
        return self.limits is not None or self.breaker is not None

    def reconciler(self) -> Agent | None:
        """Who is asked whether a call whose outcome is unknown took effect; None: only a person can tell."""
        return None


#: What a reconciler answers, as JSON Schema. ``happened`` null: it cannot tell. ``output`` is checked as the agent's.
RECONCILED: dict[str, Any] = {
    "type": "object",
    "required": ["happened"],
    "properties": {"happened": {"type": ["boolean", "null"]}},
}


class PythonAgent(AgentBase):
    """A callable ``def agent(ctx, input) -> output``, sync or async, named ``package.module:callable``."""

    kind: Literal["python"]
    target: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    config: dict[str, Any] = Field(default_factory=dict)
    #: A callable like the agent's own, asked with the same input and key: ``{"happened": …, "output": …}``.
    reconcile: str | None = Field(default=None, pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")

    def reconciler(self) -> Agent | None:
        return self.model_copy(update={"target": self.reconcile}) if self.reconcile is not None else None


class HttpAgent(AgentBase):
    """POSTs the input as JSON to ``url`` with ``Idempotency-Key`` and takes the JSON answer as output."""

    kind: Literal["http"]
    url: str
    headers: dict[str, str] = Field(default_factory=dict)
    #: The same input and key are POSTed there; the answer is ``{"happened": …, "output": …}``.
    reconcile_url: str | None = None

    def reconciler(self) -> Agent | None:
        return self.model_copy(update={"url": self.reconcile_url}) if self.reconcile_url is not None else None


class ChatAgent(AgentBase):
    """An OpenAI-compatible chat completion at ``base_url``. The API key is read by the worker from ``api_key_env``.

    Without ``base_url`` or ``model`` it takes the worker's ORCHESTRATOR_CHAT_BASE_URL and ORCHESTRATOR_CHAT_MODEL.
    """

    kind: Literal["chat"]
    model: str | None = None
    base_url: str | None = None
    api_key_env: str = "ORCHESTRATOR_CHAT_API_KEY"
    system: str | None = None
    prompt: str
    temperature: float | None = Field(default=None, ge=0, le=2)
    max_tokens: int | None = Field(default=None, ge=1)
    #: ``json``: the answer is parsed and checked against output_schema; ``text``: it is taken as a string.
    answer: Literal["text", "json"] = "text"
    price: Price = Price()


class ScriptedAgent(AgentBase):
    """A deterministic stand-in: turn n of a step answers ``script[n]`` (the last one repeats).

    Each entry is ``{output: …}``, ``{fail: {class, message, retry_after}}``, with an optional ``delay`` before it.
    With no script the agent answers its input.
    """

    kind: Literal["scripted"]
    script: tuple[dict[str, Any], ...] = ()
    #: Played in the same way, when it is asked whether a call took effect.
    reconcile: tuple[dict[str, Any], ...] = ()

    def reconciler(self) -> Agent | None:
        return self.model_copy(update={"script": self.reconcile}) if self.reconcile else None


Agent = Annotated[PythonAgent | HttpAgent | ChatAgent | ScriptedAgent, Field(discriminator="kind")]


class StepBase(Model):
    id: str | None = Field(default=None, pattern=NAME)
    needs: tuple[str, ...] | None = None
    when: str | None = None


class Fallback(Model):
    """One entry of ``on_failure``: another ``agent``, a default ``value`` (JSON), ``skip``, or ``escalate`` to people.

    ``on``: the failure classes it takes; none named, all. A defaulted output is marked degraded.
    """

    agent: str | None = None
    value: Any = None
    skip: Literal[True] | None = None
    #: The group whose inbox asks for a decision; the step waits for it.
    escalate: str | None = Field(default=None, pattern=NAME)
    on: tuple[FailureClass, ...] = ()

    @model_validator(mode="after")
    def _one(self) -> Fallback:
        if len({"agent", "value", "skip", "escalate"} & self.model_fields_set) != 1:
            raise ValueError("an entry of on_failure names one of agent, value, skip or escalate")
        return self


class Compensate(Model):
    """What undoes a step: called once the job fails (or is cancelled, with ``on_cancel: compensate``).

    ``with`` is evaluated when the step ends, over ``output`` and all that the step itself may read; omitted, the
    compensator gets the step's output. A call whose outcome nobody knows is undone too: then the input is ``null``,
    and the context says ``outcome: unknown`` and the key of that call. Without ``retry`` the agent's own holds.
    """

    agent: str
    with_: Any = Field(default=None, alias="with")
    retry: Retry | None = None
    timeout: Timeout | None = None


class AgentStep(StepBase):
    """A leaf: one call of one agent. Without ``with`` it gets its predecessor's output (or its scope's input)."""

    agent: str
    with_: Any = Field(default=None, alias="with")
    output_schema: dict[str, Any] | None = None
    checks: tuple[str, ...] = ()
    retry: Retry | None = None
    timeout: Timeout | None = None
    effect: Effect | None = None
    gate: Literal["none"] | None = None
    #: Tried in order once retries are used up; omitted, the step fails.
    on_failure: tuple[Fallback, ...] = ()
    #: Declares the step's effect ``reversible``, unless ``effect`` says otherwise.
    compensate: Compensate | None = None


class Join(Model):
    """How a fan-out meets. ``tolerate``: how many branches may fail, as a number or a share such as ``10%``."""

    collect: bool = True
    tolerate: int | str = 0

    @model_validator(mode="after")
    def _tolerate(self) -> Join:
        share = self.tolerate if isinstance(self.tolerate, str) else "0%"
        if not re.fullmatch(r"\d{1,2}%|100%", share) or (isinstance(self.tolerate, int) and self.tolerate < 0):
            raise ValueError("tolerate is a number of branches or a share such as 10%")
        return self

    def tolerated(self, width: int) -> int:
        if isinstance(self.tolerate, str):
            return width * int(self.tolerate[:-1]) // 100
        return self.tolerate


class ForEachStep(StepBase):
    """A fan-out as wide as the data. The output is the list of branch outputs, in order; failed ones are left out."""

    for_each: str
    as_: str = Field(default="item", alias="as", pattern=NAME)
    do: Body
    max_concurrency: int | None = Field(default=None, ge=1)
    join: Join = Join()
    on_branch_failure: Literal["finish", "stop"] = "finish"


class ParallelStep(StepBase):
    """A fan-out of named branches. The output maps each branch's name to its output."""

    parallel: dict[Annotated[str, Field(pattern=NAME)], Body] = Field(min_length=1)
    max_concurrency: int | None = Field(default=None, ge=1)
    join: Join = Join()
    on_branch_failure: Literal["finish", "stop"] = "finish"


class Supervise(Model):
    """Plan, delegate, review, until ``until`` holds over ``review`` (and ``results``, ``round``) or rounds run out.

    The supervisor is called with ``{"phase": "plan", "round", "goal", "workers", "previous"}`` and answers
    ``{"assignments": [{"agent": one of workers, "input": …}, …]}``; the workers run in parallel; the reviewer
    (default: the supervisor) is called with ``{"phase": "review", "round", "goal", "results"}``. ``results`` lists
    ``{"agent", "output"}`` in the order of the assignments. ``previous`` is null in round 1, then the ``{"results",
    "review"}`` of the round before.
    """

    supervisor: str
    workers: tuple[str, ...] = Field(min_length=1)
    reviewer: str | None = None
    rounds: int = Field(ge=1, le=100)
    until: str
    #: What a loop that ran out of rounds does: hand on its last results, or fail.
    otherwise: Literal["accept", "fail"] = "accept"


class SuperviseStep(StepBase):
    """Output: ``{"result", "results", "review", "rounds", "met"}``; ``result`` is the sole result, or the list."""

    supervise: Supervise
    with_: Any = Field(default=None, alias="with")
    max_concurrency: int | None = Field(default=None, ge=1)


FORMS: dict[str, type[StepBase]] = {
    "agent": AgentStep,
    "for_each": ForEachStep,
    "parallel": ParallelStep,
    "supervise": SuperviseStep,
}


def _form(value: object) -> str | None:
    if isinstance(value, StepBase):
        return next(name for name, model in FORMS.items() if isinstance(value, model))
    if isinstance(value, dict):
        return next((name for name in FORMS if name in value), None)
    return None


Step = Annotated[
    Annotated[AgentStep, Tag("agent")]
    | Annotated[ForEachStep, Tag("for_each")]
    | Annotated[ParallelStep, Tag("parallel")]
    | Annotated[SuperviseStep, Tag("supervise")],
    Discriminator(_form),
]


def _body(value: object) -> str:
    return "list" if isinstance(value, (list, tuple)) else "step"


Body = Annotated[
    Annotated[tuple[Step, ...], Tag("list"), Field(min_length=1)] | Annotated[Step, Tag("step")], Discriminator(_body)
]

ForEachStep.model_rebuild()
ParallelStep.model_rebuild()


class Workflow(Model):
    """A reusable definition. Its version is the hash of its canonical JSON, agents included."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    deadline: Duration = 86400.0
    #: What a cancelled job does with finished steps that have ``compensate``: keep them, or undo them as a failed one.
    on_cancel: Literal["keep", "compensate"] = "keep"
    agents: dict[Annotated[str, Field(pattern=NAME)], Agent] = Field(default_factory=dict)
    steps: tuple[Step, ...] = Field(min_length=1)
    #: A template over ``input`` and ``steps``; omitted, the last step's output.
    output: Any = None

    @cached_property
    def canonical(self) -> str:
        """The definition as it is stored: what was said, in canonical JSON."""
        return canonical(self.model_dump(mode="json", by_alias=True, exclude_unset=True))
