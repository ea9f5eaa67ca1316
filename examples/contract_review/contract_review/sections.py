"""Splitting a contract into sections that cover it from its first character to its last.

Four kinds of heading are tried in turn, and the first that yields at least two sections wins: ``Article IV``,
``4.`` (also ``Section 4``, ``4)``, ``§ 4``), ``IV.``, headings on lines of their own. Else the text is cut into
paragraphs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

from contract_review.spans import even, shorten

_KEYWORD = r"(?:(?:section|article|clause)[ \t]+|§[ \t]*)"
_LEAD = r"^(?P<indent>[ \t]*)(?:#{1,6}[ \t]+)?\*{0,2}"
_ARTICLE = re.compile(rf"{_LEAD}(?i:{_KEYWORD})(?P<number>[IVXL]{{1,7}})\b[.):]?(?P<head>[^\r\n]*)", re.M)
_NUMBERED = re.compile(
    rf"{_LEAD}(?:(?i:{_KEYWORD})(?P<named>\d{{1,3}})\b[.):]?"
    rf"|(?P<number>\d{{1,3}})[.)](?=[ \t*]+[A-Z\"“*]))(?P<head>[^\r\n]*)",
    re.M,
)
_ROMAN = re.compile(rf"{_LEAD}(?P<number>[IVXL]{{1,7}})[.)](?=[ \t]+[A-Z\"“])(?P<head>[^\r\n]*)", re.M)
_ALONE = re.compile(r"^[ \t]*(?:#{1,6}[ \t]+\S[^\r\n]{0,90}|\*{0,2}[A-Z][^\r\n.;,\"”]{2,58})[ \t]*\r?$", re.M)
_ANNEX = re.compile(
    r"^[ \t]*(?:(?:APPENDIX|SCHEDULE|EXHIBIT|ANNEX|ATTACHMENT|END OF|IN WITNESS)\b"
    r"|(?:Appendix|Schedule|Exhibit|Annex|Attachment) [A-Z0-9]{1,3}\b)[^\r\n]{0,80}\r?$",
    re.M,
)
_ROMAN_VALUES = {"I": 1, "V": 5, "X": 10, "L": 50}
_MODAL = re.compile(r"\b(?:shall|must|will|may|is|are|agrees?)\b")
#: More starts than this are lists inside clauses, not other numberings of the whole.
_STARTS = 20


class Section(NamedTuple):
    """``number`` is empty for what stands before the first heading, for annexes and for plain paragraphs."""

    number: str
    title: str
    start: int
    end: int


class _Heading(NamedTuple):
    value: int
    number: str
    indent: int
    start: int
    end: int
    head: str


def split_sections(text: str, limit: int = 500) -> list[Section]:
    """At most ``limit`` sections, in order, each beginning where the one before ends; none for a blank text."""
    if not text.strip():
        return []
    for pattern in (_ARTICLE, _NUMBERED, _ROMAN):
        chain = _best_chain(list(_headings(pattern, text)), len(text))
        if len(chain) >= 2:
            return _fold(_with_annexes(text, chain), limit)
    alone = _alone(text)
    if len(alone) >= 2:
        return _fold(_covering(text, [(m.start(), "", _clean(m[0])) for m in alone]), limit)
    return _paragraphs(text, limit)


def _headings(pattern: re.Pattern[str], text: str) -> Iterable[_Heading]:
    for found in pattern.finditer(text):
        named = found.groupdict()
        number = named.get("named") or named["number"]
        value = int(number) if number.isdigit() else _roman(number)
        yield _Heading(value, number, len(named["indent"]), found.start(), found.end(), found["head"])


def _roman(number: str) -> int:
    values = [_ROMAN_VALUES[letter] for letter in number]
    return sum(-a if a < b else a for a, b in pairwise([*values, 0]))


def _best_chain(headings: list[_Heading], end: int) -> list[_Heading]:
    """The numbering 1, 2, 3… with the most sections of substance: a table of contents or an inner list has fewer."""
    best: list[_Heading] = []
    most = 0
    for index in [i for i, heading in enumerate(headings) if heading.value == 1][:_STARTS]:
        chain = [headings[index]]
        for heading in headings[index + 1 :]:
            if heading.value == chain[-1].value + 1 and heading.indent <= chain[0].indent + 1:
                chain.append(heading)
        starts = [heading.start for heading in chain] + [end]
        substance = sum(b - a >= 80 for a, b in pairwise(starts))
        if substance > most:
            best, most = chain, substance
    return best


def _with_annexes(text: str, chain: list[_Heading]) -> list[Section]:
    marks = [(heading.start, heading.number, _title(text, heading)) for heading in chain]
    last = chain[-1].start
    for found in _ANNEX.finditer(text, chain[-1].end):
        before = text[max(last, found.start() - 80) : found.start()]
        if re.search(r"\n[ \t\r]*\n[ \t]*$", before):
            marks.append((found.start(), "", _clean(found[0])))
    return _covering(text, marks)


def _title(text: str, heading: _Heading) -> str:
    head = heading.head.strip(" \t*:.-–—")
    if not head:
        following = text[heading.end : heading.end + 200].strip().splitlines()
        head = following[0].strip(" \t*:") if following else ""
    sentence = re.split(r"[.:](?:\s|\*|$)", head, maxsplit=1)[0]
    if len(sentence) <= 80 and not _MODAL.search(sentence):
        return even(sentence)
    return " ".join(even(head).split(" ")[:6]) + "…"


def _clean(line: str) -> str:
    return shorten(line.strip(" \t\r\n#*:"), 80)


def _alone(text: str) -> list[re.Match[str]]:
    """Lines that stand alone between blank ones, or are marked as headings, and read like a title."""
    found = []
    for match in _ALONE.finditer(text):
        line = match[0].strip()
        before, after = text[max(0, match.start() - 4) : match.start()], text[match.end() : match.end() + 4]
        isolated = (not before or before.count("\n") >= 2) and after.count("\n") >= 1
        if line.startswith("#") or (
            isolated and not _MODAL.search(line) and (line.isupper() or after.count("\n") >= 2)
        ):
            found.append(match)
    return found


def _covering(text: str, marks: list[tuple[int, str, str]]) -> list[Section]:
    """Sections from each mark to the next; what stands before the first mark is a section with no number or title."""
    opening = text[: marks[0][0]].strip()
    marks = [(0, "", ""), *marks] if opening else [(0, *marks[0][1:]), *marks[1:]]
    ends = [mark[0] for mark in marks[1:]] + [len(text)]
    return [Section(number, title, start, end) for (start, number, title), end in zip(marks, ends, strict=True)]


def _paragraphs(text: str, limit: int) -> list[Section]:
    """Paragraphs, short ones joined to the next, so that a wall of one-line paragraphs does not become thousands."""
    least = max(200, len(text) // limit)
    marks = [0]
    for gap in re.finditer(r"\n[ \t\r]*\n\s*", text):
        if gap.end() - marks[-1] >= least and gap.end() < len(text):
            marks.append(gap.end())
    titled = [(mark, "", shorten(text[mark : mark + 200], 50)) for mark in marks]
    return _fold(_covering(text, titled), limit)


def _fold(sections: list[Section], limit: int) -> list[Section]:
    """Neighbours joined until there are at most ``limit``."""
    size = -(-len(sections) // limit)
    if size <= 1:
        return sections
    groups = [sections[i : i + size] for i in range(0, len(sections), size)]
    return [group[0]._replace(end=group[-1].end) for group in groups]
