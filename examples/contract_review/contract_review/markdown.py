"""Contract text into Markdown and back: whatever a contract contains, it cannot become markup in the report."""

from __future__ import annotations

import re

from contract_review.spans import even, shorten

_MARKUP = re.compile(r"([\\`*_<>\[\]|#])")
_ESCAPED = re.compile(r"\\([\\`*_<>\[\]|#])")


def plain_to_markdown(text: str, limit: int = 200) -> str:
    """``text`` on one line, at most ``limit`` characters, with markup characters escaped."""
    return _MARKUP.sub(r"\\\1", shorten(text, limit))


def quotation(text: str) -> str:
    """A block quote of all of ``text``; the quotation marks keep a leading ``1.`` or ``-`` from becoming a list."""
    escaped = _MARKUP.sub(r"\\\1", even(text))
    return f'> "{escaped}"' if escaped else ""


def markdown_to_plain(markdown: str) -> str:
    """The words of ``markdown`` on one line, escapes and emphasis undone: what a reviewer searches in."""
    bare = re.sub(r"(?<!\\)[*`]{1,3}", "", markdown)
    return even(_ESCAPED.sub(r"\1", bare))


def quotations(markdown: str) -> list[str]:
    """The text of every block quote line, as plain words without its quotation marks."""
    lines = [line[1:] for line in markdown.splitlines() if line.startswith(">")]
    return [plain for line in lines if (plain := markdown_to_plain(line).strip('"“” '))]


def empty_sections(markdown: str) -> list[str]:
    """Headings with nothing below them before the next heading of the same or a higher rank, or the end."""
    headings = list(re.finditer(r"^(#{1,6})[ \t]+([^\n]*)", markdown, re.M))
    empty = []
    for index, heading in enumerate(headings):
        following = headings[index + 1] if index + 1 < len(headings) else None
        body = markdown[heading.end() : following.start() if following else len(markdown)]
        deeper = following is not None and len(following[1]) > len(heading[1])
        if not body.strip() and not deeper:
            empty.append(heading[2].strip())
    return empty
