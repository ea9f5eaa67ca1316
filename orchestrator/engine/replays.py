"""Replay in bulk: by filter, at a rate, as an operation that outlives whoever runs it.

A scheduler's tick calls ``advance``. Each transaction holds the operation's row, so of two schedulers one works and the
other passes by, and replays a few letters whole: what a crash undoes, it undoes with its tokens and its counts. A
letter is replayed by the UPDATE that finds it open, so once, whoever tries.
"""

from __future__ import annotations

import logging
import math
from dataclasses import asdict
from typing import Any

from orchestrator.crashpoints import crashpoint
from orchestrator.domain.errors import Conflict, InvalidInput, NotFound, OrchestratorError, Unavailable
from orchestrator.domain.ids import JobId, StepPath
from orchestrator.domain.outcome import FailureClass
from orchestrator.domain.plan import JobRow, StepRow
from orchestrator.domain.saga import is_undoing
from orchestrator.engine import audit
from orchestrator.engine.context import Engine
from orchestrator.engine.dead_letters import may_replay, reopen
from orchestrator.store import jobs, operations
from orchestrator.store.operations import EVERYONE, LetterFilter, Operation
from orchestrator.store.session import Session

log = logging.getLogger("orchestrator.replays")

#: Letters in one transaction.
BATCH = 20
#: Seconds of a tick that go to replays: timers and leases wait meanwhile.
BUDGET = 0.5
#: Letters a second: by default, and at most.
DEFAULT_RATE = 10.0
MAX_RATE = 1000.0
#: Groups shown by a dry run.
SHOWN_GROUPS = 20


def groups(engine: Engine, wanted: LetterFilter, tenant: str | None) -> list[dict[str, Any]]:
    """Open dead letters by fingerprint (what failed alike), the largest group first; at most 1,000 groups."""
    check(wanted)
    return engine.db.run(lambda session: operations.groups(session, wanted, tenant), readonly=True)


def check(wanted: LetterFilter) -> None:
    """Raises ``InvalidInput`` for a filter that cannot mean anything."""
    reasons = [kind.value for kind in FailureClass]
    if wanted.reason is not None and wanted.reason not in reasons:
        raise InvalidInput(f"{wanted.reason!r} is no failure class.", mend=f"One of: {', '.join(reasons)}.")
    after, before = wanted.created_after, wanted.created_before
    if after is not None and before is not None and after >= before:
        raise InvalidInput("created_after is not before created_before: nothing is in between.")


def _explicit(wanted: LetterFilter, *, everything: bool) -> None:
    check(wanted)
    if wanted.empty and not everything:
        raise InvalidInput(
            "no filter would mean every open dead letter.",
            mend="Name a workflow, reason, fingerprint or time; or say all: true (--all).",
        )
    if everything and not wanted.empty:
        raise InvalidInput(
            f"all: true and a filter ({', '.join(wanted.given())}) contradict each other.", mend="Give one of the two."
        )


def preview(engine: Engine, wanted: LetterFilter, tenant: str | None, *, everything: bool = False) -> dict[str, Any]:
    """What a replay would do now: how many letters, and their groups. Writes nothing. Raises ``InvalidInput``."""
    _explicit(wanted, everything=everything)

    def work(session: Session) -> dict[str, Any]:
        found = operations.groups(session, wanted, tenant, SHOWN_GROUPS)
        return {"dry_run": True, "total": operations.count(session, wanted, tenant), "groups": found}

    return engine.db.run(work, readonly=True)


