"""What a step does when it has given up: the entries of ``on_failure``, tried in order. Pure."""

from __future__ import annotations

from orchestrator.domain.json_values import dumps
from orchestrator.domain.outcome import NULL, Failure, FailureClass, Stored
from orchestrator.domain.plan import Node, StepRow
from orchestrator.domain.result import Defaulted, FellBack, GaveUp
from orchestrator.domain.states import StepState


def after_giving_up(node: Node, row: StepRow, failure: Failure) -> FellBack | Defaulted | GaveUp:
    """The next entry that takes this class of failure, after those already tried; none left: the step has failed.

    A call that may have taken effect is never replaced by another: somebody has to look first.
    """
    entries = node.step.on_failure if node.step is not None else ()
    if failure.kind is FailureClass.IN_DOUBT:
        return GaveUp(failure)
    for number, entry in enumerate(entries, start=1):
        if number <= row.fallback or (entry.on and failure.kind not in entry.on):
            continue
        if entry.agent is not None:
            return FellBack(failure, entry.agent, number)
        if entry.skip:
            return Defaulted(failure, StepState.SKIPPED, NULL)
        return Defaulted(failure, StepState.SUCCEEDED, Stored(dumps(entry.value)))
    return GaveUp(failure)
