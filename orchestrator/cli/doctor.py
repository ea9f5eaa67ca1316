"""``doctor``: what is misconfigured or stuck, and the mend."""

from __future__ import annotations

from dataclasses import asdict

import typer

from orchestrator.cli.ending import FAILED, say
from orchestrator.cli.printing import Json, put


def doctor(as_json: Json = False) -> None:
    """Find what is misconfigured or stuck, with its mend. Exit 1 if anything is an error."""
    from orchestrator import bootstrap
    from orchestrator.canvas.checkup import broker_facts
    from orchestrator.cli.direct import silent_engine
    from orchestrator.engine.doctor import doctor as examine
    from orchestrator.settings import Settings

    settings = Settings.load()
    engine = silent_engine(settings, "doctor", check_schema=False)
    try:
        found = [
            asdict(finding)
            for finding in examine(engine, settings, lambda: broker_facts(bootstrap.build_app(settings)))
        ]
    finally:
        engine.db.close()
    put(found, as_json, lambda rows: "\n".join(map(paragraph, rows)))
    errors = sum(row["severity"] == "error" for row in found)
    say(f"{errors} errors, {len(found) - errors} warnings" if found else "nothing is wrong")
    if errors:
        raise typer.Exit(FAILED)


def paragraph(row: dict[str, str]) -> str:
    """A finding in two lines."""
    return f"{row['severity']}[{row['check']}] {row['where']}: {row['what']}\n  {row['mend']}"
