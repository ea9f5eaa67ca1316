"""The columns by name, and why one cannot run here."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

from bench.columns.column import Column
from bench.lab import Lab


def _ours(lab: Lab) -> Column:
    from bench.columns.ours import Ours

    return Ours(lab)


def _stock(lab: Lab) -> Column:
    from bench.columns.stock import Stock

    return Stock(lab)


def _floor(lab: Lab) -> Column:
    from bench.columns.floor import Floor

    return Floor(lab)


def _dbos(lab: Lab) -> Column:
    from bench.columns.dbos_column import Dbos

    return Dbos(lab)


def _embedded(lab: Lab) -> Column:
    from bench.columns.embedded import Embedded

    return Embedded(lab)


COLUMNS: dict[str, Callable[[Lab], Column]] = {
    "ours": _ours,
    "celery": _stock,
    "dbos": _dbos,
    "sql": _floor,
    "embedded": _embedded,
}


def missing(name: str) -> str | None:
    """Why the column is left out, or None."""
    if name == "dbos" and importlib.util.find_spec("dbos") is None:
        return "dbos is not installed (pip install dbos)"
    return None
