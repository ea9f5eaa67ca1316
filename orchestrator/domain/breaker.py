"""Circuit breakers: when an agent, or the host it calls, is left alone for a while. Pure: the store keeps the state.

closed → open: too many of its calls failed, it failed its checks in a row, it loops, or it spends too much. An open
breaker is half-open from ``until`` on: one call at a time is tried. A success closes it, a failure opens it again for
twice as long. Nothing has to happen for open → half-open: it is the clock's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from urllib.parse import urlsplit

from orchestrator.domain.outcome import Failure, FailureClass
from orchestrator.domain.workflow import Agent, Breaker, ChatAgent, HttpAgent

#: Failures that speak of the agent. A limit that names its wait is waited out; what else may be the input's fault.
COUNTED = frozenset(
    {FailureClass.TRANSIENT, FailureClass.TIMEOUT, FailureClass.RATE_LIMITED, FailureClass.INVALID_OUTPUT}
)
#: The provider of chat agents that name no ``base_url``: the worker's own endpoint.
DEFAULT_CHAT = "chat:default"
#: What a failure says in ``detail`` when no call was made: it speaks of nobody.
NOT_CALLED = {"called": False}


class Phase(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Signal(StrEnum):
    """What opened a breaker."""

    FAILURES = "failures"
    QUALITY = "quality"
    LOOP = "loop"
    SPEND = "spend"
    #: A person opened it.
    HAND = "hand"


@dataclass(frozen=True, slots=True)
class Trip:
    """Why it is open. ``kind`` is the failure class that ``on_failure`` is asked with."""

    signal: Signal
    kind: FailureClass
    says: str


@dataclass(frozen=True, slots=True)
class State:
    """Times in seconds on the database's clock. ``until`` is None while it is closed."""

    until: float | None = None
    #: Since when it has not been closed.
    opened_at: float | None = None
    closed_at: float | None = None
    cooldown: float = 0.0
    #: Openings since it was last closed.
    trips: int = 0
    #: Invalid outputs in a row.
    streak: int = 0
    trip: Trip | None = None

    def phase(self, now: float) -> Phase:
        if self.until is None:
            return Phase.CLOSED
        return Phase.OPEN if now < self.until else Phase.HALF_OPEN


@dataclass(frozen=True, slots=True)
class Call:
    """A call that ended. ``repeats``: in so many rounds of its loop, this one included, the answer was the same."""

    started_at: float
    failure: Failure | None = None
    usd: float = 0.0
    repeats: int = 1

    @property
    def failed(self) -> bool:
        return self.failure is not None and speaks_of_the_agent(self.failure)

    @property
    def invalid(self) -> bool:
        return self.failure is not None and self.failure.kind is FailureClass.INVALID_OUTPUT

    @property
    def counts(self) -> bool:
        """Whether it is one of the calls whose share of failures is taken."""
        return self.failure is None or self.failed


@dataclass(frozen=True, slots=True)
class Window:
    """What happened lately, over all workers, the calls that are judged included."""

    calls: int = 0
    failed: int = 0
    usd: float = 0.0


def speaks_of_the_agent(failure: Failure) -> bool:
    if failure.kind not in COUNTED or not failure.detail.get("called", True):
        return False
    return failure.kind is not FailureClass.RATE_LIMITED or failure.retry_after is None


def provider_of(agent: Agent) -> str | None:
    """The breaker that all agents share which call one host: ``host:api.example.com``; None for other kinds."""
    match agent:
        case HttpAgent(url=url) | ChatAgent(base_url=str(url)):
            host = _host(url)
            return f"host:{host}" if host else None
        case ChatAgent():
            return DEFAULT_CHAT
        case _:
            return None


def _host(url: str) -> str:
    try:
        return urlsplit(url).netloc.rpartition("@")[2].lower()
    except ValueError:  # no address at all; the call will say so
        return ""


def for_provider(policy: Breaker) -> Breaker:
    """A host is judged by its failures alone: what its agents make of it is theirs."""
    return policy.model_copy(update={"quality": None, "loop": None, "usd": None})


