"""Circuit breakers: what settled attempts say of their agents, written in the settle's own transaction.

An agent without a breaker costs nothing here. One with a breaker costs a look at its row; a row is locked only when
something is to be written: a failure of it, the success that ends a row of them, what a half-open breaker waits for.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from orchestrator.domain import breaker
from orchestrator.domain.advance import Advance
from orchestrator.domain.breaker import Call, State, Window
from orchestrator.domain.errors import InvalidInput, NotFound
from orchestrator.domain.ids import StepPath, child
from orchestrator.domain.outcome import Stored
from orchestrator.domain.plan import Kind, Plan, StepRow
from orchestrator.domain.result import AttemptRecord
from orchestrator.domain.states import StepState
from orchestrator.domain.workflow import Breaker
from orchestrator.engine import audit
from orchestrator.engine.context import Engine
from orchestrator.store import breakers as sql
from orchestrator.store import steps
from orchestrator.store.changes import Row
from orchestrator.store.feed import queues_with_backlog
from orchestrator.store.session import Session

#: Seconds that a person may leave an agent alone.
LONGEST_BY_HAND = 7 * 86_400.0
#: Outcomes of attempts in which the agent had its say.
_JUDGED = ("succeeded", "failed")


@dataclass(slots=True)
class _Seen:
    """What one transaction saw of one breaker."""

    policy: Breaker
    calls: list[Call] = field(default_factory=list)

    def window(self) -> Window:
        counted = [call for call in self.calls if call.counts]
        return Window(len(counted), sum(call.failed for call in counted), sum(call.usd for call in self.calls))


def judge(engine: Engine, session: Session, advances: Iterable[Advance], now: float) -> list[Row]:
    """Opens and closes what follows from the attempts of ``advances``; answers what is to be counted."""
    seen = _seen(session, advances)
    rows = []
    opened: dict[str, list[str]] = defaultdict(list)
    for (tenant, name), what in sorted(seen.items()):
        lately = what.window()
        if lately.calls or lately.usd:
            span = what.policy.window / sql.SPANS
            counts = (lately.calls, lately.failed, lately.usd)
            rows.append(sql.call_row(tenant, name, engine.process, span, now, *counts))
        if _opens(session, tenant, name, what, lately, now):
            opened[tenant].append(name)
    for tenant, names in opened.items():  # once all rows of breakers are locked: the lock order
        sql.call_back(session, tenant, names)
    return rows


def _opens(session: Session, tenant: str, name: str, seen: _Seen, lately: Window, now: float) -> bool:
    """Writes the breaker's next state, if it has another; whether that is open."""
    policy, state = seen.policy, sql.load(session, tenant, name)
    if not breaker.concerns(policy, state, seen.calls):
        return False
    before = sql.window(session, tenant, name, now - policy.window)
    window = Window(before.calls + lately.calls, before.failed + lately.failed, before.usd + lately.usd)
    if breaker.decide(policy, state, window, seen.calls, now) == state:
        return False
    locked = sql.lock(session, tenant, name)
    state = breaker.decide(policy, locked, window, seen.calls, now)
    if state == locked:
        return False
    sql.save(session, tenant, name, state)
    if state.until is None and locked.until is not None:
        sql.forget_calls(session, tenant, name)
    return state.until is not None


def _seen(session: Session, advances: Iterable[Advance]) -> dict[tuple[str, str], _Seen]:
    found: dict[tuple[str, str], _Seen] = {}
    for advance in advances:
        tenant = advance.job.tenant
        for record in advance.attempts:
            agent = advance.plan.agents.get(record.agent or "")
            if agent is None or agent.breaker is None or record.outcome not in _JUDGED:
                continue
            call = _call(session, advance, record, agent.breaker)
            found.setdefault((tenant, record.agent or ""), _Seen(agent.breaker)).calls.append(call)
            provider = breaker.provider_of(agent) if agent.breaker.provider else None
            if provider is not None:
                host = found.setdefault((tenant, provider), _Seen(breaker.for_provider(agent.breaker)))
                host.calls.append(breaker.seen_by_provider(call))
    return found


def _call(session: Session, advance: Advance, record: AttemptRecord, policy: Breaker) -> Call:
    repeats = 1
    row = advance.rows.get(record.path)
    if policy.loop is not None and record.outcome == "succeeded" and row is not None:
        repeats = _repeats(session, advance.plan, row, policy.loop)
    return Call(record.started_at or advance.now, record.failure, record.usage.cost_usd, repeats)


# ---------------------------------------------------------------------------------------------------------------
# loops


def _repeats(session: Session, plan: Plan, row: StepRow, most: int) -> int:
    """In how many rounds of its loop, the last ``most`` of them, the agent gave the answer it has given now."""
    places = earlier_rounds(plan, row, most)
    if not places:
        return 1
    rows = {other.path: other for other in steps.load(session, row.job_id, places)}
    count = 1
    for path in places:
        other = rows.get(path)
        if other is None or other.agent != row.agent or other.state is not StepState.SUCCEEDED:
            break
        if _digest(other.output) != _digest(row.output):
            break
        count += 1
    return count


