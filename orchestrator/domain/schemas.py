"""JSON Schema, draft 2020-12: compiled once, checked in microseconds, never fetching anything.

``$schema`` may be left out; another draft named there is read as 2020-12. ``$ref`` stays inside the schema. ``format``
is a note to readers and not checked, as the draft says. ``pattern`` is matched by an engine without backtracking.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jsonschema_rs

from orchestrator.domain.errors import DefinitionError, Problem

MAX_PROBLEMS = 10
_MAX_MESSAGE = 300


@dataclass(frozen=True, slots=True)
class Schema:
    """A compiled schema; the caller keeps it. Safe to share between threads."""

    _validator: jsonschema_rs.Validator

    def problems(self, value: Any) -> list[str]:
        """Where and how ``value``, plain JSON, misses the schema: at most ten, empty when it holds."""
        if self._validator.is_valid(value):
            return []
        found: list[str] = []
        for error in self._validator.iter_errors(value):
            if len(found) == MAX_PROBLEMS:
                break
            place = place_text(error.instance_path)
            found.append(f"{place}: {_shorten(error.message)}" if place else _shorten(error.message))
        return found


def compile_schema(schema: dict[str, Any], where: str) -> Schema:
    """Raises ``DefinitionError`` with one problem at ``where``, the definition path of the schema."""
    try:
        validator = jsonschema_rs.Draft202012Validator(
            schema, offline=True, pattern_options=jsonschema_rs.RegexOptions()
        )
    except jsonschema_rs.ValidationError as error:
        place = place_text(error.instance_path)
        at = f"{where}.{place}" if place and not place.startswith("[") else f"{where}{place}"
        raise DefinitionError([Problem(f"not a JSON Schema: {_explain(error)}", at)]) from None
    except ValueError as error:
        raise DefinitionError([Problem(f"not a JSON Schema: {_shorten(str(error))}", where)]) from None
    return Schema(validator)


def place_text(path: Iterable[str | int] | Sequence[str | int]) -> str:
    """``["clauses", 3, "title"]`` as ``clauses[3].title``."""
    text = ""
    for key in path:
        text += f"[{key}]" if isinstance(key, int) else (f".{key}" if text else key)
    return text


def _explain(error: jsonschema_rs.ValidationError) -> str:
    if "Retrieval is disabled" in error.message:
        return "$ref may only point into the same schema, as in #/$defs/name; nothing is fetched"
    if error.message.startswith("Pointer "):
        return f"$ref leads nowhere: {_shorten(error.message)}"
    if error.instance_path and error.instance_path[-1] == "type":
        types = "null, boolean, object, array, number, string or integer"
        return f"type is {types}, got {_shorten(str(error.instance))!r}"
    return _shorten(error.message)


def _shorten(text: str) -> str:
    return text if len(text) <= _MAX_MESSAGE else text[: _MAX_MESSAGE - 1] + "…"
