"""The tables. Times are double-precision seconds since the epoch on the database's clock, on both dialects.

A ready step row *is* the outbox. Partial indexes stand beside the tables they serve, each named for the statement
that needs it.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    false,
    text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

#: Where Alembic notes the schema's revision: a name of our own, for an application's tables may stand beside ours.
VERSION_TABLE = "orchestrator_version"

Big = BigInteger().with_variant(Integer(), "sqlite")


def _partial(name: str, *columns: Any, where: str, unique: bool = False) -> Index:
    clause = text(where)
    return Index(name, *columns, unique=unique, postgresql_where=clause, sqlite_where=clause)


workflows = Table(
    "workflows",
    metadata,
    Column("version", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("definition", Text, nullable=False),
    #: Seconds; the newest listed version of a name is the one a bare name means. Null: came inline with a job.
    Column("listed_at", Double),
    Column("created_at", Double, nullable=False),
    _partial("ix_workflows_listed", "name", "listed_at", where="listed_at IS NOT NULL"),
)

#: No message has gone out for it; as ix_steps_oldest has it.
UNRUNG = "coalesce(dispatched_at, 0) = 0"

jobs = Table(
    "jobs",
    metadata,
    Column("id", Text, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("workflow", Text, nullable=False),
    Column("version", Text, ForeignKey("workflows.version"), nullable=False),
    Column("state", Text, nullable=False),
    Column("run", Integer, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("events", Integer, nullable=False),
    Column("steps", Integer, nullable=False),
    Column("input", Text),
    Column("input_ref", Text),
    Column("output", Text),
    Column("output_ref", Text),
    Column("failure", Text),
    Column("deadline_at", Double),
    Column("created_at", Double, nullable=False),
    Column("started_at", Double),
    Column("finished_at", Double),
    Column("idempotency_key", Text),
    Column("body_hash", Text),
    Column("tags", Text, nullable=False),
    Column("cost_usd", Double, nullable=False),
    Column("input_tokens", Big, nullable=False),
    Column("output_tokens", Big, nullable=False),
    #: What it came from: the job a fork was taken of.
    Column("origin", Text),
    #: Open waits for people, and since when there is at least one: meanwhile its deadline does not run.
    Column("waits", Integer, nullable=False, server_default=text("0")),
    Column("waiting_since", Double),
    #: The types of events its webhook is told, with blanks between; null: it has none, and costs nothing.
    Column("webhook", Text),
    _partial(
        "uq_jobs_tenant_idempotency_key",
        "tenant",
        "idempotency_key",
        where="idempotency_key IS NOT NULL",
        unique=True,
    ),
    Index("ix_jobs_tenant_id", "tenant", "id"),
    _partial("ix_jobs_open", "deadline_at", where="state IN ('queued','running','waiting','paused','cancelling')"),
    Index("ix_jobs_state_workflow", "state", "workflow"),
    _partial("ix_jobs_ended", "finished_at", "id", where="finished_at IS NOT NULL"),
    _partial("ix_jobs_origin", "origin", where="origin IS NOT NULL"),
)

steps = Table(
    "steps",
    metadata,
    Column("job_id", Text, ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("path", Text, nullable=False),
    Column("ref", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("parent", Text),
    Column("seq", Integer, nullable=False),
    Column("state", Text, nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("fence", Integer, nullable=False),
    Column("deps_left", Integer, nullable=False),
    Column("held", Boolean, nullable=False),
    Column("queue", Text, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("agent", Text),
    Column("limited", Boolean, nullable=False),
    Column("vars", Text),
    Column("vars_ref", Text),
    #: The number of the debt (``compensations``) that this step pays.
    Column("undoes", Integer),
    Column("width", Integer),
    Column("succeeded", Integer, nullable=False),
    Column("failed", Integer, nullable=False),
    Column("cancelled", Integer, nullable=False),
    Column("stopping", Text),
    Column("round", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("tries", Integer, nullable=False),
    Column("generation", Integer, nullable=False),
    Column("losses", Integer, nullable=False),
    Column("losses_alone", Integer, nullable=False),
    Column("fallback", Integer, nullable=False),
    Column("degraded", Boolean, nullable=False),
    Column("begun", Boolean, nullable=False),
    Column("lease_owner", Text),
    Column("lease_until", Double),
    Column("not_before", Double),
    Column("ready_at", Double),
    Column("first_started_at", Double),
    Column("started_at", Double),
    Column("finished_at", Double),
    Column("dispatched_at", Double),
    Column("mark", Integer),
    Column("redispatches", Integer, nullable=False),
    Column("output", Text),
    Column("output_ref", Text),
    Column("failure", Text),
    Column("failed_at", Text),
    #: The call that may have taken effect.
    Column("doubt", Text),
    #: What a person decided in a replay: an input in place of ``with``, an agent in place of the plan's.
    Column("given", Text),
    Column("given_ref", Text),
    Column("chosen", Text),
    PrimaryKeyConstraint("job_id", "path"),
    # The job is not first: an index that begins like the key tempts PostgreSQL to scan a wide job for each claim.
    Index("ix_steps_parent_job_id_seq", "parent", "job_id", "seq"),
    _partial(
        "ix_steps_feed",
        "queue",
        "tenant",
        text("priority DESC"),
        "ready_at",
        where="state = 'ready' AND dispatched_at IS NULL",
    ),
    # Its condition says what that of ix_steps_feed says, in other words: PostgreSQL, to which a backlog is as good as
    # empty (it was when it was last analysed), must not take one for the other and read all of it.
    _partial("ix_steps_oldest", "queue", "tenant", "ready_at", where=f"state = 'ready' AND {UNRUNG}"),
    _partial("ix_steps_limited", "tenant", "agent", where="limited AND state IN ('ready','running')"),
    _partial("ix_steps_rung", "queue", "mark", where="state = 'ready' AND dispatched_at IS NOT NULL"),
    _partial("ix_steps_leases", "lease_owner", "lease_until", where="state = 'running'"),
    _partial("ix_steps_timers", "not_before", where="state = 'retrying'"),
)

attempts = Table(
    "attempts",
    metadata,
    Column("job_id", Text, ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("path", Text, nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("agent", Text),
    Column("generation", Integer, nullable=False),
    Column("worker", Text),
    Column("started_at", Double),
    Column("ended_at", Double, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("failure", Text),
    Column("output", Text),
    Column("output_ref", Text),
    Column("model", Text),
    Column("input_tokens", Big, nullable=False),
    Column("output_tokens", Big, nullable=False),
    Column("cost_usd", Double, nullable=False),
    #: How its input differed from the attempt before, as JSON; null: not at all.
    Column("changed", Text),
    PrimaryKeyConstraint("job_id", "path", "epoch", "attempt"),
)

events = Table(
    "events",
    metadata,
    Column("job_id", Text, ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("run", Integer, nullable=False),
    Column("type", Text, nullable=False),
    Column("path", Text),
    Column("at", Double, nullable=False),
    Column("data", Text, nullable=False),
    PrimaryKeyConstraint("job_id", "number"),
)

#: Who is told of a job's events. The events are the outbox; ``position`` is the last one delivered.
webhooks = Table(
    "webhooks",
    metadata,
    Column("job_id", Text, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("url", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("secret", Text, nullable=False),
    Column("position", Integer, nullable=False),
    #: The newest event it is to be told; written by the settle that wrote the event.
    Column("upto", Integer, nullable=False),
    Column("state", Text, nullable=False),
    Column("fence", Integer, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("failing_since", Double),
    #: When it is sent to next; while it is being sent to, when that may be given up for lost. Null: nothing is owed.
    Column("due_at", Double),
    Column("error", Text),
    Column("delivered_at", Double),
    _partial("ix_webhooks_due", "due_at", where="due_at IS NOT NULL"),
)

payloads = Table(
    "payloads",
    metadata,
    Column("hash", Text, primary_key=True),
    Column("codec", Text, nullable=False),
    Column("size", Integer, nullable=False),
    Column("bytes", LargeBinary, nullable=False),
    #: When it was written, or last met by a writer of the same value (``payloads.write``).
    Column("created_at", Double, nullable=False),
)

dead_letters = Table(
    "dead_letters",
    metadata,
    Column("id", Text, primary_key=True),
    Column("job_id", Text, ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("path", Text, nullable=False),
    Column("run", Integer, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("workflow", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("fingerprint", Text, nullable=False),
    Column("failure", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("closed_at", Double),
    Column("closed_by", Text),
    Column("note", Text),
    #: The bulk replay that dealt with it: replayed it, or passed it over.
    Column("operation", Text),
    Index("ix_dead_letters_tenant_state_id", "tenant", "state", "id"),
    Index("ix_dead_letters_job_id_run", "job_id", "run"),
    _partial("ix_dead_letters_grouped", "tenant", "fingerprint", "created_at", where="state = 'open'"),
    _partial("ix_dead_letters_operation", "operation", "id", where="operation IS NOT NULL"),
    _partial("uq_dead_letters_open", "job_id", "path", where="state = 'open'", unique=True),
)

#: What is owed should a job fail, written in the settle that ended the step. ``number``: that of its event, the order.
compensations = Table(
    "compensations",
    metadata,
    Column("job_id", Text, ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("path", Text, nullable=False),
    Column("ref", Text, nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("generation", Integer, nullable=False),
    Column("input", Text),
    Column("input_ref", Text),
    #: False: nobody knows whether the call took effect.
    Column("known", Boolean, nullable=False),
    #: owed, undone, stuck; or void: the step's effect was taken back or replaced by other means.
    Column("state", Text, nullable=False),
    #: The number of the event that ended its undoing.
    Column("paid", Integer),
    PrimaryKeyConstraint("job_id", "number"),
)

#: What people are asked, at most one open question a step. ``assignees`` are groups, ``question`` says what is known.
waits = Table(
    "waits",
    metadata,
    Column("id", Text, primary_key=True),
    Column("job_id", Text, ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("path", Text, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("workflow", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("assignees", Text, nullable=False),
    Column("question", Text, nullable=False),
    #: open, decided or cancelled.
    Column("state", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("deadline_at", Double),
    Column("closed_at", Double),
    Column("decided_by", Text),
    Column("decision", Text),
    Column("note", Text),
    Index("ix_waits_job_id_path", "job_id", "path"),
    Index("ix_waits_tenant_state_created_at_id", "tenant", "state", "created_at", "id"),
    _partial("uq_waits_open", "job_id", "path", where="state = 'open'", unique=True),
)

#: Bulk actions. ``tenant`` is ``*`` for all of them; only one replay at a time runs in a tenant.
operations = Table(
    "operations",
    metadata,
    Column("id", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("filter", Text, nullable=False),
    #: Letters a second.
    Column("rate", Double, nullable=False),
    Column("stop_on_same_error", Boolean, nullable=False),
    #: How many letters it would deal with when it began.
    Column("total", Integer, nullable=False),
    Column("replayed", Integer, nullable=False),
    Column("skipped", Integer, nullable=False),
    Column("tokens", Double, nullable=False),
    Column("refilled_at", Double, nullable=False),
    Column("note", Text),
    Column("created_by", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("finished_at", Double),
    Column("finished_by", Text),
    Column("because", Text),
    Index("ix_operations_tenant_id", "tenant", "id"),
    _partial("uq_operations_running", "tenant", where="state = 'running'", unique=True),
)

#: What people did, and why; written in the transaction that did it, never changed.
audit = Table(
    "audit",
    metadata,
    Column("id", Text, primary_key=True),
    Column("at", Double, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("who", Text, nullable=False),
    Column("what", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("why", Text),
    Column("data", Text, nullable=False),
    Index("ix_audit_tenant_id", "tenant", "id"),
    Index("ix_audit_subject_id", "subject", "id"),
)

workers = Table(
    "workers",
    metadata,
    Column("incarnation", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("queues", Text, nullable=False),
    Column("slots", Integer, nullable=False),
    Column("lost_slots", Integer, nullable=False),
    Column("busy", Integer, nullable=False),
    Column("draining", Boolean, nullable=False),
    Column("version", Text, nullable=False),
    Column("lock", Big),
    Column("started_at", Double, nullable=False),
    Column("heartbeat_at", Double, nullable=False),
)

queues = Table(
    "queues",
    metadata,
    Column("queue", Text, primary_key=True),
    #: The newest marker sent: what a step dispatched now is stamped with.
    Column("marker", Integer, nullable=False),
    #: The greatest marker a worker has seen, and since when.
    Column("seen", Integer, nullable=False),
    Column("seen_at", Double),
    Column("sent_at", Double),
)

agent_limits = Table(
    "agent_limits",
    metadata,
    Column("tenant", Text, nullable=False),
    Column("agent", Text, nullable=False),
    Column("concurrency", Integer),
    Column("rate", Double),
    Column("tokens", Double, nullable=False),
    Column("refilled_at", Double, nullable=False),
    Column("paused_until", Double),
    #: Whether a breaker watches it, and the one it shares with the other agents of its host.
    Column("breaker", Boolean, nullable=False, server_default=false()),
    Column("provider", Text),
    PrimaryKeyConstraint("tenant", "agent"),
)

#: A row once there was something to keep: no row is a closed breaker. ``name`` is an agent's, or a provider's.
breakers = Table(
    "breakers",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("until", Double),
    Column("opened_at", Double),
    Column("closed_at", Double),
    Column("cooldown", Double, nullable=False),
    Column("trips", Integer, nullable=False),
    Column("streak", Integer, nullable=False),
    Column("trip", Text),
)

#: Calls of agents with a breaker, by process and span of time: a ring, each row written by its own process alone.
breaker_calls = Table(
    "breaker_calls",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("process", Text, primary_key=True),
    Column("slot", Integer, primary_key=True),
    Column("at", Double, nullable=False),
    Column("calls", Integer, nullable=False),
    Column("failed", Integer, nullable=False),
    Column("usd", Double, nullable=False),
)

duties = Table(
    "duties",
    metadata,
    Column("name", Text, primary_key=True),
    Column("holder", Text),
    Column("until", Double, nullable=False),
    Column("value", Text),
)

quarantine = Table(
    "quarantine",
    metadata,
    Column("id", Text, primary_key=True),
    Column("queue", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("raw", LargeBinary, nullable=False),
    Column("at", Double, nullable=False),
    Index("ix_quarantine_at", "at"),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("hash", Text, nullable=False, unique=True),
    Column("name", Text, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("revoked_at", Double),
)

#: Counters, written in the transaction that makes them true: one row per process, series and labels, so none is hot.
rollups = Table(
    "rollups",
    metadata,
    Column("process", Text, nullable=False),
    Column("series", Text, nullable=False),
    Column("labels", Text, nullable=False),
    Column("value", Double, nullable=False),
    PrimaryKeyConstraint("process", "series", "labels"),
)

#: Who still reads a payload: retention asks each column by hash, before it removes one.
for _ref in [c for t in metadata.tables.values() for c in t.columns if c.name.endswith("_ref")]:
    _partial(f"ix_{_ref.table.name}_{_ref.name}", _ref, where=f"{_ref.name} IS NOT NULL")
