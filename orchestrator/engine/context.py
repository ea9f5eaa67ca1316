"""What every use case needs: the database, the clock, the plans, the feed. Built once per process by bootstrap."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

from orchestrator.clock import Clock
from orchestrator.domain.errors import NotFound
from orchestrator.domain.ids import Incarnation, JobId
from orchestrator.domain.json_values import loads
from orchestrator.domain.plan import Plan
from orchestrator.domain.planner import compile_plan
from orchestrator.domain.workflow import Agent, Workflow
from orchestrator.engine.recent import Recent
from orchestrator.engine.texts import Texts
from orchestrator.store import workflows
from orchestrator.store.database import Database
from orchestrator.store.opening import Opening
from orchestrator.store.payloads import PayloadSizes
from orchestrator.store.session import Session

if TYPE_CHECKING:
    from orchestrator.engine.feed import Feed

__all__ = ["Caps", "Engine", "PayloadSizes", "Plans"]


@dataclass(frozen=True, slots=True)
class Caps:
    """Sizes nothing may exceed; each is a setting."""

    width: int = 10_000
    steps: int = 50_000
    body_bytes: int = 4 * 1024 * 1024
    output_bytes: int = 10 * 1024 * 1024
    #: Seconds a job may take whose workflow sets no deadline.
    deadline: float = 86_400.0


@dataclass(frozen=True, slots=True)
class Facts:
    """What a worker needs to know of a job; never changes while the job runs."""

    id: JobId
    tenant: str
    workflow: str
    version: str
    tags: dict[str, str]
    input: str


class KnownFacts:
    """Facts of the jobs a process works on: the newest ``keep``, and only those with an input of moderate size."""

    def __init__(self, keep: int = 2000, largest: int = 65_536) -> None:
        self._keep = keep
        self._largest = largest
        self._lock = threading.Lock()
        self._facts: OrderedDict[JobId, Facts] = OrderedDict()
        self._versions: OrderedDict[JobId, str] = OrderedDict()

    def get(self, wanted: Iterable[JobId]) -> dict[JobId, Facts]:
        with self._lock:
            return {job_id: self._facts[job_id] for job_id in wanted if job_id in self._facts}

    def missing(self, wanted: Iterable[JobId]) -> set[JobId]:
        with self._lock:
            return set(wanted) - self._facts.keys()

    def keep(self, facts: Mapping[JobId, Facts]) -> None:
        with self._lock:
            for job_id, fact in facts.items():
                if len(fact.input) <= self._largest:
                    self._facts[job_id] = fact
            while len(self._facts) > self._keep:
                self._facts.popitem(last=False)
        self.keep_versions({job_id: fact.version for job_id, fact in facts.items()})

    def versions(self, wanted: Iterable[JobId]) -> dict[JobId, str]:
        """Which version each job runs, of those that are known here."""
        with self._lock:
            return {job_id: self._versions[job_id] for job_id in wanted if job_id in self._versions}

    def keep_versions(self, versions: Mapping[JobId, str]) -> None:
        with self._lock:
            self._versions.update(versions)
            while len(self._versions) > self._keep:
                self._versions.popitem(last=False)


class Compiled:
    """A workflow version, and what is made of it once."""

    def __init__(self, plan: Plan, workflow: Workflow) -> None:
        self.plan = plan
        #: The definition it was compiled from.
        self.workflow = workflow

    @cached_property
    def opening(self) -> Opening:
        return Opening(self.plan)


class Plans:
    """Compiled workflow versions, which never change: the most recently used stay in memory.

    With them, of each name that was asked for, the version that was its newest then; whoever goes by that must find
    out when it no longer is.
    """

    def __init__(self, keep: int = 256) -> None:
        self._keep = keep
        self._lock = threading.Lock()
        self._plans: OrderedDict[str, Compiled] = OrderedDict()
        self._newest: OrderedDict[str, str] = OrderedDict()

    def known(self, version: str) -> Compiled | None:
        """The version, if this process has compiled it; the database may not hold it yet."""
        with self._lock:
            found = self._plans.get(version)
            if found is not None:
                self._plans.move_to_end(version)
            return found

    def get(self, session: Session, version: str) -> Plan:
        return self.compiled(session, version).plan

    def both(self, session: Session, version: str) -> tuple[Plan, Workflow]:
        """The plan, and the definition it was compiled from."""
        found = self.compiled(session, version)
        return found.plan, found.workflow

    def compiled(self, session: Session, version: str) -> Compiled:
        found = self.known(version)
        if found is not None:
            return found
        definition = workflows.definition(session, version)
        if definition is None:
            raise NotFound(f"workflow version {version} is not in the database.")
        workflow, registered = parse_definition(definition)
        return self.add(version, workflow, registered)

    def add(self, version: str, workflow: Workflow, registered: dict[str, Agent]) -> Compiled:
        compiled = Compiled(compile_plan(workflow, version, registered), workflow)
        with self._lock:
            _put(self._plans, version, compiled, self._keep)
        return compiled

    def newest(self, name: str) -> str | None:
        with self._lock:
            return self._newest.get(name)

    def keep_newest(self, name: str, version: str) -> None:
        with self._lock:
            _put(self._newest, name, version, self._keep)

    def forget_newest(self) -> None:
        with self._lock:
            self._newest.clear()


T = TypeVar("T")


def _put(kept: OrderedDict[str, T], key: str, value: T, most: int) -> None:
    kept[key] = value
    kept.move_to_end(key)
    while len(kept) > most:
        kept.popitem(last=False)


def parse_definition(text: str) -> tuple[Workflow, dict[str, Agent]]:
    """A stored definition: the workflow, its agents inlined."""
    return Workflow.model_validate(loads(text)), {}


@dataclass(slots=True)
class Engine:
    db: Database
    clock: Clock
    #: This life of this process: owner of its leases, its counters' row, its name in the workers table.
    process: Incarnation
    lease: float = 15.0
    sizes: PayloadSizes = field(default_factory=PayloadSizes)
    caps: Caps = field(default_factory=Caps)
    plans: Plans = field(default_factory=Plans)
    texts: Texts = field(default_factory=Texts)
    facts: KnownFacts = field(default_factory=KnownFacts)
    recent: Recent = field(default_factory=Recent)
    feed: Feed = field(init=False)
