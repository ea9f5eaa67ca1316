"""``jobs export``: jobs as lines of JSON, read from the database itself."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.ending import say
from orchestrator.cli.replays import read_time
from orchestrator.domain.errors import UsageError


def export(
    job: Annotated[str | None, typer.Argument(metavar="[JOB]", help="The job's id.")] = None,
    before: Annotated[
        str | None, typer.Option(metavar="TIME", help="All jobs that ended before, but those somebody may still need.")
    ] = None,
    to: Annotated[Path | None, typer.Option(metavar="DIR", help="Where to write a .jsonl.gz file.")] = None,
) -> None:
    """Write a job with its history as a line of JSON, or many. Nothing is removed."""
    from orchestrator.cli.direct import engine_for_shell
    from orchestrator.domain.ids import JobId
    from orchestrator.engine import export as exporting

    until = read_time("--before", before)
    if (job is None) == (until is None) or (job is None and to is None):
        raise UsageError("jobs export takes a JOB, or --before TIME with --to DIR.")
    with engine_for_shell() as engine:
        if job is not None and to is None:
            for piece in exporting.one(engine, JobId(job)):
                sys.stdout.write(piece)
            return
        assert to is not None
        if job is not None:
            next(exporting.one(engine, JobId(job)))  # raises when it is not there
        wanted = [JobId(job)] if job is not None else list(exporting.ended(engine, until or 0.0))
        file = exporting.write(engine, to, wanted)
    say(f"{len(wanted)} job{'s' if len(wanted) != 1 else ''} written")
    print(file)
