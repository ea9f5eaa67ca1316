"""Commands that look after a database: ``migrate``, ``verify``, ``quarantine``; and ``config show``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from orchestrator.cli.ending import FAILED, say
from orchestrator.cli.printing import Json, facts, json_text, put, table

config = typer.Typer(no_args_is_help=True, help="The settings in force.")
quarantine = typer.Typer(no_args_is_help=True, help="Messages that no worker could take.")


@config.command("show")
def show_config(as_json: Json = False) -> None:
    """Print every setting as this shell's environment makes it, without secrets."""
    from orchestrator.settings import PREFIX, Settings

    shown = Settings.load().redacted()
    put(
        shown,
        as_json,
        lambda found: "\n".join(f"{PREFIX}{name.upper()}={_text(value)}" for name, value in found.items()),
    )


def _text(value: Any) -> str:
    if value is None:
        return ""
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else json_text(value).strip('"')


def migrate() -> None:
    """Bring the database to the current schema. Safe to run twice and beside running processes."""
    from orchestrator.bootstrap import open_database
    from orchestrator.settings import Settings
    from orchestrator.store import migrations

    db = open_database(Settings.load(), application="orchestrator-migrate")
    try:
        before, after = migrations.upgrade(db)
    finally:
        db.close()
    say(f"the database is at schema {after}" + ("" if before == after else f", it was {before or 'empty'}"))


def verify(as_json: Json = False) -> None:
    """Check the promises on the live database. Exit 1 if one is broken."""
    from orchestrator.cli.direct import engine_for_shell
    from orchestrator.engine.verify import verify as find_violations

    with engine_for_shell() as engine:
        found = [asdict(violation) for violation in find_violations(engine)]
    put(found, as_json, lambda rows: table(rows, ["invariant", "promise", "job_id", "path", "detail"]))
    if found:
        say(f"{len(found)} violation{'s' if len(found) != 1 else ''}")
        raise typer.Exit(FAILED)
    say("no violation")


MessageId = Annotated[str, typer.Argument(metavar="MESSAGE", help="Its id in the list.")]
_MESSAGE = ["id", "queue", "reason", "at", "size", "text", "raw"]


@quarantine.command("list")
def list_quarantine(limit: Annotated[int, typer.Option(min=1, max=1000)] = 50, as_json: Json = False) -> None:
    """List quarantined messages, newest first."""
    from orchestrator.cli.direct import engine_for_shell
    from orchestrator.engine.quarantine import listing

    with engine_for_shell() as engine:
        rows, _ = listing(engine, limit=limit)
    put(rows, as_json, lambda found: table(found, ["id", "queue", "reason", "at", "size"]))


@quarantine.command("show")
def show_quarantine(message: MessageId, as_json: Json = False) -> None:
    """Show a message: its bytes in base64, and as text if they are."""
    from orchestrator.cli.direct import engine_for_shell
    from orchestrator.engine.quarantine import show

    with engine_for_shell() as engine:
        found = show(engine, message)
    put(found, as_json, lambda row: facts(row, _MESSAGE))


@quarantine.command("discard")
def discard_quarantine(
    message: MessageId,
    note: Annotated[str | None, typer.Option(help="Why; for the audit trail.")] = None,
    as_json: Json = False,
) -> None:
    """Throw a message away; the audit trail keeps that it was there."""
    from orchestrator.cli.direct import engine_for_shell, who
    from orchestrator.engine.quarantine import discard

    with engine_for_shell() as engine:
        found = discard(engine, message, by=who(), note=note)
    put(found, as_json, lambda row: f"{row['id']} discarded")
