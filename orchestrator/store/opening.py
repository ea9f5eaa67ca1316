"""New jobs with their first steps: on PostgreSQL one statement, which refuses itself where it was sent in vain.

What the jobs of a version begin with differs in little: whose the rows are, since when they wait, and for which of them
a message goes out. So the rows travel once a version, in a document that is kept, and a job is one row beside them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Final

import orjson

from orchestrator.domain.events import Event, EventType
from orchestrator.domain.ids import JobId, StepPath
from orchestrator.domain.plan import JobRow, Plan, StepRow
from orchestrator.domain.planner import first_rows
from orchestrator.domain.states import StepState
from orchestrator.store import changes, feed, history, jobs, tables, workflows
from orchestrator.store.rows import job_values, step_values
from orchestrator.store.session import MOVED, Moved, Session, Statement

_SUBMITTED: Final = "jobs_submitted_total"
#: What a job's row says of all its steps, and what its submit says of those that are ready.
_OF_THE_JOB: Final = ("job_id", "tenant", "priority")
_OF_THE_SUBMIT: Final = ("ready_at", "dispatched_at", "mark")


class Opening:
    """What every job of a version begins with. Its rows belong to no job yet."""

    def __init__(self, plan: Plan) -> None:
        self.version = plan.version
        self.workflow = plan.name
        self._plan = plan
        steps = self._steps()
        self.ready = [row for row in steps if row.state is StepState.READY]
        self.count = len(steps)
        #: What the event says that begins the job's history.
        self.said = {"workflow": plan.name, "version": plan.version, "steps": len(steps)}

    def _steps(self) -> list[StepRow]:
        return first_rows(self._plan, JobId(""), "", 0)

    @cached_property
    def rows(self) -> list[changes.Row]:
        """For SQLite: each step as its row."""
        return [step_values(row) for row in self._steps()]

    @cached_property
    def document(self) -> str:
        """For PostgreSQL: all of it as the statement takes it."""
        rows = map(step_values, self._steps())
        carried = [{name: value for name, value in row.items() if name not in _OF_THE_JOB} for row in rows]
        data, labels = json.dumps(self.said, ensure_ascii=False), json.dumps({"workflow": self.workflow})
        head = orjson.dumps({"version": self.version, "data": data, "labels": labels}).decode()
        return f'{head[:-1]},"rows":{changes.document(tables.steps, carried)}}}'


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to be written, which fills in its times: the database's. ``deadline`` is in seconds after its submit."""

    job: JobRow
    opening: Opening
    deadline: float
    #: Those of the opening's ready steps for which a message goes out after the commit.
    rung: Collection[StepPath] = ()

    def begins(self, now: float) -> None:
        self.job.created_at, self.job.deadline_at = now, now + self.deadline


def write(
    session: Session,
    process: str,
    new: Sequence[NewJob],
    newest: Mapping[str, str],
    before: Sequence[Statement] = (),
    *,
    patience: float,
    last: bool,
) -> set[JobId]:
    """Writes ``new``, their first steps, their first events and the counters; answers those it wrote: the others'
    idempotency keys are those of jobs with the same body.

    Raises ``Moved``, and has written nothing, if a key is that of a job with another body, or was just taken, or
    the newest version of a workflow is not what ``newest`` says. Waits ``patience`` seconds for a twin that is not
    committed, then raises ``Locked``. ``before`` runs first, and the transaction ends with it all if it is the ``last``
    of it.
    """
    if not session.postgres:
        session.together(*before)
        return _write_each(session, process, new, newest)
    own = [
        {**job_values(one.job), "seconds": one.deadline, "rung": sorted(one.rung)}
        for one in sorted(new, key=lambda one: (one.job.tenant, one.job.idempotency_key or ""))
    ]
    openings = {one.opening.version: one.opening.document for one in new}
    values = {
        "process": process,
        "jobs": changes.document(tables.jobs, own),
        "openings": f"[{','.join(openings.values())}]",
        "newest": json.dumps([{"name": name, "version": version} for name, version in sorted(newest.items())]),
        "wanted": len(new),
    }
    keyed = any(one.job.idempotency_key is not None for one in new)
    hurry: list[Statement] = [(_HURRY, {"wait": f"{int(patience * 1000)}ms"})] if keyed else []
    calm: list[Statement] = [(_CALM, {})] if keyed else []
    answers = session.together(*before, *hurry, (_statement(), values), *calm, last=last)
    [row] = answers[len(before) + len(hurry)]
    for one in new:
        one.begins(row["at"])
    return {JobId(name) for name in json.loads(row["made"] or "[]")}


_HURRY: Final = (
    "SELECT set_config('orchestrator.lock_timeout', current_setting('lock_timeout'), true),"
    " set_config('lock_timeout', :wait, true)"
)
_CALM: Final = "SELECT set_config('lock_timeout', current_setting('orchestrator.lock_timeout'), true)"


