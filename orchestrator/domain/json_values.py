"""JSON in and out: what is stored, hashed and sent is RFC 8259 text that every other program reads the same way.

A JSON value here is None, a bool, an int from -2**63 to 2**64-1, a finite float, a text without NUL and lone
surrogates, a list, or a dict with such texts as keys; at most 100 deep. What ``loads`` gives, ``dumps`` takes.
On the way out tuples, enums (by value), UUIDs, pydantic models and dataclasses are turned into JSON; all else is
refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from enum import Enum
from typing import Any
from uuid import UUID

import orjson
from pydantic import BaseModel

from orchestrator.domain.errors import InvalidInput

MAX_DEPTH = 100
MIN_INT, MAX_INT = -(2**63), 2**64 - 1

_PLAIN = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_SUBCLASS
_SORTED = _PLAIN | orjson.OPT_SORT_KEYS
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_INTEGER = re.compile(rb"(?<![\d.eE+-])-?\d{19,}(?![\d.eE])")
_DIGITS = bytes.maketrans(b"123456789", b"000000000")
#: ``[`` and ``{`` become ``(``, ``]`` and ``}`` become ``)``, the rest is dropped: what is left shows the nesting.
_BRACKETS = bytes.maketrans(b"[{]}", b"(())")
_NOT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")


class NotJson(InvalidInput):
    """A value or text that is not JSON as above. ``path`` is where, as in ``clauses[3].title``; empty: at the top."""

    def __init__(self, message: str, path: str = "", *, too_large: bool = False) -> None:
        super().__init__(f"at {path}: {message}" if path else message)
        self.path = path
        self.too_large = too_large


def dumps(value: Any, *, max_bytes: int | None = None) -> str:
    """Compact JSON text, keys in the order they stand. Raises ``NotJson``; ``max_bytes`` counts UTF-8."""
    return _dump(value, _PLAIN, max_bytes).decode()


def canonical(value: Any) -> str:
    """Compact JSON text with sorted keys: equal values give equal texts. Raises ``NotJson``."""
    return _dump(value, _SORTED, None).decode()


def digest(value: Any) -> str:
    """SHA-256 of the canonical text, in hex. Raises ``NotJson``."""
    return hashlib.sha256(_dump(value, _SORTED, None)).hexdigest()


def loads(data: str | bytes, *, max_bytes: int | None = None, max_depth: int = MAX_DEPTH) -> Any:
    """The value of a JSON text. Of a repeated key the last one holds. Raises ``NotJson``."""
    raw = _encoded(data)
    if max_bytes is not None and len(raw) > max_bytes:
        raise NotJson(f"{len(raw)} bytes of JSON, the limit is {max_bytes}", too_large=True)
    if _deeper(raw, max_depth):
        raise NotJson(f"JSON nested deeper than {max_depth}")
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise NotJson(f"not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    # The parser turns integers above 64 bits into floats without a word, and NUL must not reach PostgreSQL.
    if b"\\u0000" in raw or b"0" * 19 in raw.translate(_DIGITS):
        _check_integers(raw)
        return normal(value)
    return value


def too_deep(text: str) -> bool:
    """Whether JSON that was put together from parts nests deeper than ``loads`` takes."""
    return _deeper(text.encode(), MAX_DEPTH)


def normal(value: Any) -> Any:
    """``value`` as plain JSON types, or ``NotJson`` with the place of what is wrong."""
    return _normal(value, "", 0)


def _dump(value: Any, option: int, max_bytes: int | None) -> bytes:
    raw = _fast(value, option)
    if raw is None:
        raw = orjson.dumps(normal(value), option=option)
    if max_bytes is not None and len(raw) > max_bytes:
        raise NotJson(f"{len(raw)} bytes of JSON, the limit is {max_bytes}", too_large=True)
    return raw


def _fast(value: Any, option: int) -> bytes | None:
    """The text, or None when only the slow way can tell whether it is right: orjson writes NaN as null."""
    try:
        raw = orjson.dumps(value, option=option)
    except orjson.JSONEncodeError:
        return None
    if b"\\u0000" in raw or (b"null" in raw and orjson.loads(raw) != value) or _deeper(raw, MAX_DEPTH):
        return None
    return raw


def _normal(value: Any, path: str, depth: int) -> Any:
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, (dict, list, tuple)):
        return _normal_container(value, path, depth)
    return _normal_scalar(value, path)


def _normal_container(value: dict[Any, Any] | list[Any] | tuple[Any, ...], path: str, depth: int) -> Any:
    if depth >= MAX_DEPTH:
        raise NotJson(f"nested deeper than {MAX_DEPTH}", path[:80] + "…")
    if isinstance(value, dict):
        return {
            _normal_key(key, path): _normal(item, f"{path}.{key}" if path else str(key), depth + 1)
            for key, item in value.items()
        }
    return [_normal(item, f"{path}[{i}]", depth + 1) for i, item in enumerate(value)]


def _normal_key(key: Any, path: str) -> str:
    if not isinstance(key, str):
        raise NotJson(f"the key {key!r} is of type {type(key).__name__}; JSON keys are strings", path)
    return _normal_text(str(key), path)


def _normal_scalar(value: Any, path: str) -> Any:
    match value:
        case None | bool():
            return value
        case str():
            return _normal_text(value, path)
        case int():
            if MIN_INT <= value <= MAX_INT:
                return int(value)
            raise NotJson("an integer of more than 64 bits; write it as a string", path)
        case float():
            if math.isfinite(value):
                return float(value)
            raise NotJson(f"{value} is not JSON; write null or a string", path)
        case UUID():
            return str(value)
        case _:
            raise NotJson(f"a value of type {type(value).__module__}.{type(value).__qualname__} is not JSON", path)


def _normal_text(text: str, path: str) -> str:
    if "\0" in text:
        raise NotJson("a text with a NUL character; take it out", path)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise NotJson("a text with a lone surrogate, which is not Unicode; decode it properly", path) from None
    return str.__str__(text)


def _encoded(data: str | bytes) -> bytes:
    if isinstance(data, bytes):
        return data
    try:
        return data.encode()
    except UnicodeEncodeError:
        raise NotJson("the text holds a lone surrogate, which is not Unicode; decode it properly") from None


def _check_integers(raw: bytes) -> None:
    for match in _INTEGER.finditer(_STRING.sub(b'""', raw)):
        text = match.group()
        if len(text) > 20 or not MIN_INT <= int(text) <= MAX_INT:
            raise NotJson(f"{text[:40].decode()} is an integer of more than 64 bits; write it as a string")


def _deeper(raw: bytes, limit: int) -> bool:
    """Whether the text nests deeper than ``limit``, told without parsing it."""
    if raw.count(b"[") + raw.count(b"{") <= limit:
        return False
    return _nests(raw, limit) and _nests(_STRING.sub(b"", raw), limit)


def _nests(raw: bytes, limit: int) -> bool:
    """True also where brackets do not pair, as inside strings. Each turn takes away the innermost level."""
    left = raw.translate(_BRACKETS, _NOT_BRACKETS)
    for _ in range(limit):
        if not left:
            return False
        left = left.replace(b"()", b"")
    return bool(left)
