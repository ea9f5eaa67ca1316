"""What people are asked, and the one decision that counts: the first."""

from __future__ import annotations

from typing import Any

from orchestrator.crashpoints import crashpoint
from orchestrator.domain.advance import Advance
from orchestrator.domain.errors import Conflict, InvalidInput, NotFound, PayloadTooLarge
from orchestrator.domain.ids import JobId
from orchestrator.domain.json_values import NotJson, dumps, loads
from orchestrator.domain.outcome import NULL, Stored
from orchestrator.domain.plan import Plan, StepRow
from orchestrator.domain.schemas import compile_schema
from orchestrator.domain.states import JOB_MOVING
from orchestrator.domain.waits import DECISIONS, WITH_OUTPUT, Decision, Reason
from orchestrator.engine import audit
from orchestrator.engine.context import Engine
from orchestrator.engine.write import Batch, publish, run_stops, tell_of_debts, write
from orchestrator.store import history, jobs, steps, waits
from orchestrator.store.session import Moved, Session


def get(engine: Engine, wait_id: str, tenant: str | None = None) -> dict[str, Any]:
    """A question, with the step's attempts and their failures. Raises ``NotFound``."""

    def work(session: Session) -> dict[str, Any]:
        found = _own(waits.get(session, wait_id), wait_id, tenant)
        return {**view(found), "attempts": history.attempts_of(session, found["job_id"], found["path"])}

    return engine.db.run(work, readonly=True)


def listing(
    engine: Engine,
    *,
    tenant: str | None,
    state: str = "open",
    job: str | None = None,
    cursor: str | None = None,
    limit: int = 50,
) -> tuple[list[dict[str, Any]], str | None]:
    """A page, newest first, and the next page's cursor. ``state``: open, decided, cancelled or all."""

    def work(session: Session) -> list[dict[str, Any]]:
        wanted = None if state == "all" else state
        job_id = JobId(job) if job is not None else None
        return waits.listing(session, tenant=tenant, state=wanted, job_id=job_id, before=before, limit=limit + 1)

    before = _position(cursor)
    found = engine.db.run(work, readonly=True)
    last = found[limit - 1] if len(found) > limit else None
    return [view(row) for row in found[:limit]], f"{last['created_at']!r} {last['id']}" if last else None


def view(row: dict[str, Any]) -> dict[str, Any]:
    """A question as the outside sees it; ``decisions`` is what may be answered while it is open."""
    may = DECISIONS[Reason(row["reason"])] if row["state"] == "open" else ()
    return {**row, "decisions": [word.value for word in may]}


def decide(
    engine: Engine,
    wait_id: str,
    decision: str,
    *,
    by: str,
    output: Any = None,
    note: str | None = None,
    tenant: str | None = None,
) -> dict[str, Any]:
    """The first decision moves the step, in the transaction that closes the question; answers the closed question.

    ``output`` goes with the decisions that end a step with one, and is held against the schemas of agent and step.
    Raises ``NotFound``, ``InvalidInput``, ``PayloadTooLarge``, or ``Conflict`` that says who decided what.
    """
    for attempt in range(5):
        batch = Batch()

        def work(session: Session, batch: Batch = batch) -> dict[str, Any]:
            return _decide(engine, session, batch, wait_id, decision, output, by=by, note=note, tenant=tenant)

        try:
            closed = engine.db.run(work)
            break
        except Moved:
            if attempt == 4:
                raise
    crashpoint("decision.after_commit")
    publish(engine, batch)
    return closed


