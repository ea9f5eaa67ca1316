"""The desk in bulk: ``dead-letters groups`` and ``replay --all``, ``operations``, ``audit``."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.ending import say
from orchestrator.cli.printing import Json, facts, put, table
from orchestrator.cli.which_desk import open_desk
from orchestrator.domain.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.store.operations import LetterFilter

operations = typer.Typer(no_args_is_help=True, help="Bulk replays: list, show, cancel.")

Workflow = Annotated[str | None, typer.Option(help="Only those of this workflow.")]
Reason = Annotated[str | None, typer.Option(help="Only this failure class.")]
Fingerprint = Annotated[str | None, typer.Option(help="Only those that failed alike (see groups).")]
After = Annotated[str | None, typer.Option("--created-after", metavar="TIME", help="As 2026-03-01T02:00Z.")]
Before = Annotated[str | None, typer.Option("--created-before", metavar="TIME", help="As 2026-03-01T02:00Z.")]
OperationId = Annotated[str, typer.Argument(metavar="OPERATION", help="The operation's id.")]
Note = Annotated[str | None, typer.Option(help="Why, for the record.")]

_GROUP = ["count", "reason", "fingerprint", "first_seen_at", "last_seen_at", "workflows", "message", "letter"]
_OPERATION = ["id", "state", "total", "replayed", "skipped", "left", "rate", "created_by", "created_at", "because"]
_ONE = (
    "id state tenant filter rate stop_on_same_error total replayed skipped left failed_again created_by created_at note"
    " finished_at finished_by because"
).split()
_AUDIT = ["at", "who", "what", "subject", "why", "data"]


def groups(
    workflow: Workflow = None,
    reason: Reason = None,
    fingerprint: Fingerprint = None,
    created_after: After = None,
    created_before: Before = None,
    as_json: Json = False,
) -> None:
    """List open dead letters by what failed alike, the largest group first."""
    wanted = letter_filter(workflow, reason, fingerprint, created_after, created_before)
    with open_desk() as desk:
        put(desk.groups(wanted), as_json, lambda rows: table(rows, _GROUP))


def letter_filter(
    workflow: str | None, reason: str | None, fingerprint: str | None, after: str | None, before: str | None
) -> LetterFilter:
    """Raises ``UsageError``."""
    from orchestrator.store.operations import LetterFilter

    return LetterFilter(
        workflow, reason, fingerprint, read_time("--created-after", after), read_time("--created-before", before)
    )


def read_time(option: str, text: str | None) -> float | None:
    """ISO 8601 or seconds since the epoch; without a zone, UTC."""
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        pass
    try:
        when = datetime.fromisoformat(text)
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise UsageError(f"{option} {text!r} is no time.", mend="Write it as 2026-03-01T02:00Z.") from None


def replay_by_filter(
    wanted: LetterFilter, *, everything: bool, rate: float, dry_run: bool, stop: bool, note: str | None, as_json: bool
) -> None:
    """Begins a bulk replay, or says what it would do, and prints it."""
    how: dict[str, Any] = {"rate": rate, "stop_on_same_error": stop, "note": note}
    with open_desk() as desk:
        row = desk.replay_all(wanted, everything=everything, dry_run=dry_run, **({} if dry_run else how))
    if dry_run:
        put(row, as_json, lambda seen: table(seen["groups"], _GROUP))
        say(f"{row['total']} dead letters would be replayed; at {rate:g} a second in about {row['total'] / rate:.0f} s")
        return
    put(row, as_json, lambda begun: str(begun["id"]))
    say(f"replaying {row['total']} dead letters at {rate:g} a second: orchestrator operations show {row['id']}")


@operations.command("list")
def list_(as_json: Json = False) -> None:
    """List the newest bulk replays."""
    with open_desk() as desk:
        put(desk.operations(), as_json, lambda rows: table(rows, _OPERATION))


@operations.command()
def show(operation: OperationId, as_json: Json = False) -> None:
    """Show a bulk replay and how far it is."""
    with open_desk() as desk:
        put(desk.operation(operation), as_json, lambda row: facts(row, _ONE))


@operations.command()
def cancel(operation: OperationId, note: Note = None, as_json: Json = False) -> None:
    """End a bulk replay; what it has replayed stays replayed. Again is no error."""
    with open_desk() as desk:
        done = desk.cancel_operation(operation, note=note)
    put(done, as_json, lambda row: f"{row['id']} {row['state']}, {row['replayed']} of {row['total']} replayed")


def audit(
    subject: Annotated[str | None, typer.Argument(help="A job's, dead letter's, decision's or operation's id.")] = None,
    as_json: Json = False,
) -> None:
    """Print who did what, when and why, newest first."""
    with open_desk() as desk:
        put(desk.audit(subject), as_json, lambda rows: table(rows, _AUDIT))
