"""Quoting: exact slices of the source, and text made comparable."""

from __future__ import annotations

import re
from bisect import bisect_right

from contract_review.shapes import Span

#: Longest quotation, in characters: enough for a long legal sentence, short enough to be read.
QUOTE = 800
_SPACE = re.compile(r"\s+")


def quote(text: str, start: int, end: int, *, base: int = 0, around: int | None = None, limit: int = QUOTE) -> Span:
    """The span ``[start, end)`` of ``text`` without outer white space, cut to ``limit`` characters at a word's end.

    ``base`` is where ``text`` begins in the contract. Where the span is too long, what stands at ``around`` is kept.
    """
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    if end - start > limit:
        if around is not None and around - start > limit // 2:
            start = _word_start(text, max(start, around - limit // 4), end)
        end = _word_end(text, start, min(end, start + limit))
    return {"start": base + start, "end": base + end, "quote": text[start:end]}


def _word_start(text: str, start: int, end: int) -> int:
    found = _SPACE.search(text, start, min(end, start + 60))
    return found.end() if found else start


def _word_end(text: str, start: int, end: int) -> int:
    if end >= len(text) or text[end].isspace():
        return end
    cut = max(text.rfind(space, end - 60, end) for space in " \n\t")
    return cut if cut > start else end


def even(text: str) -> str:
    """``text`` with every run of white space as one space: line breaks carry no meaning in a contract."""
    return _SPACE.sub(" ", text).strip()


class Evened:
    """``even(text)`` as ``.text``, with the way back: line breaks and indents must not hide words from a pattern."""

    def __init__(self, text: str) -> None:
        words = [(match[0], match.start()) for match in re.finditer(r"\S+", text)]
        self.text = " ".join(word for word, _ in words)
        self._origin = [start for _, start in words]
        self._starts: list[int] = []
        position = 0
        for word, _ in words:
            self._starts.append(position)
            position += len(word) + 1

    def origin(self, position: int) -> int:
        """Where the character at ``position`` of ``.text`` stands in the source."""
        index = bisect_right(self._starts, position) - 1
        return self._origin[index] + position - self._starts[index]


def shorten(text: str, limit: int) -> str:
    """``even(text)``, cut at a word with an ellipsis where it is longer than ``limit`` characters."""
    plain = even(text)
    if len(plain) <= limit:
        return plain
    return plain[:limit].rsplit(" ", 1)[0].rstrip(",;:") + "…"
