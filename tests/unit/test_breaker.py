"""When a breaker opens and closes: the pure rule, against what must hold for any calls in any order."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from orchestrator.domain.breaker import (
    DEFAULT_CHAT,
    NOT_CALLED,
    Call,
    Phase,
    Signal,
    State,
    Window,
    concerns,
    decide,
    for_provider,
    provider_of,
    seen_by_provider,
    speaks_of_the_agent,
)
from orchestrator.domain.outcome import Failure, FailureClass
from orchestrator.domain.workflow import Agent, Breaker

NOW = 1000.0
SPEAKS = [FailureClass.TRANSIENT, FailureClass.TIMEOUT, FailureClass.RATE_LIMITED, FailureClass.INVALID_OUTPUT]

failures = st.one_of(
    st.none(), st.builds(Failure, st.sampled_from(FailureClass), st.just("no"), retry_after=st.none() | st.just(5.0))
)
calls = st.builds(Call, st.floats(0, NOW), failures, st.sampled_from([0.0, 0.1, 3.0]), st.sampled_from([1, 1, 1, 2, 3]))
policies = st.builds(
    Breaker,
    failures=st.sampled_from([None, "1%", "50%", "100%"]),
    calls=st.integers(1, 5),
    quality=st.none() | st.integers(1, 4),
    loop=st.none() | st.integers(2, 3),
    usd=st.none() | st.sampled_from([0.05, 1.0]),
)
windows = st.integers(0, 10).flatmap(
    lambda n: st.builds(Window, st.just(n), st.integers(0, n), st.sampled_from([0.0, 0.1, 5.0]))
)
states = st.one_of(
    st.builds(State, streak=st.integers(0, 3), closed_at=st.none() | st.floats(0, NOW)),
    st.builds(
        State,
        until=st.floats(0, 2 * NOW),
        opened_at=st.just(1.0),
        cooldown=st.sampled_from([30.0, 500.0]),
        trips=st.integers(1, 5),
    ),
)


@given(policies, states, windows, st.lists(calls, max_size=6))
def test_a_batch_is_judged_like_its_calls_one_by_one(
    policy: Breaker, state: State, window: Window, batch: list[Call]
) -> None:
    one_by_one = state
    for call in batch:
        one_by_one = decide(policy, one_by_one, window, [call], NOW)
    assert decide(policy, state, window, batch, NOW) == one_by_one


@given(policies, states, windows, st.lists(calls, max_size=6))
def test_what_does_not_concern_it_changes_nothing(
    policy: Breaker, state: State, window: Window, batch: list[Call]
) -> None:
    if not concerns(policy, state, batch):
        assert decide(policy, state, window, batch, NOW) == state


@given(policies, states, windows, calls)
def test_it_opens_for_a_reason_and_not_for_longer_than_its_cap(
    policy: Breaker, state: State, window: Window, call: Call
) -> None:
    after = decide(policy, state, window, [call], NOW)
    if after.trips <= state.trips:
        return
    assert after.trip is not None
    assert after.trip.says
    assert after.until == NOW + after.cooldown
    assert policy.cooldown <= after.cooldown <= policy.longest_cooldown
    assert after.opened_at == (NOW if state.opened_at is None else state.opened_at)
    match after.trip.signal:
        case Signal.FAILURES | Signal.QUALITY:
            assert call.failed
        case Signal.LOOP:
            assert policy.loop is not None
            assert call.repeats >= policy.loop
        case Signal.SPEND:
            assert policy.usd is not None
            assert window.usd + call.usd > policy.usd


@given(policies, states, windows, calls)
def test_it_closes_only_by_the_success_of_a_call_that_began_after_the_wait(
    policy: Breaker, state: State, window: Window, call: Call
) -> None:
    after = decide(policy, state, window, [call], NOW)
    if state.until is not None and after.until is None:
        assert call.failure is None
        assert call.started_at >= state.until
    if state.until is not None and call.started_at < state.until:
        assert after == state


@given(policies, st.lists(calls, max_size=20))
def test_failures_that_are_not_the_agents_never_open_it(policy: Breaker, batch: list[Call]) -> None:
    innocent = [call for call in batch if not call.failed and call.repeats < 2 and not call.usd]
    assert decide(policy, State(), Window(10, 10, 9.0), innocent, NOW).until is None


@pytest.mark.parametrize("kind", list(FailureClass))
def test_which_classes_speak_of_the_agent(kind: FailureClass) -> None:
    assert speaks_of_the_agent(Failure(kind, "x")) is (kind in SPEAKS)
    waits = Failure(kind, "x", retry_after=3.0)
    assert speaks_of_the_agent(waits) is (kind in SPEAKS and kind is not FailureClass.RATE_LIMITED)
    assert not speaks_of_the_agent(Failure(kind, "x", detail=NOT_CALLED))


def failed(kind: FailureClass = FailureClass.TRANSIENT, at: float = NOW) -> Call:
    return Call(at, Failure(kind, "x"))


def test_the_cool_down_doubles_up_to_its_cap() -> None:
    policy = Breaker.model_validate({"calls": 1, "cooldown": "30s", "longest_cooldown": "100s"})
    state, now, waits = State(), NOW, []
    for _ in range(4):
        state = decide(policy, state, Window(1, 1), [failed(at=now)], now)
        waits.append(state.cooldown)
        assert state.until is not None
        assert (state.phase(state.until - 1), state.phase(state.until)) == (Phase.OPEN, Phase.HALF_OPEN)
        now = state.until
    assert waits == [30, 60, 100, 100]
    closed = decide(policy, state, Window(), [Call(now)], now)
    assert closed == State(closed_at=now)
    assert decide(policy, closed, Window(1, 1), [failed(at=now)], now).cooldown == 30


def test_a_hosts_answer_that_a_check_refuses_is_an_answer() -> None:
    policy = for_provider(Breaker(calls=1))
    for kind, opens in ((FailureClass.INVALID_OUTPUT, False), (FailureClass.TRANSIENT, True)):
        call = seen_by_provider(failed(kind))
        assert (decide(policy, State(), Window(1, 1), [call], NOW).until is not None) is opens
    assert seen_by_provider(Call(1.0, None, 5.0, 3)) == Call(1.0)


def agent(**given: Any) -> Agent:
    made: Agent = TypeAdapter(Agent).validate_python(given)
    return made


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"kind": "http", "url": "https://API.example.com/x?y=1"}, "host:api.example.com"),
        ({"kind": "http", "url": "http://me:secret@[::1]:8080/"}, "host:[::1]:8080"),
        ({"kind": "http", "url": "nonsense"}, None),
        ({"kind": "http", "url": "http://[::1/x"}, None),
        ({"kind": "chat", "prompt": "x", "base_url": "https://llm.example/v1"}, "host:llm.example"),
        ({"kind": "chat", "prompt": "x"}, DEFAULT_CHAT),
        ({"kind": "scripted"}, None),
        ({"kind": "python", "target": "a:b"}, None),
    ],
)
def test_the_provider_is_the_host_without_who_asks(given: dict[str, Any], name: str | None) -> None:
    assert provider_of(agent(**given)) == name


@pytest.mark.parametrize(
    "wrong",
    [
        {"failures": "0%"},
        {"failures": "101%"},
        {"failures": 0.5},
        {"window": "2h"},
        {"window": "10ms"},
        {"cooldown": "0s"},
        {"cooldown": "1h", "longest_cooldown": "1m"},
        {"loop": 1},
        {"usd": 0},
        {"calls": 0},
    ],
)
def test_a_policy_that_means_nothing_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Breaker.model_validate(wrong)
