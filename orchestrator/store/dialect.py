"""What differs between PostgreSQL and SQLite, as small fragments; and statements written once for both drivers."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

Name = Literal["postgresql", "sqlite"]

_PARAMETER = re.compile(r"(?<![:\w]):([a-z_]+)")


@dataclass(frozen=True, slots=True)
class Dialect:
    name: Name
    #: The database's clock in seconds since the epoch; advances within a transaction.
    now: str = field(init=False)
    for_update: str = field(init=False)
    skip_locked: str = field(init=False)

    def __post_init__(self) -> None:
        pg = self.name == "postgresql"
        now = "extract(epoch from clock_timestamp())::float8" if pg else "((julianday('now') - 2440587.5) * 86400.0)"
        object.__setattr__(self, "now", now)
        object.__setattr__(self, "for_update", "FOR UPDATE" if pg else "")
        object.__setattr__(self, "skip_locked", "FOR UPDATE SKIP LOCKED" if pg else "")

    def sql(self, text: str) -> str:
        """``text`` in the driver's own parameter style; ``{now}``, ``{for_update}``, ``{skip_locked}`` filled in."""
        return _in_style(self, text)

    def numbered(self, text: str) -> tuple[str, tuple[str, ...]]:
        """``text`` as PostgreSQL itself takes it, and the names of the values for its $1, $2, …"""
        return _numbered(self, text)

    def table(self, **columns: Sequence[str] | Sequence[int]) -> tuple[str, dict[str, Any]]:
        """A table ``v`` of these columns to join with, and the values to be bound for it.

        PostgreSQL plans an array as ten rows and a document as a hundred: with ten it looks rows up by their keys even
        in a small table, which it would else read whole.
        """
        if self.name == "postgresql":
            kinds = ("int" if values and isinstance(values[0], int) else "text" for values in columns.values())
            arrays = ", ".join(f"CAST(:{name} AS {kind}[])" for name, kind in zip(columns, kinds, strict=True))
            return f"unnest({arrays}) AS v({', '.join(columns)})", {name: list(vs) for name, vs in columns.items()}
        places = ", ".join(f"value->>{place} AS {name}" for place, name in enumerate(columns))
        rows = json.dumps(list(zip(*columns.values(), strict=True)))
        return f"(SELECT {places} FROM json_each(:v)) AS v", {"v": rows}

    def any_of(self, column: str, parameter: str) -> str:
        """``column`` is one of the values in the JSON list bound as ``parameter``."""
        if self.name == "postgresql":
            return f"{column} IN (SELECT jsonb_array_elements_text(CAST(:{parameter} AS jsonb)))"
        return f"{column} IN (SELECT value FROM json_each(:{parameter}))"


@lru_cache(maxsize=1024)
def _in_style(dialect: Dialect, text: str) -> str:
    text = _filled(dialect, text)
    return text if dialect.name == "sqlite" else _PARAMETER.sub(r"%(\1)s", text.replace("%", "%%"))


@lru_cache(maxsize=1024)
def _numbered(dialect: Dialect, text: str) -> tuple[str, tuple[str, ...]]:
    text = _filled(dialect, text)
    names = list(dict.fromkeys(_PARAMETER.findall(text)))
    return _PARAMETER.sub(lambda found: f"${names.index(found[1]) + 1}", text), tuple(names)


def _filled(dialect: Dialect, text: str) -> str:
    words = {"now": dialect.now, "for_update": dialect.for_update, "skip_locked": dialect.skip_locked}
    for key, value in words.items():
        text = text.replace("{" + key + "}", value)
    return text
