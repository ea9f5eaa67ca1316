"""Splitting a passage into sentences and list items, with their places."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator

_BOUNDARY = re.compile(
    r"(?P<stop>(?<=[.!?])[\"”’)\]]*\s+(?=[\"“(\[]?[A-Z0-9]|\((?:[a-z]|[ivx]{1,4})\)\s))"
    r"|(?P<gap>\n[ \t\r]*\n\s*)"
    r"|(?P<item>[;:,]\s+(?:and\s+|or\s+)?(?=\((?:[a-z]|[ivx]{1,4}|\d{1,2})\)\s))"
)
#: What ends in a full stop without ending a sentence.
_ABBREVIATION = re.compile(
    r"\b(?:Inc|Ltd|Co|Corp|No|Nos|Sec|Art|Mr|Mrs|Ms|Dr|St|vs?|cf|approx|e\.g|i\.e|U\.S|[A-Z])\.$"
)
_ENUMERATOR = re.compile(r"\s*(?:[A-Za-z§]+\s+)?\(?\w{1,4}[.)]+$")


def sentences(text: str) -> Iterator[tuple[int, int]]:
    """``(start, end)`` of every sentence or list item, in order, without overlap; blank ones are left out.

    An inline list such as ``means (i) …, or (ii) …`` is cut like one set on lines of its own.
    """
    start = 0
    for found in _BOUNDARY.finditer(text):
        if found["stop"] is not None and _goes_on(text[start : found.start()]):
            continue
        end = found.start() + (1 if found["item"] is not None else 0)
        if text[start:end].strip():
            yield start, end
        start = found.end()
    if text[start:].strip():
        yield start, len(text)


def _goes_on(so_far: str) -> bool:
    """Whether the full stop at the end of ``so_far`` belongs to an abbreviation or to the number of an item."""
    if _ABBREVIATION.search(so_far[-12:]):
        return True
    return len(so_far) < 20 and _ENUMERATOR.fullmatch(so_far) is not None


def holding(spans: list[tuple[int, int]], position: int) -> tuple[int, int]:
    """Of ``spans`` in order, the one that holds ``position``; where it falls between two, the one before."""
    return spans[max(bisect_right(spans, position, key=lambda span: span[0]) - 1, 0)]
