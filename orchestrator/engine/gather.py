"""What a claimed step reads: its job, its plan, and the outputs its expressions name, in a fresh snapshot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from orchestrator.domain.ids import JobId, StepPath
from orchestrator.domain.json_values import loads
from orchestrator.domain.outcome import Stored
from orchestrator.domain.plan import JobRow, Kind, Node, Plan, StepRow
from orchestrator.domain.saga import Debt
from orchestrator.domain.states import STEP_DONE
from orchestrator.engine.context import Engine, Facts
from orchestrator.engine.texts import Texts
from orchestrator.store import compensations, jobs, payloads, steps
from orchestrator.store.session import Session
from orchestrator.store.steps import Member

Key = tuple[JobId, StepPath]
Known = Mapping[JobId, Mapping[StepPath, StepRow]]
NOTHING: Mapping[StepPath, StepRow] = MappingProxyType({})


@dataclass(slots=True)
class Claimed:
    """A step this process owns, with everything its execution reads."""

    row: StepRow
    facts: Facts
    plan: Plan
    node: Node
    #: JSON texts of the steps its expressions name.
    outputs: dict[str, str]
    #: For a composite's body: its members in order, with the JSON text of each output.
    members: list[tuple[Member, str | None]]
    vars: str | None
    #: The JSON text of the input that a person gave in place of ``with``.
    given: str | None
    texts: Texts
    #: For an undoing composite that opens: what is owed, each with its input's JSON text.
    owed: list[tuple[Debt, str]] = field(default_factory=list)

    @property
    def opening(self) -> bool:
        return self.node.composite and self.row.width is None


def gather(
    engine: Engine,
    session: Session,
    rows: Sequence[StepRow],
    known: Known = MappingProxyType({}),
    learned: Mapping[JobId, Facts] = MappingProxyType({}),
) -> dict[Key, Claimed]:
    """Everything the execution of ``rows`` reads. ``learned`` facts it has already.

    ``known`` rows, which may not be written yet, are taken instead of those the database holds.
    """
    if not rows:
        return {}
    facts = {**learned, **_facts(engine, session, {row.job_id for row in rows} - learned.keys())}
    plans = {job_id: engine.plans.get(session, fact.version) for job_id, fact in facts.items()}
    reads: dict[Key, dict[str, StepPath]] = {}
    members: dict[Key, list[Member]] = {}
    for row in rows:
        key = (row.job_id, row.path)
        reads[key], members[key] = _reads(session, plans[row.job_id].nodes[row.ref], row, known)
    wanted = {(job_id, path) for (job_id, _), names in reads.items() for path in names.values()}
    outputs = _outputs(session, wanted, known)
    values: list[Stored | None] = [value for row in rows for value in (row.vars, row.given)]
    values += [row.output for row in outputs.values()]
    values += [member.output for group in members.values() for member in group]
    owed = _owed(session, rows)
    values += [debt.input for group in owed.values() for debt in group]
    texts = engine.texts.read(session, values)
    claimed = {}
    for row in rows:
        key = (row.job_id, row.path)
        plan = plans[row.job_id]
        claimed[key] = Claimed(
            row,
            facts[row.job_id],
            plan,
            plan.nodes[row.ref],
            {
                name: payloads.text_of(outputs[row.job_id, path].output, texts) or "null"
                for name, path in reads[key].items()
                if (row.job_id, path) in outputs and outputs[row.job_id, path].state in STEP_DONE
            },
            [(member, payloads.text_of(member.output, texts)) for member in members[key]],
            payloads.text_of(row.vars, texts),
            payloads.text_of(row.given, texts),
            engine.texts,
            [(debt, payloads.text_of(debt.input, texts) or "null") for debt in owed.get(row.job_id, ())],
        )
    return claimed


def _owed(session: Session, rows: Sequence[StepRow]) -> dict[JobId, list[Debt]]:
    opening = {row.job_id: row.vars for row in rows if row.kind is Kind.UNDO and row.width is None}
    return {
        job_id: compensations.owed(session, job_id, only_branches="branches" in loads((told and told.text) or "{}"))
        for job_id, told in opening.items()
    }


def _outputs(session: Session, wanted: set[Key], known: Known) -> dict[Key, StepRow]:
    found = {}
    for job_id, path in wanted:
        row = known.get(job_id, NOTHING).get(path)
        if row is not None and row.state in STEP_DONE:
            found[job_id, path] = row
    missing = wanted - found.keys()
    return found | steps.outputs(session, missing) if missing else found


def reads_what_is_owed(row: StepRow) -> bool:
    """Whether the step's execution reads debts, which the transaction that makes it ready may write."""
    return row.kind is Kind.UNDO


def reads_members(row: StepRow) -> bool:
    """Whether it is a join's body, or the verdict on a round."""
    return row.kind not in (Kind.AGENT, Kind.SEQUENCE) and row.width is not None


def _reads(session: Session, node: Node, row: StepRow, known: Known) -> tuple[dict[str, StepPath], list[Member]]:
    names = {read.name: read.path(row.path) for read in node.reads}
    if not reads_members(row):
        return names, []
    if node.kind is Kind.SUPERVISE:
        one = StepPath(f"{row.path}/round-{row.round}")
        return names, [r for r in _members(session, row.job_id, one, known) if r.path != f"{one}/plan"]
    return names, _members(session, row.job_id, row.path, known)


def _members(session: Session, job_id: JobId, parent: StepPath, known: Known) -> list[Member]:
    rows = known.get(job_id, NOTHING)
    mine = {path: Member.of(row) for path, row in rows.items() if row.parent == parent}
    if parent in rows and len(mine) == rows[parent].width:
        found = mine
    else:
        found = {member.path: member for member in steps.members(session, job_id, parent)} | mine
    return sorted(found.values(), key=lambda member: member.seq)


def plans_of(engine: Engine, session: Session, wanted: set[JobId]) -> dict[JobId, Plan]:
    """The plans of the jobs: asked for once per process and job."""
    versions = engine.facts.versions(wanted)
    missing = wanted - versions.keys()
    if missing:
        found = jobs.versions(session, missing)
        engine.facts.keep_versions(found)
        versions |= found
    return {job_id: engine.plans.get(session, version) for job_id, version in versions.items()}


def _facts(engine: Engine, session: Session, wanted: set[JobId]) -> dict[JobId, Facts]:
    """What never changes of the jobs; asked for once per process and job."""
    found = engine.facts.get(wanted)
    missing = wanted - found.keys()
    if missing:
        found |= learn(engine, session, jobs.get_many(session, missing))
    return found


def learn(engine: Engine, session: Session, found: dict[JobId, JobRow]) -> dict[JobId, Facts]:
    """What never changes of jobs that were just read; kept for those who ask next."""
    texts = engine.texts.read(session, (job.input for job in found.values()))
    facts = {job_id: _fact(job, texts) for job_id, job in found.items()}
    engine.facts.keep(facts)
    return facts


def _fact(job: JobRow, texts: dict[str, str]) -> Facts:
    return Facts(job.id, job.tenant, job.workflow, job.version, job.tags, payloads.text_of(job.input, texts) or "null")