def start(
    engine: Engine,
    wanted: LetterFilter,
    tenant: str | None,
    *,
    everything: bool = False,
    rate: float = DEFAULT_RATE,
    stop_on_same_error: bool = False,
    by: str,
    note: str | None = None,
) -> dict[str, Any]:
    """Begins to replay every open letter that matches now; later ones are not its business. ``rate``: letters a second.

    Raises ``InvalidInput``, ``NotFound`` (nothing matches), ``Conflict`` (a bulk replay is running here).
    """
    _explicit(wanted, everything=everything)
    if not (math.isfinite(rate) and 0 < rate <= MAX_RATE):
        raise InvalidInput(f"a rate of {rate:g} letters a second is not above 0 and at most {MAX_RATE:g}.")
    row_id = engine.clock.new_id()

    def work(session: Session) -> Operation:
        _alone(session, tenant)
        total = operations.count(session, wanted, tenant)
        if total == 0:
            raise NotFound("no open dead letter matches this filter.", mend="Look: orchestrator dead-letters groups.")
        mine = operations.insert(
            session,
            row_id,
            wanted,
            tenant=tenant,
            rate=rate,
            stop_on_same_error=stop_on_same_error,
            total=total,
            by=by,
            note=note,
        )
        if not mine:
            _alone(session, tenant)
            raise Conflict("another bulk replay began at the same moment.", mend="Look: orchestrator operations list.")
        data = {"filter": wanted.given(), "total": total, "rate": rate, "stop_on_same_error": stop_on_same_error}
        audit.note(engine, session, "replay.started", row_id, tenant=tenant or EVERYONE, by=by, why=note, data=data)
        found = operations.get(session, row_id)
        assert found is not None
        return found

    return view(engine.db.run(work))


def _alone(session: Session, tenant: str | None) -> None:
    """One at a time: two rates would add up, and nobody could say which of the two did what."""
    for other in operations.running(session, tenant):
        left = other.total - other.replayed - other.skipped
        raise Conflict(
            f"bulk replay {other.id} of {other.created_by} is running here; about {left} letters are left.",
            mend=f"Wait for it, or: orchestrator operations cancel {other.id}",
        )


def view(operation: Operation, failed_again: int | None = None) -> dict[str, Any]:
    """An operation as the outside sees it."""
    values = asdict(operation)
    for name in ("tokens", "refilled_at"):
        del values[name]
    left = operation.total - operation.replayed - operation.skipped if operation.state == "running" else 0
    given = operation.filter.given()
    return {**values, "filter": given or {"all": True}, "left": max(0, left), "failed_again": failed_again}


def show(engine: Engine, row_id: str, tenant: str | None = None) -> dict[str, Any]:
    """One operation with its progress; ``failed_again``: replayed jobs that failed since. Raises ``NotFound``."""

    def work(session: Session) -> dict[str, Any]:
        return view(_own(session, row_id, tenant), operations.failed_again(session, row_id))

    return engine.db.run(work, readonly=True)


def listing(
    engine: Engine, tenant: str | None, *, cursor: str | None = None, limit: int = 50
) -> tuple[list[dict[str, Any]], str | None]:
    """A page, newest first, and the next page's cursor."""
    found = engine.db.run(lambda session: operations.listing(session, tenant, cursor, limit + 1), readonly=True)
    return [view(one) for one in found[:limit]], found[limit - 1].id if len(found) > limit else None


def cancel(
    engine: Engine, row_id: str, *, by: str, note: str | None = None, tenant: str | None = None
) -> dict[str, Any]:
    """Ends an operation; what it has replayed stays replayed. Again is no error.

    Raises ``NotFound``, or ``Conflict`` if it ended in another way.
    """

    def work(session: Session) -> Operation:
        found = _own(session, row_id, tenant)
        if operations.end(session, row_id, "cancelled", by=by, because=note):
            where = found.tenant or EVERYONE
            audit.note(engine, session, "replay.cancelled", row_id, tenant=where, by=by, why=note)
        return _own(session, row_id, tenant)

    found = engine.db.run(work)
    if found.state != "cancelled":
        raise Conflict(f"operation {row_id} is {found.state} and cannot be cancelled.")
    return view(found)


def _own(session: Session, row_id: str, tenant: str | None) -> Operation:
    found = operations.get(session, row_id)
    if found is None or (tenant is not None and found.tenant != tenant):
        raise NotFound(f"no operation {row_id}.", mend="List them: orchestrator operations list.")
    return found


# ---------------------------------------------------------------------------------------------------------------
# the scheduler's part


def advance(engine: Engine, seconds: float = BUDGET) -> int:
    """Does what is due of every running replay, for at most about ``seconds``; answers how many letters it replayed."""
    until = engine.clock.monotonic() + seconds
    done = 0
    for operation in engine.db.run(operations.running, readonly=True):
        first = True
        while engine.clock.monotonic() < until:
            count = _batch(engine, operation.id, look=first)
            if count is None:
                break
            done += count
            first = False
    return done


