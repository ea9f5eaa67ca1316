"""Data on stdout: JSON for programs, short tables for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

#: Longest cell of a table, in characters.
CELL = 60


def put(value: Any, as_json: bool, people: Callable[[Any], str] | None = None) -> None:
    """Prints ``value``: as JSON, or as ``people`` writes it; nothing where that is empty."""
    text = json_text(value) if as_json or people is None else people(value)
    if text:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


def json_text(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)


def table(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Aligned columns under their names; names that end in ``_at`` are times. ``""`` when there are no rows."""
    body = [[cell(name, row.get(name)) for name in columns] for row in rows]
    if not body:
        return ""
    lines = [[name.removesuffix("_at").upper() for name in columns], *body]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def facts(row: Mapping[str, Any], columns: Sequence[str]) -> str:
    """One thing, a line for each column that has a value; a nested value as JSON below its name."""
    shown = [(name, row.get(name)) for name in columns if row.get(name) not in (None, {}, [], "")]
    width = max((len(name) for name, _ in shown), default=0)
    lines = []
    for name, value in shown:
        if isinstance(value, (dict, list)) or (isinstance(value, str) and "\n" in value):
            lines.append(f"{name}:\n{value if isinstance(value, str) else json_text(value)}")
        else:
            lines.append(f"{(name + ':').ljust(width + 1)} {when(value) if name.endswith('_at') else value}")
    return "\n".join(lines)


def cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name.endswith("_at") or name == "at":
        return when(value)
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else str(value)
    text = " ".join(text.split())
    return text if len(text) <= CELL else text[: CELL - 1] + "…"


def when(value: Any) -> str:
    """Seconds since the epoch as UTC, to the second; anything else as it is."""
    with suppress(TypeError, ValueError, OverflowError):
        return datetime.fromtimestamp(float(value), UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    return str(value)
