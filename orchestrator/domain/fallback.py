"""What a step does when it has given up: the entries of ``on_failure``, tried in order. Pure."""

from __future__ import annotations

from orchestrator.domain.json_values import dumps
from orchestrator.domain.outcome import NULL, Failure, Stored
from orchestrator.domain.plan import Node, StepRow
from orchestrator.domain.result import Defaulted, Escalated, FellBack, GaveUp
from orchestrator.domain.states import StepState


def after_giving_up(node: Node, row: StepRow, failure: Failure) -> FellBack | Defaulted | Escalated | GaveUp:
    """The next entry that takes this class of failure, after those already tried; none left: the step has failed."""
    entries = node.step.on_failure if node.step is not None else ()
    for number, entry in enumerate(entries, start=1):
        if number <= row.fallback or (entry.on and failure.kind not in entry.on):
            continue
        if entry.agent is not None:
            return FellBack(failure, entry.agent, number)
        if entry.escalate is not None:
            return Escalated(failure, entry.escalate, number)
        if entry.skip:
            return Defaulted(failure, StepState.SKIPPED, NULL)
        return Defaulted(failure, StepState.SUCCEEDED, Stored(dumps(entry.value)))
    return GaveUp(failure)
