"""``up-local``: every production role as a process here, on PostgreSQL and Redis of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.ending import FAILED, say
from orchestrator.cli.printing import Json, json_text


def up_local(
    workers: Annotated[int, typer.Option(min=1, max=64, help="How many worker commands.")] = 2,
    directory: Annotated[
        Path | None, typer.Option("--dir", help="Keeps data and logs; else they go when it stops.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="The API's port; a free one.")] = None,
    as_json: Json = False,
) -> None:
    """Start every role on this machine. Prints where they are and a key; Ctrl-C stops them, and nothing is left."""
    from orchestrator.cli.stopping import stop_signal
    from orchestrator.local.stack import Stack
    from orchestrator.settings import Settings

    patience = Settings.load().drain_seconds + 10
    stop = stop_signal()
    with Stack(workers=workers, directory=directory, port=port, stop_seconds=patience, say=say) as stack:
        found = {
            "url": stack.url,
            "api_key": stack.api_key,
            "database_url": stack.environment["ORCHESTRATOR_DATABASE_URL"],
            "broker_url": stack.environment["ORCHESTRATOR_BROKER_URL"],
            "logs": str(stack.directory),
            "pids": {name: role.pid for name, role in stack.roles.items()},
        }
        if as_json:
            print(json_text(found), flush=True)
        else:
            for name in ("url", "api_key", "database_url", "broker_url"):
                print(f"export ORCHESTRATOR_{name.upper()}={found[name]}", flush=True)
            say(f"ready; metrics on {stack.url}/metrics/global, logs in {stack.directory}. Ctrl-C stops.")
        ended = stack.wait(stop)
        if ended is not None:
            say(f"{ended.name} ended by itself with exit {ended.ended}. Its log ends:\n{ended.tail()}")
    if ended is not None:
        raise typer.Exit(FAILED)
    say("stopped; nothing was left behind" if directory is None else f"stopped; the data stays in {directory}")
