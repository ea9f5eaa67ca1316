"""Runs the crash matrix: a few installations side by side, each takes one case after the other.

A case: arm a process, submit a job, see the point reached, let the parent do its part, and hold the job's end, its
output, the agents' ledger and every invariant against what was promised.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import pytest

from orchestrator.domain.errors import Conflict
from orchestrator.domain.ids import JobId
from orchestrator.domain.workflow import Workflow
from orchestrator.engine import dead_letters, decisions
from orchestrator.engine.submit import Submission, submit
from tests.faults.cases import LOST_MESSAGE, SEEN_DYING, Case
from tests.support.cluster import Cluster
from tests.support.shapes import Shape, shape

#: A worker runs so many members of a fan-out at once in these shapes.
IN_FLIGHT = 3


@dataclass(slots=True)
class Outcome:
    """What a case came to. ``recovery``: seconds from the kill until work went on, None where nothing was killed."""

    recovery: float | None
    calls: int
    #: Calls of a run in which nothing dies.
    expected: int
    #: Calls of steps that had settled.
    doubled: int


class Cell:
    """One installation: a scheduler, and a worker that is replaced as it dies."""

    def __init__(self, cluster: Cluster) -> None:
        self.it = cluster
        self.it.scheduler()
        self.worker = self.it.worker()

    def run(self, case: Case) -> Outcome:
        what = shape(case.shape, self.it.ledger.file, case.how.variant)
        match case.how.where:
            case "submit":
                job, died = self._at_submit(case, what), None
            case "replay":
                job, died = self._at_replay(case, what), None
            case "decide":
                job, died = self._at_decide(case, what), None
            case "worker":
                job, died = self._at_work(case, what)
        self._end(job, case)
        view = self.it.job(job)
        assert (view["state"], view["output"]) == ("succeeded", what.output), view
        assert view["run"] == (2 if case.how.variant == "permanent" or self._is_bug(case) else 1)
        kills = 1 if case.how.where == "worker" else 0
        counted = self.it.ledger.check([job], kills=kills)
        expected = self._check_calls(case, what, counted)
        recovery = None if died is None else self._recovery(job, died)
        self.it.check()
        doubled = self.it.called_again()
        assert doubled == [], "a step that had settled was called again"
        return Outcome(recovery, counted["calls"], expected, len(doubled))

    def _is_bug(self, case: Case) -> bool:
        """An exception in the middle of a call is the agent's own: the job is parked, and a person replays it."""
        return case.point == "call.during" and case.kind == "raise"

    def _check_calls(self, case: Case, what: Shape, counted: dict[str, int]) -> int:
        """Calls of a clean run."""
        again = {"transient": 1, "permanent": 1, "doubt": 1}.get(case.how.variant, 0)
        most = IN_FLIGHT if case.how.where == "worker" else 0
        again -= 1 if self._is_bug(case) else 0  # that call is never made: it fails on the way
        expected = what.calls + again
        assert expected <= counted["calls"] <= expected + most + 1, counted
        if case.shape == "sequence" and not case.how.repeats:
            assert counted["repeats"] == 0, "an answer that was not lost was asked for again"
        assert counted["repeats"] <= most, counted
        return expected

    # the three places

    def _at_submit(self, case: Case, what: Shape) -> JobId:
        """The client never hears an answer, and sends the same again: P2."""
        key = f"{case}-{self.it.clock.new_id()}"
        child = self.it.start("submit", case.armed, workflow=what.workflow, input=what.input, key=key, primed=True)
        code = child.wait_exit()
        child.wait_event("crashpoint.reached", point=case.point)
        assert code == (137 if case.kind == "kill" else 1)
        again = submit(self.it.engine, Submission(Workflow.model_validate(what.workflow), what.input, key=key))
        assert again.created == (case.point != "submit.after_commit")
        return again.job.id

    def _at_work(self, case: Case, what: Shape) -> tuple[JobId, float | None]:
        armed = self.worker
        if case.how.variant == "slow":  # the point is reached all the time: what matters is a call in flight
            job = self.it.submit(what.workflow, what.input)
            self.it.wait_for(lambda: any(c.ended is None for c in self.it.ledger.calls([job])), "a call to begin")
            armed.arm(case.armed)
        else:
            armed.arm(case.armed)
            job = self.it.submit(what.workflow, what.input)
        armed.wait_event("crashpoint.reached", point=case.point, kind=case.kind, after=0)
        if case.kind != "kill":
            assert armed.alive
            return job, None
        assert armed.wait_exit() == 137
        self.worker = self.it.successor(armed)
        return job, armed.died_at

    def _at_replay(self, case: Case, what: Shape) -> JobId:
        job = self.it.submit(what.workflow, what.input)
        assert self.it.wait([job]) == {"failed": 1}
        letter = self._letter(job)
        child = self.it.start("replay", case.armed, letter=letter)
        code = child.wait_exit()
        child.wait_event("crashpoint.reached", point=case.point)
        assert code == (137 if case.kind == "kill" else 1)
        assert self.it.job(job)["state"] == "failed"
        assert self._letter(job) == letter, "nothing of the broken replay is left"
        return job

    def _at_decide(self, case: Case, what: Shape) -> JobId:
        """A decision is made whole or not at all; whoever never heard of it may say it again."""
        job = self.it.submit(what.workflow, what.input)
        self.it.wait_for(lambda: self.it.questions(job), "a question")
        (wait,) = self.it.questions(job)
        child = self.it.start("decide", case.armed, wait=wait["id"], word="not_happened")
        code = child.wait_exit()
        child.wait_event("crashpoint.reached", point=case.point)
        assert code == (137 if case.kind == "kill" else 1)
        if case.point == "decision.before_commit":
            assert self.it.questions(job) == [wait], "nothing of the broken decision is left"
            decisions.decide(self.it.engine, wait["id"], "not_happened", by="test")
        else:
            with pytest.raises(Conflict, match="has decided"):
                decisions.decide(self.it.engine, wait["id"], "happened", by="test")
        return job

    def _letter(self, job: JobId) -> str:
        letters = self.it.letters(job)
        assert [letter["state"] for letter in letters] == ["open"], letters
        return str(letters[0]["id"])

    def _end(self, job: JobId, case: Case) -> None:
        """The job's end; one that is parked is sent back once."""
        states = self.it.wait([job])
        if case.how.variant == "permanent" or self._is_bug(case):
            assert states == {"failed": 1}
            dead_letters.replay(self.it.engine, self._letter(job), by="test")
            states = self.it.wait([job])
        assert states == {"succeeded": 1}, states

    def _recovery(self, job: JobId, died: float) -> float:
        """Seconds until each step that was lost ran again; where none was held, until anything of the job went on.

        Then it is a message that was lost: handed to the dead process, or by it, and found by the markers.
        """
        events = self.it.events(job)
        starts = [call for call in self.it.ledger.calls([job]) if call.started > died]
        lost = {event["path"] for event in events if event["type"] == "step.lost"}
        after = [event for event in events if event["at"] > died and event["type"] != "step.lost"]
        if not lost:
            seconds = min([event["at"] for event in after] + [call.started for call in starts]) - died
            assert seconds <= LOST_MESSAGE, f"the lost message was found after {seconds:.2f} s"
            return seconds
        again = []
        for path in lost:
            moves = [call.started for call in starts if call.step == path]
            moves += [event["at"] for event in after if (event["path"] or "") == (path or "")]
            again.append(min(moves))
        seconds = max(again) - died
        assert seconds <= SEEN_DYING, f"the lost step ran again after {seconds:.2f} s"
        return seconds


class Matrix:
    """``outcome(case)`` waits for one case; the cells work through all of them meanwhile."""

    def __init__(self, cases: Iterable[Case], make: Callable[[], Cluster], cells: int) -> None:
        self._left = deque(cases)
        self._results: dict[Case, Future[Outcome]] = {case: Future() for case in self._left}
        self._make = make
        self._threads = [threading.Thread(target=self._work, name=f"matrix-{n}") for n in range(cells)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._left.clear()
        for thread in self._threads:
            thread.join()

    def outcome(self, case: Case) -> Outcome:
        """Raises what the case failed with."""
        return self._results[case].result(timeout=600)

    def _work(self) -> None:
        cell: Cell | None = None
        while True:
            try:
                case = self._left.popleft()
            except IndexError:
                break
            try:
                cell = cell or Cell(self._make().__enter__())
                self._results[case].set_result(cell.run(case))
            except BaseException as error:  # noqa: BLE001 - it is the test's result
                self._results[case].set_exception(error)
                _end(cell)
                cell = None  # whatever is left of it must not disturb the next case
        _end(cell)


def _end(cell: Cell | None) -> Any:
    if cell is not None:
        cell.it.__exit__(None, None, None)
