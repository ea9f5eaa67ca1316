"""From a workflow file to a ``Workflow``, or to everything that is wrong with it, each with its place in the text."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from orchestrator.domain import workflow as language
from orchestrator.domain.definition_text import Document, TextError, read_text
from orchestrator.domain.errors import DefinitionError, Problem
from orchestrator.domain.lint import check_workflow
from orchestrator.domain.schemas import place_text
from orchestrator.domain.workflow import FORMS, NAME, Agent, Workflow

MAX_PROBLEMS = 20
_MAX_EXPLAINED = 200
_KINDS: dict[str, type[BaseModel]] = {
    "python": language.PythonAgent,
    "http": language.HttpAgent,
    "chat": language.ChatAgent,
    "scripted": language.ScriptedAgent,
}
_PARTS: dict[str, type[BaseModel]] = {
    "retry": language.Retry,
    "timeout": language.Timeout,
    "join": language.Join,
    "supervise": language.Supervise,
    "limits": language.Limits,
    "price": language.Price,
}
_NAME_RULE = "is not a name: letters, digits, _ and -, beginning with a letter or _, at most 63"
_PATTERNS = {
    NAME: _NAME_RULE,
    r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$": "is not a workflow name: letters, digits, '.', _ and -, at most 63",
    r"^(\d+)/(s|m|h)$": "is not a rate: write a number and s, m or h, as in 100/m",
    r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$": "is not a target: write package.module:callable",
}
_TYPES = {
    "string_type": "a string",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "dict_type": "a map",
    "tuple_type": "a list",
    "model_type": "a map",
    "model_attributes_type": "a map",
}


def parse_workflow(text: str, *, file: str | None = None, known_agents: Mapping[str, Agent] | None = None) -> Workflow:
    """The workflow that YAML or JSON ``text`` defines. At most 1 MiB, 64 levels deep.

    ``known_agents`` are those registered apart; None: they are not known here, so an agent that the file does not
    define is let pass. Raises ``DefinitionError`` with every problem found, at most 20, in the order of the text.
    """
    try:
        document = read_text(text)
    except TextError as error:
        raise DefinitionError([error.problem], file=file) from None
    workflow, problems = _validated(document)
    if workflow is not None:
        problems = [_marked(problem, document) for problem in check_workflow(workflow, known_agents)]
    if workflow is None or problems:
        raise DefinitionError(_first(problems), file=file)
    return workflow


def workflow_json_schema() -> dict[str, Any]:
    """The published JSON Schema (draft 2020-12) of a workflow file, for editors and for other programs."""
    schema = _with_durations(Workflow.model_json_schema(by_alias=True))
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:orchestrator:schema:workflow:1",
        **schema,
        "title": "Orchestrator workflow",
    }


def _with_durations(schema: Any) -> Any:
    """Durations are held in seconds but written as text: their defaults must be shown as they would be written."""
    if isinstance(schema, list):
        return [_with_durations(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    out = {key: _with_durations(value) for key, value in schema.items()}
    if out.get("type") == "string" and isinstance(out.get("default"), float):
        out["default"] = f"{out['default']:g}s"
    return out


def _validated(document: Document) -> tuple[Workflow | None, list[Problem]]:
    if not isinstance(document.value, dict):
        mark = document.mark("")
        message = "a workflow is a map with name and steps"
        return None, [Problem(message, "", mark.line if mark else None, mark.column if mark else None)]
    try:
        return Workflow.model_validate(document.value), []
    except ValidationError as error:
        found = (_problem(detail, document) for detail in error.errors(include_url=False)[:_MAX_EXPLAINED])
        return None, [problem for problem in found if problem is not None]


def _first(problems: list[Problem]) -> list[Problem]:
    ordered = sorted(problems, key=lambda p: (p.line or 0, p.column or 0))
    if len(ordered) > MAX_PROBLEMS:
        rest = Problem(f"and {len(ordered) - MAX_PROBLEMS + 1} more problems; mend these first")
        return [*ordered[: MAX_PROBLEMS - 1], rest]
    return ordered


def _marked(problem: Problem, document: Document, *, key: bool = False) -> Problem:
    mark = document.mark(problem.path, key=key)
    return replace(problem, line=mark.line, column=mark.column) if mark else problem


# -- pydantic's complaints in the words of the file


class _Place(NamedTuple):
    """``model`` describes the value at ``path``, where it is one of ours."""

    path: tuple[str | int, ...]
    model: type[BaseModel] | None


def _problem(detail: ErrorDetails, document: Document) -> Problem | None:
    """None for an echo: a list whose items are wrong is also called too short."""
    loc = detail["loc"]
    on_key = loc[-1:] == ("[key]",)
    place = _place(loc[:-1] if on_key else loc)
    extra = detail["type"] == "extra_forbidden"
    if detail["type"] == "too_short" and detail["input"]:
        return None
    message, nearest = (_unknown_key if extra else _complaint)(detail, place)
    return _marked(Problem(message, place_text(place.path), nearest=nearest), document, key=extra or on_key)


def _complaint(detail: ErrorDetails, place: _Place) -> tuple[str, str | None]:
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    match kind:
        case "missing":
            return f"{place.path[-1]!r} is missing", None
        case "union_tag_not_found" | "union_tag_invalid":
            return _wrong_form(value, place)
        case "literal_error" | "enum":
            words = [word.strip("'") for word in context["expected"].replace(" or ", ", ").split(", ")]
            return f"{_shown(value)} is none of {', '.join(words)}", _nearest(value, words)
        case "string_pattern_mismatch":
            rule = _PATTERNS.get(context["pattern"], f"does not match {context['pattern']}")
            return f"{_shown(value)} {rule}", None
        case "too_short":
            return "at least one is needed", None
        case "value_error":
            return f"{_shown(value)} is {context['error']}" if "duration" in detail["msg"] else str(
                context["error"]
            ), None
        case _ if kind in _TYPES:
            return f"this is {_TYPES[kind]}, got {_shown(value)}", None
        case _:
            return f"{detail['msg'].replace('Input should', 'it should')}, got {_shown(value)}", None


def _wrong_form(value: Any, place: _Place) -> tuple[str, str | None]:
    if not isinstance(value, dict):
        return f"this is a map, got {_shown(value)}", None
    if place.path[:-1] == ("agents",):
        kinds = list(_KINDS)
        if "kind" not in value:
            return f"'kind' is missing: one of {', '.join(kinds)}", None
        return f"{_shown(value['kind'])} is no kind of agent: one of {', '.join(kinds)}", _nearest(value["kind"], kinds)
    near = (_nearest(key, FORMS) for key in value)
    return f"a step has one of {', '.join(FORMS)}", next((word for word in near if word), None)


def _unknown_key(_detail: ErrorDetails, place: _Place) -> tuple[str, str | None]:
    key = str(place.path[-1])
    if place.model in FORMS.values():
        form = next(name for name, model in FORMS.items() if model is place.model)
        if key in FORMS:
            return f"a step has one form: it cannot have both {form!r} and {key!r}", None
        return f"unknown key {key!r} in a step with {form!r}", _nearest(key, _fields(place.model))
    return f"unknown key {key!r}", _nearest(key, _fields(place.model))


def _fields(model: type[BaseModel] | None) -> list[str]:
    return [info.alias or name for name, info in model.model_fields.items()] if model else []


def _nearest(value: object, words: Iterable[str]) -> str | None:
    near = difflib.get_close_matches(value, list(words), 1) if isinstance(value, str) else []
    return near[0] if near else None


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"


# -- where it is: pydantic names the branch of each union on the way, which is no part of the file


def _place(loc: tuple[str | int, ...]) -> _Place:
    if len(loc) > 1 and loc[0] == "steps":
        return _within(loc[:2], loc[2:], _step)
    if len(loc) > 2 and loc[0] == "agents":
        return _within(loc[:2], loc[3:], lambda rest: _fielded(rest, _KINDS.get(str(loc[2]))))
    return _fielded(loc, Workflow)


def _within(
    head: tuple[str | int, ...], rest: tuple[str | int, ...], reader: Callable[[tuple[str | int, ...]], _Place]
) -> _Place:
    place = reader(rest)
    return _Place((*head, *place.path), place.model)


def _step(loc: tuple[str | int, ...]) -> _Place:
    model = FORMS.get(str(loc[0])) if loc else None
    rest = loc[1:] if model else loc
    if len(rest) > 1 and rest[0] == "do":
        return _within(rest[:1], rest[1:], _body)
    if len(rest) > 2 and rest[0] == "parallel":
        return _within(rest[:2], rest[2:], _body)
    return _fielded(rest, model)


def _body(loc: tuple[str | int, ...]) -> _Place:
    if loc[0] == "list" and len(loc) > 1:
        return _within(loc[1:2], loc[2:], _step)
    return _step(loc[1:])


def _fielded(loc: tuple[str | int, ...], model: type[BaseModel] | None) -> _Place:
    """Fields of ``model``, and of the one part it may hold: ``retry.attempts``."""
    part = _PARTS.get(str(loc[0])) if len(loc) > 1 else None
    return _Place(loc, part or (model if len(loc) == 1 else None))
