"""``decisions``: what people are asked, and their word."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli.inputs import read_json
from orchestrator.cli.jobs import Limit, first
from orchestrator.cli.printing import Json, facts, put, table
from orchestrator.cli.which_desk import open_desk
from orchestrator.domain.errors import UsageError

decisions = typer.Typer(no_args_is_help=True, help="What jobs ask people: list, show, decide.")

WaitId = Annotated[str, typer.Argument(metavar="DECISION", help="The question's id.")]

STATES = ("open", "decided", "cancelled", "all")
_LIST = ["id", "job_id", "path", "workflow", "reason", "assignees", "state", "decision", "created_at"]
_ONE = (
    "id job_id path tenant workflow kind reason assignees state decisions created_at closed_at decided_by decision note"
    " question attempts"
).split()


@decisions.command("list")
def list_(
    state: Annotated[str, typer.Option(help="open, decided, cancelled or all.")] = "open",
    job: Annotated[str | None, typer.Option(help="Only this job's.")] = None,
    limit: Limit = 50,
    as_json: Json = False,
) -> None:
    """List what people are asked, newest first."""
    if state not in STATES:
        raise UsageError(f"--state {state!r} is no state of a decision.", mend=f"One of: {', '.join(STATES)}.")
    with open_desk() as desk:
        found = first(desk.decisions(state=state, job=job), limit)
    put(found, as_json, lambda rows: table(rows, _LIST))


@decisions.command()
def show(decision: WaitId, as_json: Json = False) -> None:
    """Show a question with the step's attempts and what may be answered."""
    with open_desk() as desk:
        put(desk.decision(decision), as_json, lambda row: facts(row, _ONE))


@decisions.command()
def decide(
    decision: WaitId,
    word: Annotated[str, typer.Argument(metavar="WORD", help="One of the question's decisions (see show).")],
    output: Annotated[
        str | None, typer.Option(metavar="JSON|@FILE", help="The step's output, with happened or answer.")
    ] = None,
    note: Annotated[str | None, typer.Option(help="Why, for the record.")] = None,
    as_json: Json = False,
) -> None:
    """Decide: the first decision counts, and the step moves."""
    from orchestrator.settings import Settings

    settings = Settings.load()
    value = None if output is None else read_json(output, "--output", limit=settings.max_body_bytes)
    with open_desk(settings) as desk:
        closed = desk.decide(decision, word, output=value, note=note)
    put(closed, as_json, lambda row: f"{row['id']} {row['decision']}")
