"""A ready step whose agent's breaker is open: on to what ``on_failure`` names, or it waits.

No attempt is made for either. Pure.
"""

from __future__ import annotations

from orchestrator.domain.advance import Advance
from orchestrator.domain.breaker import State
from orchestrator.domain.events import EventType
from orchestrator.domain.fallback import after_giving_up
from orchestrator.domain.outcome import Failure, FailureClass
from orchestrator.domain.plan import StepRow
from orchestrator.domain.result import Defaulted, Escalated, FellBack, GaveUp
from orchestrator.domain.states import StepState

#: What the history gives as the reason.
REASON = "breaker_open"


class Reroute(Advance):
    """One job's changes, where its steps are held back."""

    def past(self, row: StepRow, name: str, state: State) -> None:
        """Moves ``row`` on, or notes that it waits for the breaker ``name``. It is ready and not published."""
        if self._stopping(row) or row.agent is None:
            return
        match after_giving_up(self.plan.nodes[row.ref], row, failure_of(name, row.agent, state)):
            case FellBack() as result if self._replaceable(row):
                self._fall_back(row, result, stopping=False)
                row.generation += 1
            case Defaulted(failure, ended, output) if self._replaceable(row):
                row.degraded = True
                self.finish(row, ended, output=output, data={"degraded": True, "failure": failure.as_dict()})
            case FellBack() | Defaulted() | Escalated() | GaveUp():  # nobody is asked about what mends itself
                self._wait(row, name, state)

    def _wait(self, row: StepRow, name: str, state: State) -> None:
        row.not_before = state.until
        self._move(row, StepState.READY)
        tripped = {"signal": state.trip.signal.value, "says": state.trip.says} if state.trip is not None else None
        data = {"reason": REASON, "agent": row.agent, "breaker": name, "until": state.until, "tripped_by": tripped}
        self._event(EventType.STEP_HELD_BACK, row.path, data)

    def _replaceable(self, row: StepRow) -> bool:
        """Whether nobody need ask if an earlier try took effect: then another agent may act in its place."""
        effect = self.plan.nodes[row.ref].effect_of(self.plan.agents[row.agent or ""])
        known = not row.losses and (row.failure is None or row.failure.outcome_known)
        return effect == "read" or known


def failure_of(name: str, agent: str, state: State) -> Failure:
    """What stands for the call that is not made; of the class that opened the breaker."""
    kind = state.trip.kind if state.trip is not None else FailureClass.TRANSIENT
    why = f": {state.trip.says}" if state.trip is not None else ""
    whose = f"of agent {agent}" if name == agent else f"of {name}, which agent {agent} calls,"
    detail = {"reason": REASON, "breaker": name, "until": state.until}
    return Failure(kind, f"the breaker {whose} is open{why}", detail=detail)
