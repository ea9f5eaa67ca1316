"""``jobs explain``: why a job does not move, and how far it is."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli.desk import Row
from orchestrator.cli.printing import Json, put, when
from orchestrator.cli.which_desk import open_desk
from orchestrator.domain.states import JOB_TERMINAL

#: Steps of a kind that are named, at most.
SHOWN = 5
ENDED = frozenset(state.value for state in JOB_TERMINAL)


def explain(job: Annotated[str, typer.Argument(metavar="JOB", help="The job's id.")], as_json: Json = False) -> None:
    """Say what a job waits for and what would move it. Also how far it is, and its critical path."""
    with open_desk() as desk:
        put(desk.explain(job), as_json, sentences)


def sentences(found: Row) -> str:
    """The reasons for people: each with its times and its mend."""
    lines = [f"job {found['job']} is {found['state']} (run {found['run']})"]
    if found["deadline_at"] is not None:
        lines[0] += f", deadline {when(found['deadline_at'])}"
    for cause in found["causes"]:
        lines.append(f"- {cause['says']}")
        times = [f"{name} {when(cause[name])}" for name in ("since", "until") if cause[name] is not None]
        if times:
            lines.append(f"  {', '.join(times)}")
        users = cause["detail"].get("by", ())
        lines += [f"  job {user['job']}: {user['running']} running, {user['published']} published" for user in users]
        lines.append(f"  moved by: {cause['moved_by']}")
    return "\n".join([*lines, *how_far(found)])


def how_far(found: Row) -> list[str]:
    """Calls done, the call that holds the most, what is blocked, and the critical path with its longest calls."""
    from orchestrator.engine.causes import span

    done, total = found["progress"]["done"], found["progress"]["total"]
    lines = [f"{done} of {total} calls done, {span(found['age'])} since it was submitted"]
    if found["state"] in ENDED:
        lines = [f"{done} of {total} calls done in {span(found['age'])}"]
    if (hold := found["holds_most"]) is not None:
        lines.append(f"{hold['path']} ({hold['state']}) keeps {hold['calls']} more from starting")
    lines += [f"{each['path']} waits for {', '.join(each['by'])}" for each in found["blocked"][:SHOWN]]
    if len(found["blocked"]) > SHOWN:
        lines.append("and more wait: see --json")
    path = found["critical_path"]
    if path["steps"]:
        lines.append(f"critical path {span(path['seconds'])}; its longest calls:")
        longest = sorted(path["steps"], key=lambda step: -step["seconds"])[:SHOWN]
        lines += [f"  {span(step['seconds']):>10}  {step['path']} ({step['state']})" for step in longest]
    return lines
