"""A job's input, from the words of a command.

``key=value`` is text, ``key=@file`` the text of a file, ``key:=json`` any JSON value (``key:='"@literal"'`` for text
that begins with @). ``--input-json`` gives the whole input, as JSON or ``@file``; the keys are then set in it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.domain.errors import InvalidInput, PayloadTooLarge, UsageError

Pairs = Annotated[
    list[str] | None,
    typer.Option("--input", "-i", metavar="KEY=VALUE", help="KEY=text, KEY=@file or KEY:=json; repeat for more."),
]
Document = Annotated[str | None, typer.Option("--input-json", metavar="JSON|@FILE", help="The whole input as JSON.")]

_PAIR = re.compile(r"([A-Za-z_][\w.-]*?)(:?=)(.*)", re.DOTALL)


def read_input(pairs: Sequence[str] | None, document: str | None, *, limit: int) -> Any:
    """The input. ``limit`` is the largest file, in bytes. Raises ``UsageError`` and its kin, naming the key."""
    value: Any = {}
    if document is not None:
        value = read_json(document, "--input-json", limit=limit)
    if not pairs:
        return value
    if not isinstance(value, dict):
        raise UsageError(
            "--input sets keys, but --input-json is not an object.",
            mend="Give one of the two.",
        )
    for pair in pairs:
        key, parsed = _pair(pair, limit)
        value[key] = parsed
    return value


def read_json(text: str, what: str, *, limit: int) -> Any:
    """A JSON value, or that of ``@file``; ``what`` names the option. Raises ``UsageError`` and its kin."""
    return _json(_read(text[1:], what, limit) if text.startswith("@") else text, what, limit)


def read_file(path: Path, what: str, limit: int) -> str:
    """A text file of at most ``limit`` bytes, in UTF-8 (a byte order mark is taken off)."""
    try:
        size = path.stat().st_size
        if size > limit:
            raise PayloadTooLarge(
                f"{what}: {path} has {size:,} bytes; the limit is {limit:,}.",
                mend="Send a reference instead, or raise ORCHESTRATOR_MAX_BODY_BYTES.",
            )
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"{what}: {path} is not UTF-8 text (byte {error.start}).", mend="Convert it, as with iconv -t UTF-8."
        ) from None
    except OSError as error:
        raise UsageError(
            f"{what}: {path} cannot be read: {error.strerror}.",
            mend="Check the path; it is relative to this directory.",
        ) from None


def _pair(pair: str, limit: int) -> tuple[str, Any]:
    match = _PAIR.fullmatch(pair)
    if match is None:
        shown = pair if len(pair) <= 40 else pair[:40] + "…"
        raise UsageError(f"--input {shown!r} is not KEY=VALUE.", mend="Write KEY=text, KEY=@file or KEY:=json.")
    key, sign, text = match.groups()
    if sign == ":=":
        return key, _json(text, f"--input {key}", limit)
    return key, _read(text[1:], f"--input {key}", limit) if text.startswith("@") else text


def _read(name: str, what: str, limit: int) -> str:
    if name == "-":
        return sys.stdin.read(limit + 1)
    return read_file(Path(name), what, limit)


def _json(text: str, what: str, limit: int) -> Any:
    from orchestrator.domain.json_values import NotJson, loads

    try:
        return loads(text, max_bytes=limit)
    except NotJson as error:
        if error.too_large:
            raise PayloadTooLarge(f"{what}: {error.message}.", mend="Raise ORCHESTRATOR_MAX_BODY_BYTES.") from None
        raise InvalidInput(
            f"{what}: {error.message}.", mend="Write RFC 8259 JSON; plain text is given as KEY=text."
        ) from None
