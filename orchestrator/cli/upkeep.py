"""Commands that look after a database: ``migrate``, ``verify``, ``quarantine``; and ``config show``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from orchestrator.cli.ending import FAILED, say
from orchestrator.cli.printing import Json, json_text, put, table

config = typer.Typer(no_args_is_help=True, help="The settings in force.")
quarantine = typer.Typer(no_args_is_help=True, help="Messages nobody could read.")


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


@quarantine.command("list")
def list_quarantine(limit: Annotated[int, typer.Option(min=1, max=1000)] = 50, as_json: Json = False) -> None:
    """List quarantined messages, newest first, with the raw bytes as text."""
    from orchestrator.cli.direct import engine_for_shell
    from orchestrator.store.desk import quarantined

    with engine_for_shell() as engine:
        rows = engine.db.run(lambda session: quarantined(session, limit), readonly=True)
    shown = [{**row, "raw": bytes(row["raw"]).decode("utf-8", "backslashreplace")} for row in rows]
    put(shown, as_json, lambda found: table(found, ["id", "queue", "reason", "at", "raw"]))
