"""Where two JSON values differ, short enough for a line of history. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from orchestrator.domain.json_values import dumps

#: Places named at most, and characters of a value that are shown.
PLACES = 20
SHOWN = 200


def difference(before: Any, after: Any) -> list[dict[str, str | None]]:
    """``[{"at": "/clauses/3", "from": "…", "to": "…"}]``: JSON pointers and JSON texts, cut; None: not there.

    At most 20 places; a last entry ``{"at": "…"}`` says that there are more.
    """
    found: list[dict[str, str | None]] = []
    for place, old, new in _places("", before, after):
        if len(found) == PLACES:
            return [*found, {"at": "…", "from": None, "to": None}]
        found.append({"at": place, "from": old, "to": new})
    return found


def _places(at: str, before: Any, after: Any) -> Iterator[tuple[str, str | None, str | None]]:
    match before, after:
        case dict(), dict():
            for key in sorted(before.keys() | after.keys()):
                place = f"{at}/{key.replace('~', '~0').replace('/', '~1')}"
                yield from _entry(place, key in before, key in after, before.get(key), after.get(key))
        case list(), list():
            for i in range(max(len(before), len(after))):
                old, new = before[i : i + 1], after[i : i + 1]
                yield from _entry(f"{at}/{i}", bool(old), bool(new), (old or [None])[0], (new or [None])[0])
        case _:
            # 1 and 1.0 and true are equal to Python, and not to an agent.
            if (old_text := dumps(before)) != (new_text := dumps(after)):
                yield at, _cut(old_text), _cut(new_text)


def _entry(at: str, was: bool, now: bool, old: Any, new: Any) -> Iterator[tuple[str, str | None, str | None]]:
    if was and now:
        yield from _places(at, old, new)
    else:
        yield at, _cut(dumps(old)) if was else None, _cut(dumps(new)) if now else None


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"