def earlier_rounds(plan: Plan, row: StepRow, most: int) -> list[StepPath]:
    """The same place in the ``most - 1`` rounds before, newest first; none when there are not so many.

    A reviewer is left out: the same verdict on the same work is what it is for.
    """
    chain = plan.chain(row.path, row.ref)
    for (path, ref), (outer, outer_ref) in pairwise(chain):
        if plan.nodes[outer_ref].kind is not Kind.SUPERVISE:
            continue
        number = int(path.rpartition("-")[2])
        inner = row.path[len(path) + 1 :]
        if number < most or inner == plan.nodes[ref].names[-1]:
            return []
        return [
            StepPath(f"{child(outer, f'round-{earlier}')}/{inner}") for earlier in range(number - 1, number - most, -1)
        ]
    return []


def _digest(value: Stored | None) -> str | None:
    """Equal for equal answers: large ones are named by the hash of their content."""
    return None if value is None else value.ref or value.text


# ---------------------------------------------------------------------------------------------------------------
# for people


def listing(engine: Engine, tenant: str | None) -> list[dict[str, Any]]:
    """Every breaker that ever had something to keep, those that are not closed first; at most 1,000."""

    def work(session: Session) -> list[dict[str, Any]]:
        now = session.now()
        return [view(of, name, state, now) for of, name, state in sql.listing(session, tenant)]

    return engine.db.run(work, readonly=True)


def reset(
    engine: Engine, name: str, *, by: str, note: str | None = None, tenant: str | None = None
) -> list[dict[str, Any]]:
    """Closes the breaker (of every tenant that has one of that name, unless one is given). Again is no error.

    Raises ``NotFound``.
    """

    def work(session: Session) -> list[dict[str, Any]]:
        known = [of for of, _, _ in sql.listing(session, tenant, name)]
        if not known:
            raise NotFound(f"no breaker {name!r} has anything to reset.", mend="List them: orchestrator breakers list.")
        now = session.now()
        return [view(of, name, _reset(engine, session, of, name, now, by=by, note=note), now) for of in sorted(known)]

    done = engine.db.run(work)
    engine.feed.wake(engine.db.run(queues_with_backlog, readonly=True))
    return done


def open_(
    engine: Engine, name: str, seconds: float, *, by: str, note: str | None = None, tenant: str | None = None
) -> list[dict[str, Any]]:
    """Leaves an agent, or a host, alone for ``seconds`` (at most 7 days): work goes to its fallback, or waits.

    In every tenant that has one of that name, unless one is given. Raises ``NotFound``, ``InvalidInput``.
    """
    if not 0 < seconds <= LONGEST_BY_HAND:
        raise InvalidInput(f"{seconds:g} s is not above 0 and at most {LONGEST_BY_HAND:g}.")

    def work(session: Session) -> list[dict[str, Any]]:
        known = sql.tenants_of(session, tenant, name)
        if not known:
            raise NotFound(
                f"no agent or host {name!r} with a breaker was submitted here.",
                mend="Declare it: breaker: {} on the agent. List them: orchestrator breakers list.",
            )
        now = session.now()
        states = {of: breaker.opened_by_hand(sql.lock(session, of, name), by, seconds, now) for of in known}
        for of, state in states.items():
            sql.save(session, of, name, state)
            audit.note(engine, session, "breaker.opened", name, tenant=of, by=by, why=note, data={"seconds": seconds})
        for of in known:  # once all rows of breakers are locked: the lock order
            sql.call_back(session, of, [name])
        return [view(of, name, state, now) for of, state in states.items()]

    done = engine.db.run(work)
    engine.feed.wake(engine.db.run(queues_with_backlog, readonly=True))
    return done


def _reset(engine: Engine, session: Session, tenant: str, name: str, now: float, *, by: str, note: str | None) -> State:
    state = sql.lock(session, tenant, name)
    if state.until is None and not state.streak:
        return state
    closed = State(closed_at=now)
    sql.save(session, tenant, name, closed)
    sql.forget_calls(session, tenant, name)
    data = {"was": state.phase(now).value, "tripped_by": _trip(state)}
    audit.note(engine, session, "breaker.reset", name, tenant=tenant, by=by, why=note, data=data)
    return closed


def view(tenant: str, name: str, state: State, now: float) -> dict[str, Any]:
    """A breaker as the outside sees it."""
    return {
        "name": name,
        "kind": "provider" if ":" in name else "agent",
        "tenant": tenant,
        "state": state.phase(now).value,
        "opened_at": state.opened_at,
        "until": state.until,
        "closed_at": state.closed_at,
        "cooldown": state.cooldown if state.until is not None else None,
        "trips": state.trips,
        "streak": state.streak,
        "tripped_by": _trip(state),
    }


def _trip(state: State) -> dict[str, str] | None:
    trip = state.trip
    return None if trip is None else {"signal": trip.signal.value, "class": trip.kind.value, "says": trip.says}
