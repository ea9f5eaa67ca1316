"""``jobs explain``: why a job does not move."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli.desk import Row
from orchestrator.cli.printing import Json, put, when
from orchestrator.cli.which_desk import open_desk


def explain(job: Annotated[str, typer.Argument(metavar="JOB", help="The job's id.")], as_json: Json = False) -> None:
    """Say what a job waits for, since when, until when, and what would move it."""
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
    return "\n".join(lines)
