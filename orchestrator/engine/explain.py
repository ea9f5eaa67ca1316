"""Why does this job not move? One answer from SQL alone: what it waits for, since when, until when, what would move it.

At most seven statements whatever the job's size, and one more when this process has not seen its workflow before. The
reasons come in the order in which a person should look at them: what nobody mends by itself first. Beside them, how far
the job is and which steps make it as long as it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from orchestrator.domain.ids import JobId
from orchestrator.domain.plan import JobRow, Plan
from orchestrator.domain.states import JOB_TERMINAL, JobState
from orchestrator.domain.waits import DECISIONS, Reason
from orchestrator.engine.causes import ORDER, Cause, Scene, cause_of, span, steps_are
from orchestrator.engine.context import Engine
from orchestrator.engine.missing import no_job
from orchestrator.engine.progress import progress_of
from orchestrator.engine.unclaimed import why_unclaimed
from orchestrator.store import explain as sql
from orchestrator.store import waits as sql_waits
from orchestrator.store.explain import Alike
from orchestrator.store.session import Session

#: Questions to people that are shown of one job, the newest.
QUESTIONS = 50


def explain(engine: Engine, job_id: JobId, tenant: str | None = None) -> dict[str, Any]:
    """What the job waits for, as ``causes`` (``summary`` is the first), and how far it is. Raises ``NotFound``."""

    def work(session: Session) -> dict[str, Any]:
        found = sql.job_and_now(session, job_id)
        if found is None or (tenant is not None and found[0].tenant != tenant):
            raise no_job(session, job_id)
        job, now = found
        plan = engine.plans.get(session, job.version)
        causes = [_ended(session, job)] if job.state in JOB_TERMINAL else _open(plan, session, job, now)
        causes.sort(key=lambda cause: ORDER.index(cause.code))
        return {
            "job": job.id,
            "workflow": job.workflow,
            "state": job.state.value,
            "run": job.run,
            "now": now,
            "deadline_at": None if job.state in JOB_TERMINAL else job.deadline_at,
            "summary": causes[0].says,
            "causes": [asdict(cause) for cause in causes],
            **progress_of(session, job, plan, now),
        }

    return engine.db.run(work, readonly=True)


# ---------------------------------------------------------------------------------------------------------------
# it has ended


def _ended(session: Session, job: JobRow) -> Cause:
    at = job.finished_at
    if job.state is not JobState.FAILED:
        return Cause(job.state.value, f"It has ended: {job.state.value}.", "Nothing moves it any more.", since=at)
    letter = sql.letter_of(session, job.id)
    if letter is None:
        says = "It has failed, and there is no dead letter that says why: a promise is broken."
        return Cause("failed", says, "Run: orchestrator verify", since=at)
    where = f" at {letter['path']}" if letter["path"] else ""
    says = f"It has failed{where}: {letter['reason']}: {letter['message']}"
    detail: dict[str, Any] = {
        "dead_letter": letter["id"],
        "letter_state": letter["state"],
        "fingerprint": letter["fingerprint"],
    }
    verb = "undiscard" if letter["state"] == "discarded" else "replay"
    if verb == "undiscard":
        says += f" ({letter['closed_by']} has discarded its dead letter.)"
    moved_by = f"orchestrator dead-letters {verb} {letter['id']}"
    return Cause("failed", says, moved_by, since=at, path=letter["path"], detail=detail)


# ---------------------------------------------------------------------------------------------------------------
# it is open


def _open(plan: Plan, session: Session, job: JobRow, now: float) -> list[Cause]:
    steps = sql.unfinished(session, job.id)
    ready = [alike for alike in steps if alike.state == "ready"]
    scene = Scene(
        job,
        now,
        plan,
        sql.processes(session),
        sql.queues(session, (alike.queue for alike in ready)) if ready else {},
        sql.limits(session, job.tenant, (alike.agent or "" for alike in ready)) if ready else {},
        Counter(),
    )
    for alike in ready:
        scene.own[alike.queue] += alike.count
    asking = [alike for alike in steps if alike.state in ("in_doubt", "waiting")]
    waits = sql_waits.listing(session, tenant=None, job_id=job.id, limit=QUESTIONS) if asking else []
    if waits:
        steps = [alike for alike in steps if alike not in asking]
    causes = [*_of_job(job), *map(_asked, waits), *(_ofsteps_are(scene, alike) for alike in steps)]
    if not causes:
        says = f"It is {job.state.value}, and none of its steps waits for anything that could move it."
        causes = [Cause("unknown", says, "A promise is broken: run orchestrator verify", since=job.started_at)]
    return causes


def _of_job(job: JobRow) -> Iterable[Cause]:
    if job.state is JobState.PAUSED:
        yield Cause("paused", "Somebody has paused it.", "Resume it.")
    if job.state is JobState.COMPENSATING:
        yield Cause("compensating", "What it did is being undone.", "It ends by itself.")


def _ofsteps_are(scene: Scene, alike: Alike) -> Cause:
    match alike.state:
        case "running":
            return _running(scene, alike)
        case "retrying":
            return _retrying(scene, alike)
        case "in_doubt" | "waiting":
            says = f"{steps_are(alike)} to be decided by a person, and nobody is asked."
            return cause_of(alike, "unknown", says, "A promise is broken: run orchestrator verify")
        case "pending":
            return _held(scene, alike)
        case "ready":
            return why_unclaimed(scene, alike)
        case _:
            says = f"{steps_are(alike)} {alike.state}."
            return cause_of(alike, "unknown", says, "It moves by itself.")


def _asked(wait: dict[str, Any]) -> Cause:
    failure = wait["question"]["failure"]
    who = f"one of {', '.join(wait['assignees'])}" if wait["assignees"] else "somebody"
    if wait["reason"] == Reason.IN_DOUBT:
        says = f"Nobody knows whether {wait['path']} took effect: {failure['message']}. It waits for {who} to look."
    else:
        says = f"{wait['path']} gave up ({failure['class']}: {failure['message']}) and waits for {who} to decide."
    words = " or ".join(word.value for word in DECISIONS[Reason(wait["reason"])])
    moved_by = f"orchestrator decisions decide {wait['id']} WORD, where WORD is {words}"
    detail = {"wait": wait["id"], "assignees": wait["assignees"], **wait["question"]}
    code = "in_doubt" if wait["reason"] == Reason.IN_DOUBT else "decision"
    return Cause(code, says, moved_by, since=wait["created_at"], steps=1, path=wait["path"], detail=detail)


def _running(scene: Scene, alike: Alike) -> Cause:
    until = alike.lease_until
    if until is None or until < scene.now:
        late = span(scene.now - until) if until is not None else "for ever"
        says = (
            f"{steps_are(alike)} lost: the lease of worker {alike.lease_owner} ended {late} ago and is to be released."
        )
        moved_by = "A scheduler releases it within a second. If none runs, start one: orchestrator scheduler"
        return cause_of(alike, "lease_expired", says, moved_by, since=until)
    owner = next((row for row in scene.processes if row["incarnation"] == alike.lease_owner), None)
    heard = f"heard of {span(owner['age'])} ago" if owner else "of which nothing is known"
    since = alike.started_at
    for_ = f" for {span(scene.now - since)}" if since is not None else ""
    says = f"{steps_are(alike)} running{for_} on worker {alike.lease_owner}, {heard}."
    limit = since + scene.node(alike).timeout.attempt if since is not None and alike.agent else None
    detail: dict[str, Any] = {
        "worker": alike.lease_owner,
        "lease_until": until,
        "heartbeat_age": owner["age"] if owner else None,
    }
    if scene.job.state is JobState.CANCELLING or alike.stopping:
        says = f"It is to stop, and waits for the calls that are live: {says[0].lower()}{says[1:]}"
        moved_by = "It ends with these calls; what they cost is recorded. To cut them, stop the worker."
        return cause_of(alike, "stopping", says, moved_by, since=since, until=limit, **detail)
    moved_by = f"The call's end, or its time-out. To give up: orchestrator jobs cancel {scene.job.id}"
    return cause_of(alike, "running", says, moved_by, since=since, until=limit, **detail)


def _retrying(scene: Scene, alike: Alike) -> Cause:
    due = alike.not_before or scene.now
    most = scene.node(alike).retry.attempts
    failure = f"{alike.failure.kind.value}: {alike.failure.message}" if alike.failure is not None else "unknown"
    when = f"in {span(due - scene.now)}" if due > scene.now else f"(due {span(scene.now - due)} ago)"
    says = (
        f"{steps_are(alike)} to be tried again {when}, after {alike.tries} of {most} tries. The last failure: {failure}"
    )
    moved_by = "The timer." if due > scene.now else "A scheduler fires timers. If none runs: orchestrator scheduler"
    detail: dict[str, Any] = {
        "tries": alike.tries,
        "attempts": most,
        "failure": alike.failure.as_dict() if alike.failure else None,
    }
    return cause_of(alike, "retry_timer", says, moved_by, until=due, **detail)


def _held(scene: Scene, alike: Alike) -> Cause:
    enclosing = alike.parent or ""
    ref = scene.node(alike).parent
    cap = scene.plan.nodes[ref].max_concurrency if ref is not None else None
    says = f"{steps_are(alike)} in line: {enclosing} runs {cap} at once (max_concurrency)."
    return cause_of(
        alike, "held", says, "Each takes the place of one that ends.", max_concurrency=cap, within=enclosing
    )
