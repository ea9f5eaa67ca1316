"""E9: each failure class maps to one action, and no second effect is ever guessed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.outcome import Failure, FailureClass
from orchestrator.domain.retry import (
    ALONE_LIMIT,
    Again,
    GiveUp,
    InDoubt,
    RetryAfter,
    after_loss,
    after_not_happened,
    backoff,
    decide,
)
from orchestrator.domain.workflow import Retry

DEFAULT = Retry()
AGAIN = {FailureClass.TRANSIENT, FailureClass.RATE_LIMITED, FailureClass.TIMEOUT}


@pytest.mark.parametrize("kind", list(FailureClass))
def test_each_class_has_one_action(kind: FailureClass) -> None:
    """E9: what is recoverable is tried again, everything else is given up at once with its own class."""
    decision = decide(Failure(kind, "x"), DEFAULT, 1, 0.5)
    match decision:
        case RetryAfter():
            assert kind in AGAIN
        case GiveUp(failure):
            assert kind not in AGAIN
            assert failure.kind is kind


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("answered", [True, False])
@pytest.mark.parametrize("honours_key", [True, False])
@pytest.mark.parametrize("effect", ["read", "reversible", "irreversible"])
def test_a_second_effect_is_never_guessed(effect: str, honours_key: bool, answered: bool, known: bool) -> None:
    failure = Failure(FailureClass.TIMEOUT, "x", outcome_known=known, answered=answered)
    decision = decide(failure, DEFAULT, 1, 0.5, effect=effect, honours_key=honours_key)  # type: ignore[arg-type]
    if effect == "read":
        assert isinstance(decision, RetryAfter)
    elif not known and (answered or not honours_key):
        assert isinstance(decision, InDoubt)
        assert (decision.failure.kind, decision.was) == (FailureClass.IN_DOUBT, failure)
    elif answered:
        assert isinstance(decision, GiveUp)
    else:
        assert isinstance(decision, RetryAfter)
        assert decision.new_key is known


def test_attempts_are_bounded() -> None:
    failure = Failure(FailureClass.TRANSIENT, "x")
    decisions = [decide(failure, DEFAULT, tries, 0.0) for tries in range(1, 6)]
    assert [isinstance(d, RetryAfter) for d in decisions] == [True, True, True, False, False]


def test_a_named_wait_is_kept_and_not_charged() -> None:
    failure = Failure(FailureClass.RATE_LIMITED, "x", retry_after=7.0)
    assert decide(failure, DEFAULT, 99, 0.5) == RetryAfter(7.0, new_key=True, charged=False)


def test_the_total_time_ends_all_tries() -> None:
    failure = Failure(FailureClass.TRANSIENT, "x", retry_after=10.0)
    assert isinstance(decide(failure, DEFAULT, 1, 0.5, total_left=9.0), GiveUp)
    assert isinstance(decide(failure, DEFAULT, 1, 0.5, total_left=11.0), RetryAfter)


@given(st.integers(1, 100), st.floats(0, 1, exclude_max=True), st.floats(0.001, 10), st.floats(0.001, 1000))
def test_backoff_stays_below_its_ceiling(tries: int, draw: float, initial: float, most: float) -> None:
    policy = Retry.model_validate({"initial": initial, "max": most})
    assert 0.0 <= backoff(policy, tries, draw) <= most
    fixed = policy.model_copy(update={"jitter": "none"})
    assert backoff(fixed, tries + 1, draw) >= backoff(fixed, tries, draw)


def test_losses_alone_end_a_step_and_losses_in_company_never_do() -> None:
    assert after_loss(begun=True, alone=0, effect="read", honours_key=True) == Again()
    assert after_loss(begun=True, alone=ALONE_LIMIT - 1, effect="read", honours_key=True) == Again()
    last = after_loss(begun=True, alone=ALONE_LIMIT, effect="read", honours_key=True)
    assert isinstance(last, GiveUp)
    assert last.failure.kind is FailureClass.WORKER_LOST
    doubt = after_loss(begun=True, alone=0, effect="irreversible", honours_key=False)
    assert isinstance(doubt, InDoubt)
    assert doubt.failure.kind is FailureClass.IN_DOUBT
    assert after_loss(begun=False, alone=0, effect="irreversible", honours_key=False) == Again()


def test_what_had_not_happened_is_a_known_failure_that_is_charged_already() -> None:
    late = Failure(FailureClass.TIMEOUT, "x", outcome_known=False)
    again = after_not_happened(late, DEFAULT, 1, 0.5, alone=0)
    assert isinstance(again, RetryAfter)
    assert again.new_key
    last = after_not_happened(late, DEFAULT, DEFAULT.attempts, 0.5, alone=0)
    assert isinstance(last, GiveUp)
    assert (last.failure.kind, last.failure.outcome_known) == (FailureClass.TIMEOUT, True)
    lost = Failure(FailureClass.WORKER_LOST, "x", outcome_known=False)
    assert after_not_happened(lost, DEFAULT, 99, 0.5, alone=0) == Again()
    assert isinstance(after_not_happened(lost, DEFAULT, 1, 0.5, alone=ALONE_LIMIT), GiveUp)
    said = Failure(FailureClass.IN_DOUBT, "x", outcome_known=False)
    assert after_not_happened(said, DEFAULT, 1, 0.5, alone=0) == Again()
    assert isinstance(after_not_happened(said, DEFAULT, DEFAULT.attempts, 0.5, alone=0), GiveUp)