def _decide(
    engine: Engine,
    session: Session,
    batch: Batch,
    wait_id: str,
    decision: str,
    output: Any,
    *,
    by: str,
    note: str | None,
    tenant: str | None,
) -> dict[str, Any]:
    seen = _own(waits.get(session, wait_id), wait_id, tenant)
    word = _word(seen, decision)
    locked, now = jobs.lock_at(session, [seen["job_id"]])
    job = locked[seen["job_id"]]
    if not waits.close_decided(session, wait_id, word, by, note):
        raise _too_late(_own(waits.get(session, wait_id), wait_id, tenant))
    if job.state not in JOB_MOVING:
        raise Conflict(f"job {job.id} is {job.state.value}; nothing in it can be decided.")
    plan = engine.plans.get(session, job.version)
    row = steps.load(session, job.id, [seen["path"]])[0]
    rows = steps.load(session, job.id, plan.touched(row.path, row.ref))
    advance = Advance(plan, job, rows, now, engine.caps.steps)
    tell_of_debts(session, [advance])
    row = advance.rows[row.path]
    if not row.asks_a_person:
        raise Conflict(f"step {row.path} of job {job.id} asks nothing any more.", mend="Run: orchestrator verify")
    value = _output(engine, plan, row, word, output)
    for path, ref in plan.chain(row.path, row.ref)[1:]:
        if plan.nodes[ref].max_concurrency is not None:
            advance.add(steps.load_held(session, job.id, path, 1))
    advance.decide(row, word, {"wait": wait_id, "decision": word.value, "by": by, "note": note}, value)
    run_stops(session, advance)
    data = {"job": job.id, "path": row.path, "decision": word.value}
    audit.note(engine, session, "wait.decided", wait_id, tenant=job.tenant, by=by, why=note, data=data)
    write(engine, session, [advance], batch, now)
    crashpoint("decision.before_commit")
    return view(_own(waits.get(session, wait_id), wait_id, tenant))


def _word(wait: dict[str, Any], decision: str) -> Decision:
    if wait["state"] != "open":
        raise _too_late(wait)
    may = DECISIONS[Reason(wait["reason"])]
    for word in may:
        if word.value == decision:
            return word
    said = ", ".join(word.value for word in may)
    raise InvalidInput(f"{decision!r} decides nothing here ({wait['reason']}).", mend=f"One of: {said}.")


def _output(engine: Engine, plan: Plan, row: StepRow, word: Decision, output: Any) -> Stored | None:
    """The step's output, checked as an agent's would be."""
    if word not in WITH_OUTPUT:
        if output is not None:
            raise InvalidInput(f"{word.value} takes no output.", mend="Leave it out.")
        return None
    try:
        text = dumps(output)
    except NotJson as error:
        raise InvalidInput(f"the output is not JSON: {error}") from error
    if len(text.encode()) > engine.caps.output_bytes:
        raise PayloadTooLarge(f"the output is larger than {engine.caps.output_bytes} bytes.")
    agent = plan.agents[row.doubt.agent if row.doubt else row.agent or ""]
    for schema in (agent.output_schema, plan.nodes[row.ref].output_schema):
        problems = compile_schema(dict(schema), "output_schema").problems(loads(text)) if schema is not None else []
        if problems:
            raise InvalidInput(f"the output misses its schema: {'; '.join(problems)}")
    return engine.sizes.prepare(text) if output is not None else NULL


def _own(wait: dict[str, Any] | None, wait_id: str, tenant: str | None) -> dict[str, Any]:
    if wait is None or (tenant is not None and wait["tenant"] != tenant):
        raise NotFound(f"no decision {wait_id}.")
    return wait


def _too_late(wait: dict[str, Any]) -> Conflict:
    if wait["state"] == "decided":
        return Conflict(f"{wait['decided_by']} has decided {wait['id']}: {wait['decision']}.")
    return Conflict(f"{wait['id']} is {wait['state']}: its step ended without a decision.")


def _position(cursor: str | None) -> tuple[float, str] | None:
    if cursor is None:
        return None
    at, _, wait_id = cursor.partition(" ")
    try:
        return float(at), wait_id
    except ValueError:
        raise InvalidInput("this cursor is none of ours.", mend="Pass `next` of the page before, unchanged.") from None
