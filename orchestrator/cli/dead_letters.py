"""``dead-letters``: failed work, parked with its reason, and the way back to work."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from orchestrator.cli.inputs import read_json
from orchestrator.cli.jobs import Limit, first
from orchestrator.cli.printing import Json, facts, put, table
from orchestrator.cli.replays import After, Before, Fingerprint, Reason, Workflow, letter_filter, replay_by_filter
from orchestrator.cli.which_desk import open_desk
from orchestrator.domain.errors import UsageError

dead_letters = typer.Typer(no_args_is_help=True, help="Failed work: list, show, replay, discard.")

LetterId = Annotated[str, typer.Argument(metavar="LETTER", help="The dead letter's id.")]
Note = Annotated[str | None, typer.Option(help="Why, for the record.")]

STATES = ("open", "replayed", "discarded", "all")
_LIST = ["id", "job_id", "path", "workflow", "state", "reason", "message", "created_at"]
_ONE = (
    "id job_id path run tenant workflow state reason message fingerprint created_at closed_at closed_by note failure"
    " attempts"
).split()


@dead_letters.command("list")
def list_(
    state: Annotated[str, typer.Option(help="open, replayed, discarded or all.")] = "open",
    workflow: Annotated[str | None, typer.Option(help="Only those of this workflow.")] = None,
    reason: Annotated[str | None, typer.Option(help="Only this failure class.")] = None,
    fingerprint: Fingerprint = None,
    job: Annotated[str | None, typer.Option(help="Only this job's.")] = None,
    limit: Limit = 50,
    as_json: Json = False,
) -> None:
    """List dead letters, newest first."""
    if state not in STATES:
        raise UsageError(f"--state {state!r} is no state of a dead letter.", mend=f"One of: {', '.join(STATES)}.")
    with open_desk() as desk:
        wanted = desk.dead_letters(state=state, workflow=workflow, reason=reason, job=job, fingerprint=fingerprint)
        found = first(wanted, limit)
    put(found, as_json, lambda rows: table(rows, _LIST))


@dead_letters.command()
def show(letter: LetterId, as_json: Json = False) -> None:
    """Show a dead letter with its attempts."""
    with open_desk() as desk:
        put(desk.dead_letter(letter), as_json, lambda row: facts(row, _ONE))


@dead_letters.command()
def replay(
    letter: Annotated[str | None, typer.Argument(metavar="LETTER", help="The dead letter's id.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every open letter, without a filter.")] = False,
    workflow: Workflow = None,
    reason: Reason = None,
    fingerprint: Fingerprint = None,
    created_after: After = None,
    created_before: Before = None,
    rate: Annotated[
        float | None, typer.Option(min=0.01, max=1000, help="Letters a second, for many; 10 by default.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what a bulk replay would do.")] = False,
    stop: Annotated[
        bool, typer.Option("--stop-on-same-error", help="Stop when a replayed job fails of the same again.")
    ] = False,
    input: Annotated[
        str | None, typer.Option("--input", metavar="JSON|@FILE", help="Of one: the failed step's input, edited.")
    ] = None,
    agent: Annotated[str | None, typer.Option(help="Of one: another agent of the job's workflow.")] = None,
    output: Annotated[
        str | None, typer.Option("--output", metavar="JSON|@FILE", help="Of one: the failed step's result, by hand.")
    ] = None,
    note: Note = None,
    as_json: Json = False,
) -> None:
    """Send one LETTER, or those of a filter, or --all, back to work. Finished steps are kept."""
    wanted = letter_filter(workflow, reason, fingerprint, created_after, created_before)
    changes = _changes(input, agent, output)
    if letter is None:
        if changes:
            raise UsageError("--input, --agent and --output are for one LETTER.", mend="Name it.")
        speed = 10.0 if rate is None else rate
        replay_by_filter(
            wanted, everything=everything, rate=speed, dry_run=dry_run, stop=stop, note=note, as_json=as_json
        )
        return
    if everything or dry_run or stop or rate is not None or not wanted.empty:
        raise UsageError("a LETTER and options for many do not go together.", mend="Give one of the two.")
    with open_desk() as desk:
        job = desk.replay(letter, note=note, changes=changes or None)
    put(job, as_json, lambda row: f"{row['id']} {row['state']}, run {row['run']}")


def _changes(input: str | None, agent: str | None, output: str | None) -> dict[str, Any]:
    from orchestrator.settings import Settings

    changes: dict[str, Any] = {} if agent is None else {"agent": agent}
    for name, text in (("input", input), ("output", output)):
        if text is not None:
            changes[name] = read_json(text, f"--{name}", limit=Settings.load().max_body_bytes)
    return changes


@dead_letters.command()
def undiscard(letter: LetterId, note: Note = None, as_json: Json = False) -> None:
    """Open a discarded dead letter again."""
    with open_desk() as desk:
        put(desk.undiscard(letter, note=note), as_json, lambda row: f"{row['id']} {row['state']}")


@dead_letters.command()
def discard(letter: LetterId, note: Note = None, as_json: Json = False) -> None:
    """Close a dead letter without replay; its job stays failed."""
    with open_desk() as desk:
        put(desk.discard(letter, note=note), as_json, lambda row: f"{row['id']} {row['state']}")