def _batch(engine: Engine, row_id: str, *, look: bool) -> int | None:
    """One transaction; how many letters it replayed, or None when nothing is due now.

    ``look``: first see whether the same error came back, which costs a look at all that was replayed.
    """
    try:
        return _turn(engine, row_id, look=look, apart=False)
    except Unavailable:
        raise
    except OrchestratorError as error:
        log.warning("replay.one_by_one", extra={"operation": row_id, "error": str(error)})
        return _turn(engine, row_id, look=look, apart=True)


def _turn(engine: Engine, row_id: str, *, look: bool, apart: bool) -> int | None:
    """``apart``: each letter stands alone, and one that cannot be replayed is passed over."""
    ready: list[StepRow] = []

    def work(session: Session) -> int | None:
        ready.clear()
        operation = operations.hold(session, row_id)
        if operation is None or (look and _has_stopped(engine, session, operation)):
            return None
        now = session.now()
        tokens = operation.allowance(now)
        if tokens < 1:
            return None
        letters = operations.candidates(session, operation, min(BATCH, int(tokens)))
        if not letters:
            _end(engine, session, operation, "done")
            return None
        locked = jobs.lock(session, {job for job, _ in letters.values()})  # jobs first: the lock order
        failed = _one_a_job(letters, locked)
        replay = _one_by_one if apart else _together
        opened = replay(engine, session, operation, failed)
        ready.extend(row for rows in opened.values() for row in rows)
        for letter in letters.keys() - opened.keys():
            operations.pass_over(session, letter, operation)
        done, left = len(opened), tokens - len(letters)
        operations.progress(session, row_id, replayed=done, skipped=len(letters) - done, tokens=left, now=now)
        return done

    count = engine.db.run(work)
    engine.feed.committed([], ready)
    return count


#: Letters, each with its job and where it stands.
Parked = dict[str, tuple[JobRow, StepPath]]


def _one_a_job(letters: dict[str, tuple[JobId, StepPath]], locked: dict[JobId, JobRow]) -> Parked:
    """What can be replayed now: of a job with several letters its own, which takes its stuck compensations along."""
    chosen: dict[JobId, str] = {}
    for letter, (job, path) in letters.items():
        if job in locked and may_replay(locked[job], path) and (job not in chosen or not is_undoing(path)):
            chosen[job] = letter
    return {letter: (locked[job], letters[letter][1]) for job, letter in chosen.items()}


#: The steps that each replayed letter made ready.
Opened = dict[str, list[StepRow]]


def _together(engine: Engine, session: Session, operation: Operation, failed: Parked) -> Opened:
    opened: Opened = {}
    for letter in sorted(operations.take_letters(session, failed, operation)):
        crashpoint("dead_letter.replay")
        job, path = failed[letter]
        opened[letter] = reopen(engine, session, job, at=path)
    return opened


def _one_by_one(engine: Engine, session: Session, operation: Operation, failed: Parked) -> Opened:
    opened: Opened = {}
    for letter, parked in failed.items():
        try:
            with operations.apart(session):
                opened |= _together(engine, session, operation, {letter: parked})
        except Unavailable:
            raise
        except OrchestratorError as error:
            log.warning("replay.skipped", extra={"letter": letter, "error": str(error)})
    return opened


def _has_stopped(engine: Engine, session: Session, operation: Operation) -> bool:
    found = operations.same_error(session, operation) if operation.stop_on_same_error else None
    if found is None:
        return False
    because = f"job {found['job_id']} failed again of the same ({found['fingerprint']}): {found['message']}"
    _end(engine, session, operation, "stopped", because)
    return True


def _end(engine: Engine, session: Session, operation: Operation, state: str, because: str | None = None) -> None:
    operations.end(session, operation.id, state, because=because)
    data = {"replayed": operation.replayed, "skipped": operation.skipped}
    audit.note(
        engine,
        session,
        f"replay.{state}",
        operation.id,
        tenant=operation.tenant or EVERYONE,
        by=operation.created_by,
        why=because,
        data=data,
    )
    log.info("replay.ended", extra={"operation": operation.id, "state": state, **data})
