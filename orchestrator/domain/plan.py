"""The plan: what a job executes.

A definition is compiled once into a tree of ``Node`` (static, shared by every job of that version). A job's steps are
``StepRow`` instances of those nodes, and grow as fan-outs open and rounds follow each other. Every hop down the tree is
exactly one segment of a step's path, so the place of any step a row may read is found from its own path alone.

A composite (sequence, for_each, parallel, supervise, delegate) is a step like any other. Its life:
ready → running (opens: writes its children) → waiting (its children count themselves into it) → ready → running (its
body reads the children's outputs) → succeeded, or for supervise: opens the next round. A sequence has no body: it ends,
with the output of its last step, in the settle that ends that step. The job's root is a sequence at path ``""``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from orchestrator.domain.expressions import Expression, Template
from orchestrator.domain.ids import DEFAULT_QUEUE, ROOT, JobId, QueueName, StepPath, ancestor, call_key, child
from orchestrator.domain.outcome import Doubt, Failure, Stored
from orchestrator.domain.states import STEP_TERMINAL, StepState
from orchestrator.domain.workflow import Agent, AgentStep, Effect, Retry, Timeout


class Kind(StrEnum):
    AGENT = "agent"
    SEQUENCE = "sequence"
    FOR_EACH = "for_each"
    PARALLEL = "parallel"
    SUPERVISE = "supervise"
    DELEGATE = "delegate"
    #: Undoing steps: one after another, or the branches of a fan-out side by side (``domain/saga.py``).
    UNDO = "undo"


#: Ref of the composite that holds a job's undoing steps: a second root beside the job's own.
UNDO = "~undo"

#: What stops a composite: a branch gave up, or somebody cancelled it.
STOP_FAILED = "failed"
STOP_CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Read:
    """A step id an expression uses, and how many segments up its scope lies."""

    name: str
    hops: int

    def path(self, reader: StepPath) -> StepPath:
        return child(ancestor(reader, self.hops), self.name)


@dataclass(frozen=True, slots=True)
class Node:
    """A place in the definition. ``names[i]`` is the path segment of the child with ref ``body[i]``."""

    ref: str
    kind: Kind
    parent: str | None
    names: tuple[str, ...] = ()
    body: tuple[str, ...] = ()
    #: For a child of a sequence: the sibling names it waits for, and those that wait for it.
    needs: tuple[str, ...] = ()
    successors: tuple[str, ...] = ()
    when: Expression | None = None
    #: An agent's input, a supervisor's goal, the root's output; for for_each and delegate: the items.
    input: Template | None = None
    reads: tuple[Read, ...] = ()
    agent: str | None = None
    step: AgentStep | None = None
    checks: tuple[Expression, ...] = ()
    #: The compensator's input, of a step that has ``compensate``.
    owes: Template | None = None
    output_schema: dict[str, Any] | None = None
    retry: Retry = Retry()
    timeout: Timeout = Timeout()
    #: A list that runs in order, one step after the other.
    line: bool = False
    variable: str | None = None
    max_concurrency: int | None = None
    tolerate: int | str = 0
    stop_branches: bool = False
    #: supervise only
    until: Expression | None = None
    rounds: int = 0
    fail_when_exhausted: bool = False

    @property
    def composite(self) -> bool:
        return self.kind is not Kind.AGENT

    @property
    def has_body(self) -> bool:
        """Whether a claim is needed once the children are done (else it ends in its last child's settle)."""
        return (
            self.composite and self.kind is not Kind.UNDO and (self.kind is not Kind.SEQUENCE or self.input is not None)
        )

    def effect_of(self, agent: Agent) -> Effect:
        """What a call of ``agent`` for this step does to the world."""
        if self.step is None or self.step.effect is None:
            return "reversible" if self.owes is not None and agent.effect == "read" else agent.effect
        return self.step.effect


@dataclass(frozen=True, slots=True)
class Plan:
    """A compiled, immutable workflow version."""

    name: str
    version: str
    nodes: dict[str, Node]
    agents: dict[str, Agent]
    #: Whether a cancelled job undoes what it owes, as a failed one does.
    undo_on_cancel: bool = False

    @property
    def compensates(self) -> bool:
        """Whether any step can be undone."""
        return UNDO in self.nodes

    @property
    def tolerates(self) -> bool:
        """Whether a branch of it may fail without failing the job."""
        return any(node.tolerate not in (0, "0%") for node in self.nodes.values() if node.kind is not Kind.UNDO)

    @property
    def root(self) -> Node:
        return self.nodes[""]

    def queue_of(self, ref: str, agent: str | None = None) -> QueueName:
        """An agent step's queue is its agent's; a composite's that of the first agent in it, which has a worker."""
        node = self.nodes[ref]
        name = agent or node.agent
        if name is not None:
            return QueueName(self.agents[name].queue)
        return self.queue_of(node.body[0]) if node.body else DEFAULT_QUEUE

    def successor_paths(self, row_path: StepPath, ref: str) -> list[StepPath]:
        scope = ancestor(row_path, 1)
        return [child(scope, name) for name in self.nodes[ref].successors]

    def successors(self, ref: str) -> list[Node]:
        """What waits for it in its own list."""
        node = self.nodes[ref]
        if node.parent is None or not node.successors:
            return []
        around = self.nodes[node.parent]
        return [self.nodes[around.body[around.names.index(name)]] for name in node.successors]

    def chain(self, path: StepPath, ref: str) -> list[tuple[StepPath, str]]:
        """``path`` and every step that encloses it, innermost first, each with its ref."""
        out: list[tuple[StepPath, str]] = []
        at, node = path, self.nodes[ref]
        while True:
            out.append((at, node.ref))
            if node.parent is None:
                return out
            at, node = ancestor(at, 1), self.nodes[node.parent]

    def line(self, path: StepPath, ref: str) -> list[StepPath] | None:
        """What comes after ``path``; None unless every list around it runs in order: then nothing can run beside it."""
        out: list[StepPath] = []
        for at, link in self.chain(path, ref):
            parent = self.nodes[link].parent
            if parent is None:
                return out
            around = self.nodes[parent]
            if not around.line:
                return None
            scope, _, name = at.rpartition("/")
            out += [child(StepPath(scope), later) for later in around.names[around.names.index(name) + 1 :]]
        return None

    def touched(self, path: StepPath, ref: str) -> list[StepPath]:
        """Every row a settle of ``path`` may move: its chain and the successors of each link."""
        out: list[StepPath] = []
        for at, link in self.chain(path, ref):
            out.append(at)
            out.extend(self.successor_paths(at, link))
            node = self.nodes[link]
            if node.kind is Kind.SEQUENCE and not node.has_body:  # its output is its last child's
                out.append(child(at, node.names[-1]))
            if link == UNDO:
                out.append(ROOT)  # how the job ends when all is undone
        return out


@dataclass(slots=True)
class StepRow:
    """A step of a job, as SQL holds it. Times are the database's, in seconds since the epoch."""

    job_id: JobId
    path: StepPath
    ref: str
    kind: Kind
    parent: StepPath | None
    seq: int = 0
    state: StepState = StepState.PENDING
    epoch: int = 1
    fence: int = 0
    deps_left: int = 0
    held: bool = False
    queue: QueueName = DEFAULT_QUEUE
    tenant: str = "default"
    priority: int = 0
    agent: str | None = None
    limited: bool = False
    vars: Stored | None = None
    #: The number of the debt that this step pays (``domain/saga.py``).
    undoes: int | None = None
    # a composite's join
    width: int | None = None
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    stopping: str | None = None
    round: int = 0
    # attempts
    attempt: int = 0
    tries: int = 0
    generation: int = 1
    losses: int = 0
    losses_alone: int = 0
    #: How many entries of on_failure have been taken.
    fallback: int = 0
    #: Its output is a default, not an agent's answer.
    degraded: bool = False
    begun: bool = False
    lease_owner: str | None = None
    lease_until: float | None = None
    not_before: float | None = None
    ready_at: float | None = None
    first_started_at: float | None = None
    started_at: float | None = None
    finished_at: float | None = None
    # the doorbell
    dispatched_at: float | None = None
    mark: int | None = None
    redispatches: int = 0
    # the checkpoint
    output: Stored | None = None
    failure: Failure | None = None
    #: The path of the step whose failure this is (a composite fails with its first failed branch's).
    failed_at: StepPath | None = None
    #: The call that may have taken effect, while nobody knows, and for good when the step ended so. A claim of a step
    #: in doubt asks its agent's reconciler.
    doubt: Doubt | None = None
    # what a person decided in a replay
    #: Its input, in place of what ``with`` says.
    given: Stored | None = None
    #: Its agent, in place of the plan's.
    chosen: str | None = None

    @property
    def terminal(self) -> bool:
        return self.state in STEP_TERMINAL

    @property
    def live(self) -> int:
        """Children that have not ended yet."""
        return (self.width or 0) - self.succeeded - self.failed - self.cancelled

    @property
    def asks_a_person(self) -> bool:
        """Whether an open wait holds it."""
        return self.state is StepState.IN_DOUBT or (self.state is StepState.WAITING and self.kind is Kind.AGENT)

    @property
    def group(self) -> StepPath | None:
        return self.parent if self.kind is Kind.AGENT else None


def idempotency_key(row: StepRow, version: str) -> str:
    """The key of the step's next call, and of its last while nobody knows what became of that."""
    return call_key(row.job_id, row.path, version, row.generation)


@dataclass(slots=True)
class JobRow:
    id: JobId
    tenant: str
    workflow: str
    version: str
    state: Any
    run: int = 1
    priority: int = 0
    events: int = 0
    steps: int = 0
    input: Stored | None = None
    output: Stored | None = None
    failure: Failure | None = None
    deadline_at: float | None = None
    created_at: float | None = None
    started_at: float | None = None
    finished_at: float | None = None
    idempotency_key: str | None = None
    body_hash: str | None = None
    tags: dict[str, str] = field(default_factory=dict)
    cost_usd: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0
    origin: str | None = None
    #: How many of its steps ask a person, and since when at least one does: meanwhile its deadline does not run.
    waits: int = 0
    waiting_since: float | None = None
    #: The types of events its webhook is told, with blanks between; None: it has none.
    webhook: str | None = None