@cache
def _statement() -> str:
    job_names = [column.name for column in tables.jobs.columns]
    step_names = [column.name for column in tables.steps.columns]
    carried = [name for name in step_names if name not in (*_OF_THE_JOB, *_OF_THE_SUBMIT)]
    rung = "jsonb_exists(m.rung, v.path)"
    of_job = {"created_at": "v.at", "deadline_at": "v.at + v.seconds"}
    of_step = {
        "job_id": "m.id",
        "tenant": "m.tenant",
        "priority": "m.priority",
        "ready_at": f"CASE WHEN v.state = '{StepState.READY.value}' THEN m.at END",
        "dispatched_at": f"CASE WHEN {rung} THEN m.at END",
        "mark": f"CASE WHEN {rung} THEN coalesce((SELECT marker FROM queues q WHERE q.queue = v.queue), 0) END",
    }
    job_values = ", ".join(of_job.get(name) or changes.value(tables.jobs, name) for name in job_names)
    step_values = ", ".join(of_step.get(name) or changes.value(tables.steps, name) for name in step_names)
    steps = changes.typed(tables.steps, carried)
    guard = (
        "(SELECT count(*) FROM w_jobs) + (SELECT count(*) FROM fresh f WHERE f.body_hash = (SELECT t.body_hash"
        " FROM jobs t WHERE t.tenant = f.tenant AND t.idempotency_key = f.idempotency_key LIMIT 1)) = :wanted"
        " AND NOT EXISTS (SELECT 1 FROM jsonb_to_recordset(CAST(:newest AS jsonb)) AS n(name text, version text)"
        f" WHERE n.version IS DISTINCT FROM ({workflows.NEWEST.format(name='n.name')}))"
    )
    return (
        "WITH clock AS MATERIALIZED (SELECT {now} AS at),"
        " openings AS MATERIALIZED (SELECT * FROM jsonb_to_recordset(CAST(:openings AS jsonb))"
        " AS o(version text, data text, labels text, rows jsonb)),"
        f" beginnings AS MATERIALIZED (SELECT o.version AS of_version, v.* FROM openings o,"
        f" jsonb_to_recordset(o.rows) AS v({steps})),"
        f" fresh AS MATERIALIZED (SELECT v.*, c.at FROM clock c, jsonb_to_recordset(CAST(:jobs AS jsonb))"
        f" AS v({changes.typed(tables.jobs, job_names)}, seconds double precision, rung jsonb)),"
        f" w_jobs AS (INSERT INTO jobs ({', '.join(job_names)}) SELECT {job_values} FROM fresh v"
        f" {jobs.TWIN} RETURNING id, tenant, version, priority),"
        " made AS MATERIALIZED (SELECT w.*, f.at, f.rung FROM w_jobs w JOIN fresh f ON f.id = w.id),"
        f" w_steps AS (INSERT INTO steps ({', '.join(step_names)}) SELECT {step_values}"
        " FROM made m JOIN beginnings v ON v.of_version = m.version),"
        " w_events AS (INSERT INTO events (job_id, number, run, type, at, data)"
        f" SELECT m.id, 1, 1, '{EventType.JOB_SUBMITTED.value}', m.at, o.data"
        " FROM made m JOIN openings o ON o.version = m.version),"
        " w_counts AS (INSERT INTO rollups (process, series, labels, value)"
        f" SELECT CAST(:process AS text), '{_SUBMITTED}', o.labels, count(*)"
        " FROM made m JOIN openings o ON o.version = m.version"
        f" GROUP BY o.labels ORDER BY o.labels {changes.COUNT})"
        " SELECT at, CAST((SELECT json_agg(id) FROM w_jobs) AS text) AS made,"
        f" CAST(CASE WHEN {guard} THEN '1' ELSE '{MOVED}' END AS integer) AS stands FROM clock"
    )


def _write_each(session: Session, process: str, new: Sequence[NewJob], newest: Mapping[str, str]) -> set[JobId]:
    now = session.now()
    if any(workflows.newest(session, name) != version for name, version in newest.items()):
        raise Moved
    names = {(one.job.tenant, key): one.job for one in new if (key := one.job.idempotency_key) is not None}
    twins = jobs.by_keys(session, names) if names else {}  # there is one writer: no other can come meanwhile
    if any(twin.body_hash != names[name].body_hash for name, twin in twins.items()):
        raise Moved
    theirs = {names[name].id for name in twins}
    made = [one for one in new if one.job.id not in theirs]
    marks = feed.markers(session.rows(*feed.ASKING_FOR_MARKERS)) if any(one.rung for one in made) else {}
    rows: list[changes.Row] = []
    for one in made:
        one.begins(now)
        of_job = {"job_id": one.job.id, "tenant": one.job.tenant, "priority": one.job.priority}
        for values in one.opening.rows:
            row = {**values, **of_job}
            if row["state"] == StepState.READY.value:
                row["ready_at"] = now
                if row["path"] in one.rung:
                    row["dispatched_at"], row["mark"] = now, marks.get(row["queue"], 0)
            rows.append(row)
    events = [Event(one.job.id, 1, EventType.JOB_SUBMITTED, None, one.opening.said, 1, now) for one in made]
    counts: Counter[history.CounterKey] = Counter((_SUBMITTED, (("workflow", one.opening.workflow),)) for one in made)
    changes.insert(session, tables.jobs, [job_values(one.job) for one in made])
    changes.insert(session, tables.steps, rows)
    history.append_events(session, events)
    changes.insert(session, tables.rollups, history.count_rows(process, counts), changes.COUNT)
    return {one.job.id for one in made}
