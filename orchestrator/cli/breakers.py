"""``breakers``: which agents and hosts are left alone, and how to end that."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli.desk import Row
from orchestrator.cli.printing import Json, put, table
from orchestrator.cli.which_desk import open_desk
from orchestrator.domain.errors import UsageError

breakers = typer.Typer(no_args_is_help=True, help="Circuit breakers: list, open, reset.")

_LIST = ["name", "state", "tenant", "opened_at", "until_at", "trips", "tripped_by"]


@breakers.command("list")
def list_(as_json: Json = False) -> None:
    """List breakers, those that are not closed first."""
    with open_desk() as desk:
        put(desk.breakers(), as_json, _table)


@breakers.command("open")
def open_(
    name: Annotated[str, typer.Argument(metavar="NAME", help="An agent's name, or host:NAME.")],
    duration: Annotated[str, typer.Option("--for", metavar="DURATION", help="How long, as 10m or 48h.")] = "10m",
    note: Annotated[str | None, typer.Option(help="Why, for the record.")] = None,
    as_json: Json = False,
) -> None:
    """Leave an agent or a host alone. Its work goes to the fallback, or waits."""
    from orchestrator.domain.workflow import parse_duration

    try:
        seconds = parse_duration(duration)
    except ValueError as error:
        raise UsageError(f"--for {duration}: {error}.") from None
    with open_desk() as desk:
        put(desk.open_breaker(name, float(str(seconds)), note=note), as_json, _table)


@breakers.command()
def reset(
    name: Annotated[str, typer.Argument(metavar="NAME", help="An agent's name, or host:NAME.")],
    note: Annotated[str | None, typer.Option(help="Why, for the record.")] = None,
    as_json: Json = False,
) -> None:
    """Close a breaker now. What waits for it goes on."""
    with open_desk() as desk:
        put(desk.reset_breaker(name, note=note), as_json, _table)


def _table(rows: list[Row]) -> str:
    shown = [
        {**row, "until_at": row["until"], "tripped_by": row["tripped_by"]["says"] if row["tripped_by"] else None}
        for row in rows
    ]
    return table(shown, _LIST)
