"""Draws ``domain/states.py`` as Mermaid diagrams: ``python -m orchestrator.domain.diagram > docs/states.md``.

The page is a function of the tables alone; a test compares it with the file.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Mapping
from enum import StrEnum
from typing import Final, TypeVar

from orchestrator.domain.states import JOB_MOVES, JOB_TERMINAL, STEP_MOVES, STEP_TERMINAL, JobState, StepState

S = TypeVar("S", bound=StrEnum)

#: States a row may be written in: a submit writes the job, and an opening composite its children.
JOB_STARTS: Final = (JobState.QUEUED,)
STEP_STARTS: Final = (StepState.PENDING, StepState.READY, StepState.WAITING)

_HEAD = """\
# States

Written by `python -m orchestrator.domain.diagram > docs/states.md` from `orchestrator/domain/states.py`; a test fails
when the two differ. Beside each move stands who makes it. What happens when nobody does:
[who repairs what](how-it-works.md#who-repairs-what).
"""


def diagram(starts: Iterable[S], moves: Mapping[tuple[S, S], str], terminal: Collection[S]) -> str:
    """A Mermaid state diagram: one arrow for each move, labelled with who makes it."""
    ends = sorted({state for move in moves for state in move} & set(terminal))
    lines = ["stateDiagram-v2"]
    lines += [f"    [*] --> {state.value}" for state in starts]
    lines += [f"    {old.value} --> {new.value}: {who}" for (old, new), who in moves.items()]
    lines += [f"    {state.value} --> [*]" for state in ends]
    return "\n".join(lines)


def table(moves: Mapping[tuple[S, S], str]) -> str:
    rows = [f"| `{old.value}` | `{new.value}` | {who} |" for (old, new), who in moves.items()]
    return "\n".join(["| from | to | moved by |", "|---|---|---|", *rows])


def unused(states: Iterable[S], starts: Iterable[S], moves: Mapping[tuple[S, S], str]) -> list[S]:
    """States that have a name but that no move reaches yet."""
    reached = {*starts, *(state for move in moves for state in move)}
    return [state for state in states if state not in reached]


def page() -> str:
    """The whole of ``docs/states.md``."""
    return "\n".join(
        [
            _HEAD,
            *_section("Jobs", JobState, JOB_STARTS, JOB_MOVES, JOB_TERMINAL),
            *_section("Steps", StepState, STEP_STARTS, STEP_MOVES, STEP_TERMINAL),
        ]
    )


def _section(
    title: str, states: Iterable[S], starts: tuple[S, ...], moves: Mapping[tuple[S, S], str], terminal: Collection[S]
) -> list[str]:
    lines = [f"## {title}", "", "```mermaid", diagram(starts, moves, terminal), "```", "", table(moves), ""]
    names = ", ".join(f"`{state.value}`" for state in unused(states, starts, moves))
    return [*lines, f"Named, and not reached by anything yet: {names}.", ""] if names else lines


if __name__ == "__main__":
    sys.stdout.write(page())