def seen_by_provider(call: Call) -> Call:
    """An answer that its agent's checks refuse is still the answer of a host that is well."""
    return Call(call.started_at, None if call.invalid else call.failure)


def opened_by_hand(state: State, by: str, seconds: float, now: float) -> State:
    """Left alone for ``seconds``, whatever it does; then one call is tried, as after any wait."""
    trip = Trip(Signal.HAND, FailureClass.TRANSIENT, f"{by} opened it")
    opened_at = now if state.opened_at is None else state.opened_at
    return State(now + seconds, opened_at, None, seconds, state.trips + 1, 0, trip)


def concerns(policy: Breaker, state: State, calls: Iterable[Call]) -> bool:
    """Whether ``decide`` could change anything: if not, nobody need count."""
    if state.until is not None or state.streak:
        return True
    return any(call.failed or _loops(policy, call) or (policy.usd is not None and call.usd > 0) for call in calls)


def decide(policy: Breaker, state: State, window: Window, calls: Iterable[Call], now: float) -> State:
    """The state after ``calls``, in their order."""
    for call in calls:
        state = _after(policy, state, window, call, now)
    return state


def _after(policy: Breaker, state: State, window: Window, call: Call, now: float) -> State:
    if state.until is not None:
        return _probed(policy, state, call, now)
    if call.started_at < (state.closed_at or 0.0):  # it began before the breaker closed: that is judged
        return state
    if call.failure is None:
        state = replace(state, streak=0)
    elif call.invalid:
        state = replace(state, streak=state.streak + 1)
    trip = _trip(policy, state, window, call)
    return state if trip is None else _opened(policy, state, trip, now)


def _probed(policy: Breaker, state: State, call: Call, now: float) -> State:
    """Only what began after the cool-down is evidence."""
    assert state.until is not None
    if call.started_at < state.until:
        return state
    trip = _trip(policy, state, Window(usd=call.usd), call)
    if trip is None and call.failed:
        assert call.failure is not None
        says = f"the call that was tried after the wait failed: {call.failure.kind.value}"
        trip = Trip(Signal.FAILURES, call.failure.kind, says)
    if trip is not None:
        return _opened(policy, state, trip, now)
    return State(closed_at=now) if call.failure is None else state


def _opened(policy: Breaker, state: State, trip: Trip, now: float) -> State:
    cooldown = min(policy.longest_cooldown, 2 * state.cooldown if state.trips else policy.cooldown)
    opened_at = now if state.opened_at is None else state.opened_at
    return State(now + cooldown, opened_at, None, cooldown, state.trips + 1, 0, trip)


def _trip(policy: Breaker, state: State, window: Window, call: Call) -> Trip | None:
    within = f"within {policy.window:g} s"
    if policy.quality is not None and call.invalid and state.streak >= policy.quality:
        return Trip(Signal.QUALITY, FailureClass.INVALID_OUTPUT, f"{state.streak} invalid outputs in a row")
    if _loops(policy, call):
        return Trip(Signal.LOOP, FailureClass.PERMANENT, f"the same answer in {call.repeats} rounds in a row")
    if policy.usd is not None and call.usd > 0 and window.usd > policy.usd:
        says = f"{window.usd:.6g} US dollars spent {within}, more than {policy.usd:g}"
        return Trip(Signal.SPEND, FailureClass.BUDGET, says)
    if call.failed and _too_many(policy, window):
        assert call.failure is not None
        return Trip(Signal.FAILURES, call.failure.kind, f"{window.failed} of {window.calls} calls failed {within}")
    return None


def _loops(policy: Breaker, call: Call) -> bool:
    return policy.loop is not None and call.repeats >= policy.loop


def _too_many(policy: Breaker, window: Window) -> bool:
    if policy.failures is None or window.calls < policy.calls:
        return False
    return window.failed * 100 >= int(policy.failures[:-1]) * window.calls
