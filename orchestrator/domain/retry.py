"""What to do about a failed attempt: one pure function from (failure, policy, tries) to a decision."""

from __future__ import annotations

from dataclasses import dataclass, replace

from orchestrator.domain.outcome import Failure, FailureClass
from orchestrator.domain.workflow import Effect, Retry

#: Losses of a worker suffered with others prove nothing; after this many a step runs alone.
SUSPECT_AFTER = 2
#: Losses suffered alone before a step is given up.
ALONE_LIMIT = 5


@dataclass(frozen=True, slots=True)
class RetryAfter:
    """Try again ``delay`` seconds from now; ``charged`` False leaves the policy's count alone."""

    delay: float
    new_key: bool
    charged: bool = True


@dataclass(frozen=True, slots=True)
class GiveUp:
    failure: Failure


@dataclass(frozen=True, slots=True)
class InDoubt:
    """It may have taken effect: ``failure`` says so, ``was`` is how the call failed. Somebody has to look."""

    failure: Failure
    was: Failure


def in_doubt(was: Failure) -> InDoubt:
    said = f"it may have taken effect: {was.message}"
    return InDoubt(Failure(FailureClass.IN_DOUBT, said, outcome_known=False, detail={"was": was.kind.value}), was)


def backoff(policy: Retry, tries: int, draw: float) -> float:
    """Seconds before try ``tries + 1``: exponential with full jitter.

    https://aws.amazon.com/builders-library/timeouts-retries-and-backoff-with-jitter/ ; ``draw`` is in [0, 1).
    """
    ceiling = min(policy.max, policy.initial * 2.0 ** min(tries - 1, 62))
    return ceiling * draw if policy.jitter == "full" else ceiling


def decide(
    failure: Failure,
    policy: Retry,
    tries: int,
    draw: float,
    *,
    effect: Effect = "read",
    honours_key: bool = True,
    total_left: float | None = None,
) -> RetryAfter | GiveUp | InDoubt:
    """The action for a failure after ``tries`` charged tries (this one included).

    A rate limit that names its wait is waited out without being charged. A call whose outcome is unknown is repeated
    only if it reads or honours its key; one that answered, only if it reads: a second effect is never guessed.
    """
    safe = effect == "read" or (honours_key and not failure.answered)
    if not safe and not failure.outcome_known:
        return in_doubt(failure)
    answered_effect = failure.answered and effect != "read"
    free = failure.kind is FailureClass.RATE_LIMITED and failure.retry_after is not None and not failure.answered
    if failure.kind not in policy.on or answered_effect or (tries >= policy.attempts and not free):
        return in_doubt(failure) if failure.kind is FailureClass.IN_DOUBT else GiveUp(failure)
    delay = failure.retry_after if failure.retry_after is not None else backoff(policy, tries, draw)
    if total_left is not None and delay >= total_left:
        return GiveUp(failure)
    return RetryAfter(delay, new_key=failure.outcome_known, charged=not free)


@dataclass(frozen=True, slots=True)
class Again:
    """A lost worker's step goes back to work."""


def after_loss(*, begun: bool, alone: int, effect: Effect, honours_key: bool) -> Again | GiveUp | InDoubt:
    """The action for a step whose worker died; ``alone`` counts losses it suffered alone, this one included."""
    if begun and effect != "read" and not honours_key:
        said = "its worker died in mid-call and the agent ignores the idempotency key"
        return in_doubt(Failure(FailureClass.WORKER_LOST, said, outcome_known=False))
    if alone >= ALONE_LIMIT:
        return GiveUp(
            Failure(
                FailureClass.WORKER_LOST,
                f"it took its process down {alone} times while running alone",
                outcome_known=False,
            )
        )
    return Again()


def after_not_happened(
    was: Failure, policy: Retry, tries: int, draw: float, *, alone: int
) -> RetryAfter | Again | GiveUp:
    """The action once it is known that a doubtful call had no effect: a known failure like any other, charged already.

    A worker's loss is charged to no policy; only one that happens again and again, alone, ends it.
    """
    known = replace(was, outcome_known=True, answered=False)
    if was.kind is FailureClass.WORKER_LOST:
        return GiveUp(known) if alone >= ALONE_LIMIT else Again()
    if was.kind is FailureClass.IN_DOUBT:  # said by the agent itself
        return GiveUp(known) if tries >= policy.attempts else Again()
    decision = decide(known, policy, tries, draw)
    return GiveUp(known) if isinstance(decision, InDoubt) else decision
