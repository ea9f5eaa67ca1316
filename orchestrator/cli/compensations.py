"""``jobs compensations``: what a job owes, and what has become of it."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli.printing import Json, put, table
from orchestrator.cli.which_desk import open_desk


def compensations(
    job: Annotated[str, typer.Argument(metavar="JOB", help="The job's id.")], as_json: Json = False
) -> None:
    """List what is to be undone should a job fail, or was. In the order it was done."""
    with open_desk() as desk:
        put(desk.compensations(job), as_json, lambda rows: table(rows, "step outcome state by agent attempt".split()))
