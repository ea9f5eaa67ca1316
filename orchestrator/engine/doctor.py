"""What is misconfigured or stuck, and the mend. Read-only: it looks, it changes nothing.

``error``: work is stuck, or what we promise does not hold. ``warning``: it will not hold when something else happens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from orchestrator.domain.errors import OrchestratorError, SchemaOutdated, Unavailable
from orchestrator.engine.causes import ALIVE, span
from orchestrator.engine.context import Engine
from orchestrator.engine.verify import verify
from orchestrator.settings import PREFIX, Settings, is_loopback
from orchestrator.store import breakers, checkup, migrations, waits
from orchestrator.store.session import Session

Severity = Literal["error", "warning"]
#: Seconds this host's clock may differ from the database's: above, times in logs and ids mislead; far above, much more.
SKEW, GREAT_SKEW = 1.0, 60.0
#: Seconds a duty of the scheduler may be late.
LATE = 10.0
DAY = 86_400.0
#: Broken promises shown.
SHOWN = 20
#: PostgreSQL we are made for.
OLDEST_POSTGRES = 150_000


@dataclass(frozen=True, slots=True)
class Finding:
    severity: Severity
    #: A stable name.
    check: str
    where: str
    what: str
    mend: str


def doctor(engine: Engine, settings: Settings, broker: Callable[[], Mapping[str, str]]) -> list[Finding]:
    """Every finding, errors first. ``broker`` is asked once (``canvas.checkup``) and may raise ``Unavailable``.

    The settings are this shell's: run it where a worker or an api runs, with its environment.
    """
    found = [*_settings(settings), *_broker(broker)]
    try:
        migrations.check(engine.db)
        found += _database(engine, settings)
    except SchemaOutdated as error:
        found.append(Finding("error", "schema", "database", error.message, error.mend or "Run: orchestrator migrate"))
    except Unavailable as error:
        found.append(Finding("error", "database_down", "database", error.message, error.mend or "Start the server."))
    return sorted(found, key=lambda finding: finding.severity != "error")


def _settings(settings: Settings) -> Iterator[Finding]:
    if settings.insecure_no_auth:
        yield Finding(
            "warning",
            "open_door",
            f"{PREFIX}INSECURE_NO_AUTH",
            "every program on this machine is admin of the API.",
            "Unset it and create keys: orchestrator keys create",
        )


def _broker(ask: Callable[[], Mapping[str, str]]) -> Iterator[Finding]:
    where = f"{PREFIX}BROKER_URL"
    try:
        facts = ask()
    except OrchestratorError as error:
        what = f"{error.message} Jobs are still accepted; nothing is published until it is back."
        yield Finding("error", "broker_down", where, what, error.mend or "Start the broker.")
        return
    if facts["kind"] == "memory":
        what = "memory:// lives in one process: it serves run and dev, and no api, scheduler or worker."
        yield Finding("warning", "broker_in_memory", where, what, "For more than one process: redis://… or amqp://…")
    if "unreadable" in facts:
        what = f"Redis does not show its settings ({facts['unreadable']})."
        yield Finding("warning", "redis_unreadable", where, what, "See yourself that maxmemory-policy is noeviction.")
    elif facts["kind"] == "redis" and facts.get("maxmemory_policy") != "noeviction":
        what = f"Redis throws queued messages away when its memory is full ({facts.get('maxmemory_policy')})."
        mend = "redis-cli CONFIG SET maxmemory-policy noeviction, and the same in redis.conf."
        yield Finding("error", "redis_evicts", where, what, mend)


def _database(engine: Engine, settings: Settings) -> list[Finding]:
    def work(session: Session) -> list[Finding]:
        return [
            *_skew(engine, session),
            *_durability(session),
            *_disk(engine),
            *_stuck(engine, session),
            *_workers(session),
            *_breakers(session),
            *_desk(session),
            *_defaults(session, settings),
        ]

    return [*engine.db.run(work, readonly=True), *_promises(engine)]


def _skew(engine: Engine, session: Session) -> Iterator[Finding]:
    before = engine.clock.now()
    there = session.now()
    after = engine.clock.now()
    skew = max(before - there, there - after, 0.0)
    if skew > SKEW:
        yield Finding(
            "error" if skew > GREAT_SKEW else "warning",
            "clock_skew",
            "this host and the database",
            f"their clocks differ by {span(skew)}. Leases go by the database's; logs and the order of ids mislead.",
            "Run NTP (chrony, systemd-timesyncd) on both.",
        )


def _durability(session: Session) -> Iterator[Finding]:
    found = checkup.server_settings(session)
    for name in ("fsync", "full_page_writes"):
        if found.get(name) == "off":
            what = f"{name} is off: a power cut can corrupt or lose what was answered 202."
            yield Finding("error", name, "PostgreSQL", what, f"Set {name} = on in postgresql.conf and reload.")
    if found.get("synchronous_commit") == "off":
        what = "synchronous_commit is off: a crash loses the last moments of what was answered 202."
        yield Finding("error", "synchronous_commit", "PostgreSQL", what, "Set synchronous_commit = on (or local).")
    version = int(found.get("server_version_num", OLDEST_POSTGRES))
    if version < OLDEST_POSTGRES:
        what = f"this is PostgreSQL {version // 10_000}."
        yield Finding("error", "postgres_version", "PostgreSQL", what, "Move to PostgreSQL 15 or newer.")


def _disk(engine: Engine) -> Iterator[Finding]:
    kind = checkup.disk_of(engine.db)
    if kind in checkup.NETWORK_DISKS:
        what = f"the SQLite file is on a network disk ({kind}), where its locks do not hold."
        yield Finding("error", "network_disk", str(engine.db.sqlite_file), what, "Use a local disk, or PostgreSQL.")


def _stuck(engine: Engine, session: Session) -> Iterator[Finding]:
    for row in checkup.starving_queues(session, ALIVE):
        what = f"{row['ready']} steps are ready, the oldest for {span(row['oldest'])}, and no live worker takes them."
        yield Finding(
            "error", "no_worker", f"queue {row['queue']}", what, f"Run: orchestrator worker -Q {row['queue']}"
        )
    mend = "Is a scheduler running, and does its log show errors? Run: orchestrator scheduler"
    for row in checkup.stuck_leases(session, max(LATE, engine.lease / 3)):
        what = f"{row['steps']} leases ended up to {span(row['late'])} ago and were not released (job {row['job']})."
        yield Finding("error", "stuck_lease", f"worker {row['worker']}", what, mend)
    timers = checkup.late_timers(session, LATE)
    if timers["steps"]:
        what = f"{timers['steps']} retries are due, the oldest for {span(timers['late'])}."
        yield Finding("error", "late_timers", "scheduler", what, mend)


def _workers(session: Session) -> Iterator[Finding]:
    for row in checkup.silent_workers(session, ALIVE):
        where = f"worker {row['incarnation']}"
        if row["age"] >= ALIVE:
            what = f"it was last heard of {span(row['age'])} ago and is not known to be dead."
            mend = "Look at its host and log; its leases end by themselves, its row after a minute of a live scheduler."
            yield Finding("warning", "silent_worker", where, what, mend)
        if row["lost_slots"]:
            what = f"{row['lost_slots']} of {row['slots']} slots are lost to calls that hang beyond their time-out."
            mend = "Mend the agent, or restart the worker; for agents that hang: isolate: process."
            yield Finding("warning", "lost_slots", where, what, mend)


def _breakers(session: Session) -> Iterator[Finding]:
    now = session.now()
    for tenant, name, state in breakers.listing(session, None):
        if state.opened_at is None:
            continue
        why = state.trip.says if state.trip is not None else "unknown"
        what = f"its breaker (tenant {tenant}) is {state.phase(now).value} since {span(now - state.opened_at)}: {why}."
        mend = f"Mend the agent; it closes by itself. At once: orchestrator breakers reset {name}"
        yield Finding("warning", "breaker_open", name, what, mend)


def _desk(session: Session) -> Iterator[Finding]:
    if asked := waits.old(session, DAY):
        many = f"{len(asked)} or more" if len(asked) == checkup.MOST else str(len(asked))
        what = f"{many} wait for a person for more than a day, the oldest for {span(asked[0]['age'])}."
        yield Finding("warning", "decisions_old", "decisions", what, "Look: orchestrator decisions list")
    letters = checkup.letters_lately(session)
    mend = "Look: orchestrator dead-letters groups. See the guide it-is-2-am."
    if letters["hour"] > max(letters["before"], 1):
        what = (
            f"{letters['hour']} came in the last hour, {letters['before']} in the hour before; {letters['open']} open."
        )
        yield Finding("warning", "dead_letters_grow", "dead letters", what, mend)
    elif letters["oldest"] > DAY:
        what = f"{letters['open']} are open, the oldest for {span(letters['oldest'])}."
        yield Finding("warning", "dead_letters_old", "dead letters", what, mend)
    if (count := checkup.quarantined_lately(session, DAY)) > 0:
        what = f"{count} messages that no worker could take came out of the queues in the last day."
        yield Finding("warning", "quarantine", "broker", what, "Look: orchestrator quarantine list")


def _defaults(session: Session, settings: Settings) -> Iterator[Finding]:
    if not settings.insecure_no_auth and not checkup.usable_keys(session):
        here = is_loopback(settings.host)
        what = "there is no API key" + (": only dev can serve." if here else ": an api on this address does not start.")
        severity: Severity = "warning" if here else "error"
        yield Finding(severity, "no_api_key", f"{PREFIX}HOST={settings.host}", what, "Run: orchestrator keys create")
    kinds = checkup.agent_kinds(session)
    refused = "outside run and dev every such call is refused_by_policy."
    if "python" in kinds and not settings.agent_packages:
        what = f"workflows have python agents and no package is allowed: {refused}"
        yield Finding(
            "warning", "no_agent_packages", f"{PREFIX}AGENT_PACKAGES", what, "Name the packages of your agents."
        )
    if kinds & {"http", "chat"} and not settings.egress:
        what = f"workflows have http or chat agents and no address is allowed: {refused}"
        yield Finding("warning", "no_egress", f"{PREFIX}EGRESS", what, "Name the URL prefixes they may call.")


def _promises(engine: Engine) -> Iterator[Finding]:
    found = verify(engine)
    for one in found[:SHOWN]:
        where = f"job {one.job_id}" + (f", {one.path}" if one.path else "")
        mend = "Run: orchestrator verify. It is a fault of ours: report it with the job's events."
        yield Finding("error", f"promise_{one.invariant}", where, f"{one.promise}: {one.detail}.", mend)
