"""Circuit breakers in SQL: their state, what they count, and the steps they hold back."""

from __future__ import annotations

import json
from collections.abc import Iterable

from orchestrator.domain.breaker import Signal, State, Trip, Window
from orchestrator.domain.ids import JobId, StepPath
from orchestrator.domain.outcome import FailureClass
from orchestrator.store.changes import Row
from orchestrator.store.session import Session

#: A window is counted in so many spans; two more in the ring, so that none is written over while it counts.
SPANS = 6
_SLOTS = SPANS + 2
#: As the index ``ix_steps_limited`` has it: SQLite finds it by these very words.
_LIMITED = "limited AND state IN ('ready','running')"
_ONE = "tenant = :tenant AND name = :name"


def load(session: Session, tenant: str, name: str) -> State:
    """Its state now. No row: closed."""
    return _state(session.one(f"SELECT * FROM breakers WHERE {_ONE}", {"tenant": tenant, "name": name}))


def lock(session: Session, tenant: str, name: str) -> State:
    """Its state, which stays so until this transaction ends."""
    key = {"tenant": tenant, "name": name}
    session.execute(
        "INSERT INTO breakers (tenant, name, cooldown, trips, streak) VALUES (:tenant, :name, 0, 0, 0)"
        " ON CONFLICT (tenant, name) DO NOTHING",
        key,
    )
    return _state(session.one(f"SELECT * FROM breakers WHERE {_ONE} {{for_update}}", key))


def save(session: Session, tenant: str, name: str, state: State) -> None:
    """Writes the state of a breaker that this transaction has locked."""
    trip = state.trip
    session.execute(
        "UPDATE breakers SET until = :until, opened_at = :opened_at, closed_at = :closed_at, cooldown = :cooldown,"
        f" trips = :trips, streak = :streak, trip = :trip WHERE {_ONE}",
        {
            "until": state.until,
            "opened_at": state.opened_at,
            "closed_at": state.closed_at,
            "cooldown": state.cooldown,
            "trips": state.trips,
            "streak": state.streak,
            "trip": json.dumps([trip.signal, trip.kind, trip.says]) if trip is not None else None,
            "tenant": tenant,
            "name": name,
        },
    )


def _state(row: Row | None) -> State:
    if row is None:
        return State()
    trip = None
    if row["trip"] is not None:
        signal, kind, says = json.loads(row["trip"])
        trip = Trip(Signal(signal), FailureClass(kind), says)
    until, opened_at, closed_at = row["until"], row["opened_at"], row["closed_at"]
    return State(until, opened_at, closed_at, row["cooldown"], row["trips"], row["streak"], trip)


def listing(session: Session, tenant: str | None, name: str | None = None) -> list[tuple[str, str, State]]:
    """(tenant, name, state) of every breaker there was something to keep of; those that are not closed first."""
    given = {key: value for key, value in (("tenant", tenant), ("name", name)) if value is not None}
    where = " AND ".join(f"{key} = :{key}" for key in given)
    rows = session.rows(
        f"SELECT * FROM breakers {'WHERE ' + where if where else ''}"
        " ORDER BY CASE WHEN until IS NULL THEN 1 ELSE 0 END, tenant, name LIMIT 1000",
        given,
    )
    return [(row["tenant"], row["name"], _state(row)) for row in rows]


def tenants_of(session: Session, tenant: str | None, name: str) -> list[str]:
    """The tenants that have an agent with a breaker, or one that calls a host with one, of that name."""
    own = "" if tenant is None else "AND tenant = :tenant"
    rows = session.rows(
        f"SELECT DISTINCT tenant FROM agent_limits WHERE breaker AND (agent = :name OR provider = :name) {own}"
        " ORDER BY tenant",
        {"name": name} | ({} if tenant is None else {"tenant": tenant}),
    )
    return [row["tenant"] for row in rows]


def not_closed(session: Session) -> dict[tuple[str, str], float]:
    """(tenant, name) of each breaker that is open or half-open: until when it is open."""
    rows = session.rows("SELECT tenant, name, until FROM breakers WHERE until IS NOT NULL")
    return {(row["tenant"], row["name"]): row["until"] for row in rows}


def open_by_name(session: Session) -> dict[str, int]:
    """Of each breaker that was ever touched: 1 if that of any tenant is not closed, else 0."""
    rows = session.rows(
        "SELECT name, max(CASE WHEN until IS NULL THEN 0 ELSE 1 END) AS n FROM breakers GROUP BY name LIMIT 10000"
    )
    return {row["name"]: int(row["n"]) for row in rows}


# ---------------------------------------------------------------------------------------------------------------
# what is counted


def call_row(tenant: str, name: str, process: str, span: float, now: float, calls: int, failed: int, usd: float) -> Row:
    """What this process saw of a breaker's calls, to be added to the span of time (in seconds) that ``now`` is in."""
    number = int(now // span)
    return {
        "tenant": tenant,
        "name": name,
        "process": process,
        "slot": number % _SLOTS,
        "at": number * span,
        "calls": calls,
        "failed": failed,
        "usd": usd,
    }


def window(session: Session, tenant: str, name: str, since: float) -> Window:
    """What all processes have counted since then."""
    row = session.one(
        "SELECT coalesce(sum(calls), 0) AS calls, coalesce(sum(failed), 0) AS failed, coalesce(sum(usd), 0.0) AS usd"
        f" FROM breaker_calls WHERE {_ONE} AND at > :since",
        {"tenant": tenant, "name": name, "since": since},
    )
    assert row is not None
    return Window(int(row["calls"]), int(row["failed"]), float(row["usd"]))


def forget_calls(session: Session, tenant: str, name: str) -> None:
    """It closed: what was counted before is judged."""
    session.execute(f"DELETE FROM breaker_calls WHERE {_ONE}", {"tenant": tenant, "name": name})


def forget_old_calls(session: Session, older: float) -> None:
    """What no window reaches, left by processes that are gone."""
    session.execute("DELETE FROM breaker_calls WHERE at < {now} - :older", {"older": older})


# ---------------------------------------------------------------------------------------------------------------
# the steps of an agent whose breaker is open


def call_back(session: Session, tenant: str, names: Iterable[str]) -> None:
    """Back to the backlog: every step of the agents of these breakers that is published and not claimed.

    Their limits are locked first, as a feed does that publishes: what it publishes later, it knows to be held back.
    Rows that others hold are being claimed, or settled; those calls are under way.
    """
    own, host = session.dialect.any_of("agent", "names"), session.dialect.any_of("provider", "names")
    agents = session.rows(
        f"SELECT agent FROM agent_limits WHERE tenant = :tenant AND ({own} OR {host}) ORDER BY agent {{for_update}}",
        {"tenant": tenant, "names": json.dumps(sorted(names))},
    )
    rung = (
        f"SELECT job_id, path FROM steps WHERE {_LIMITED} AND state = 'ready' AND dispatched_at IS NOT NULL"
        f" AND tenant = :tenant AND {session.dialect.any_of('agent', 'agents')} " + "{skip_locked}"
    )
    session.execute(
        "UPDATE steps SET dispatched_at = NULL, mark = NULL"
        f" WHERE state = 'ready' AND dispatched_at IS NOT NULL AND (job_id, path) IN ({rung})",
        {"tenant": tenant, "agents": json.dumps([row["agent"] for row in agents])},
    )


def held_back(session: Session, tenant: str, agent: str, limit: int) -> list[tuple[JobId, StepPath, str]]:
    """(job, path, ref) of steps that wait for the agent and have not been looked at since they became ready."""
    rows = session.rows(
        f"SELECT job_id, path, ref FROM steps s WHERE {_LIMITED} AND state = 'ready' AND dispatched_at IS NULL"
        " AND not_before IS NULL AND tenant = :tenant AND agent = :agent AND EXISTS (SELECT 1 FROM jobs j"
        " WHERE j.id = s.job_id AND j.state IN ('queued','running','waiting')) LIMIT :limit",
        {"tenant": tenant, "agent": agent, "limit": limit},
    )
    return [(JobId(row["job_id"]), StepPath(row["path"]), row["ref"]) for row in rows]


def holding(session: Session, tenant: str, agent: str) -> tuple[str, State] | None:
    """(name, state) of the breaker that holds the agent back, its own or its host's: the one that is open longest."""
    row = session.one(
        "SELECT b.* FROM agent_limits l JOIN breakers b ON b.tenant = l.tenant AND (b.name = l.agent OR b.name ="
        " l.provider) WHERE l.tenant = :tenant AND l.agent = :agent AND l.breaker AND b.until IS NOT NULL"
        " ORDER BY b.until DESC LIMIT 1",
        {"tenant": tenant, "agent": agent},
    )
    return None if row is None else (row["name"], _state(row))
