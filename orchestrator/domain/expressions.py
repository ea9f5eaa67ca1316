"""CEL expressions and the templates that hold them. Compiled once, evaluated many times; pure.

``${{ expr }}`` stands in the strings of ``with``, ``output`` and ``for_each``; ``when``, ``until`` and ``checks`` are
bare CEL. A value handed back may be shared with the scope or the definition: read it, never change it.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from orchestrator.domain import cel_engine, cel_source
from orchestrator.domain.cel_source import Facts, SourceError
from orchestrator.domain.cel_values import CelError, check_work, describe, follow, guarded, plain, show
from orchestrator.domain.errors import UsageError

if TYPE_CHECKING:
    import cel

_OPEN = "${{"
_ESCAPED = "$${{"
_HINTS = {"and": "&&", "or": "||", "not": "!", "True": "true", "False": "false", "None": "null"}
_SYNTAX = re.compile(r"ERROR: <input>:(\d+):(\d+): (?:Syntax error: )?(.*)")


class ExpressionError(UsageError):
    """The expression cannot be compiled: it is wrong in itself."""

    code = "invalid_definition"
    status = 422

    def __init__(self, message: str, source: str) -> None:
        super().__init__(message)
        self.source = source


class ExpressionFailed(UsageError):
    """The expression met data it cannot handle. ``message`` holds the expression and the values it used."""

    code = "invalid_definition"
    status = 422

    def __init__(self, message: str, source: str) -> None:
        super().__init__(message)
        self.source = source


@dataclass(frozen=True, slots=True)
class Expression:
    """One CEL expression. ``names`` are the roots it uses; ``steps`` the ids whose outputs it reads."""

    source: str
    names: frozenset[str]
    steps: frozenset[str]
    #: Set for what ``condition`` made: the result must be true or false.
    boolean: bool = False
    _facts: Facts = field(default=None, repr=False, compare=False)  # type: ignore[assignment]
    _program: cel.Program = field(default=None, repr=False, compare=False)

    @classmethod
    def compile(cls, source: str, *, boolean: bool = False) -> Expression:
        """Limits: 4,096 bytes, nesting 32, 256 operators. Raises ``ExpressionError``."""
        try:
            # The caps come first: what they refuse could overflow the parser's stack and end the process.
            cel_source.check_caps(source)
            program = guarded(lambda: cel_engine.load().compile(source))
            facts = cel_source.analyse(source)
        except SourceError as error:
            raise ExpressionError(f"{error}: `{_shorten(source)}`", source) from None
        except CelError as error:
            raise ExpressionError(_syntax_message(source, str(error)), source) from None
        if not facts.names <= set(program.variables()) <= facts.names | facts.bound | cel_source.TYPES:
            raise ExpressionError(f"the names in `{_shorten(source)}` cannot be told; write it more plainly", source)
        for call in sorted(facts.calls - cel_source.FUNCTIONS):
            near = difflib.get_close_matches(call, sorted(cel_source.FUNCTIONS), 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ExpressionError(f"there is no function {call!r} in `{_shorten(source)}`.{hint}", source)
        return cls(source, facts.names, facts.steps, boolean, facts, program)

    def evaluate(self, scope: Mapping[str, Any]) -> Any:
        """The value over ``scope`` as plain JSON; objects that CEL built have their keys sorted.

        ``scope`` holds JSON values under the names used; ``scope["steps"]`` maps step ids to outputs. Raises
        ``ExpressionFailed``.
        """
        try:
            value = self._value(scope)
        except CelError as error:
            raise self._failed(str(error), scope) from None
        if self.boolean and not isinstance(value, bool):
            raise self._failed(f"a condition must be true or false, got {show(value)}", scope)
        return value

    def _value(self, scope: Mapping[str, Any]) -> Any:
        # A bare path keeps the very value, with the order of its keys, and costs no conversion.
        if self._facts.sole is not None:
            return follow(self._facts.sole, scope)
        given = self._given(scope)
        check_work(self._facts, self.source, given)
        return plain(guarded(lambda: self._program.execute(given)))

    def _given(self, scope: Mapping[str, Any]) -> dict[str, Any]:
        """Only what the expression uses: every value handed to CEL is copied."""
        absent = sorted(self.names - scope.keys())
        if absent:
            raise CelError(f"there is no {absent[0]!r} here")
        given = {name: scope[name] for name in self.names}
        if self.steps:
            outputs = scope["steps"]
            missing = sorted(self.steps - outputs.keys())
            if missing:
                raise CelError(f"step {missing[0]!r} has no output here")
            given["steps"] = {name: outputs[name] for name in self.steps}
        return given

    def _failed(self, message: str, scope: Mapping[str, Any]) -> ExpressionFailed:
        values = {path.text: describe(path, scope) for path in self._facts.paths[:5]}
        used = "; ".join(f"{text} is {value}" for text, value in values.items())
        return ExpressionFailed(f"{message}, in `{self.source}`" + (f" where {used}" if used else ""), self.source)


def _syntax_message(source: str, raw: str) -> str:
    """The parser's first complaint, with the mend where the words of another language were used."""
    found = _SYNTAX.search(raw)
    place = f" at column {found[2]}" if found else ""
    complaint = found[3].split(" expecting ")[0] if found else raw
    for token in cel_source.tokens(source):
        if token.kind == "name" and token.text in _HINTS:
            return f"write {_HINTS[token.text]!r} for {token.text!r} in `{_shorten(source)}`"
        if token.text == "=":
            return f"write '==' to compare, in `{_shorten(source)}`"
    return f"`{_shorten(source)}` is not CEL{place}: {complaint}"


def _shorten(source: str) -> str:
    return source if len(source) <= 80 else source[:79] + "…"


def condition(source: str) -> Expression:
    """A bare condition; one ``${{ }}`` around it is allowed. Its ``evaluate`` gives a bool or ``ExpressionFailed``."""
    return Expression.compile(bare(source), boolean=True)


def bare(source: str) -> str:
    """The CEL of a field that holds one expression, with or without ``${{ }}`` around it."""
    text = source.strip()
    if text.startswith(_OPEN):
        end = cel_source.closing(text, len(_OPEN))
        if end is None or end + 2 != len(text):
            raise ExpressionError(f"this is one expression, not a text with expressions: `{_shorten(text)}`", source)
        text = text[len(_OPEN) : end]
    return text.strip()


Part = str | Expression


@dataclass(frozen=True, slots=True)
class _Text:
    """A string with expressions inside: strings stand as they are, other values as compact JSON."""

    parts: tuple[Part, ...]

    def evaluate(self, scope: Mapping[str, Any]) -> str:
        return "".join(part if isinstance(part, str) else _as_text(part.evaluate(scope)) for part in self.parts)


@dataclass(frozen=True, slots=True)
class _Object:
    fields: tuple[tuple[str, _Node], ...]

    def evaluate(self, scope: Mapping[str, Any]) -> dict[str, Any]:
        return {name: node.evaluate(scope) for name, node in self.fields}


@dataclass(frozen=True, slots=True)
class _Array:
    items: tuple[_Node, ...]

    def evaluate(self, scope: Mapping[str, Any]) -> list[Any]:
        return [node.evaluate(scope) for node in self.items]


@dataclass(frozen=True, slots=True)
class _Constant:
    value: Any

    def evaluate(self, _scope: Mapping[str, Any]) -> Any:
        return self.value


_Node = Expression | _Text | _Object | _Array | _Constant


@dataclass(frozen=True, slots=True)
class Template:
    """A JSON value whose strings may hold ``${{ expr }}``. ``constant``: there is none, evaluating costs nothing.

    A string that is exactly one expression takes its value with its type. ``$${{`` writes a literal ``${{``.
    """

    names: frozenset[str]
    steps: frozenset[str]
    constant: bool
    _root: _Node

    @classmethod
    def compile(cls, value: Any) -> Template:
        """Raises ``ExpressionError``."""
        root = _compile(value)
        found = list(_expressions(root))
        names = frozenset().union(*(expression.names for expression in found))
        steps = frozenset().union(*(expression.steps for expression in found))
        return cls(names, steps, isinstance(root, _Constant), root)

    def evaluate(self, scope: Mapping[str, Any]) -> Any:
        """Raises ``ExpressionFailed``."""
        return self._root.evaluate(scope)

    def parts(self) -> dict[str, frozenset[str]]:
        """The steps each field reads, by its dotted name; ``""`` for a value that is no object."""
        return dict(_parts("", self._root))


def _parts(name: str, node: _Node) -> Iterator[tuple[str, frozenset[str]]]:
    if isinstance(node, _Object):
        for key, inner in node.fields:
            yield from _parts(f"{name}.{key}" if name else key, inner)
    else:
        yield name, frozenset().union(*(expression.steps for expression in _expressions(node)))


def _compile(value: Any) -> _Node:
    if isinstance(value, str):
        return _compile_string(value)
    if isinstance(value, dict):
        for key in value:
            if isinstance(key, str) and _OPEN in key:
                raise ExpressionError(f"an expression cannot be a key: {key}", key)
        fields = tuple((key, _compile(item)) for key, item in value.items())
        if all(isinstance(node, _Constant) for _, node in fields):
            return _Constant({key: node.value for key, node in fields if isinstance(node, _Constant)})
        return _Object(fields)
    if isinstance(value, (list, tuple)):
        items = tuple(_compile(item) for item in value)
        if all(isinstance(node, _Constant) for node in items):
            return _Constant([node.value for node in items if isinstance(node, _Constant)])
        return _Array(items)
    return _Constant(value)


def _compile_string(text: str) -> _Node:
    parts = _split(text)
    inner = [part for part in parts if isinstance(part, Expression)]
    if not inner:
        return _Constant("".join(str(part) for part in parts))
    if len(parts) == 1:
        return inner[0]
    return _Text(tuple(parts))


def _split(text: str) -> list[Part]:
    parts: list[Part] = []
    literal, at = "", 0
    while (found := text.find(_OPEN, at)) >= 0:
        if found > 0 and text[found - 1] == "$":
            literal += text[at : found - 1] + _OPEN
            at = found + len(_OPEN)
            continue
        end = cel_source.closing(text, found + len(_OPEN))
        if end is None:
            raise ExpressionError(f"this ${{{{ has no }}}} that ends it: {_shorten(text[found:])}", text)
        parts.append(literal + text[at:found])
        parts.append(Expression.compile(text[found + len(_OPEN) : end].strip()))
        literal, at = "", end + 2
    return [part for part in [*parts, literal + text[at:]] if part != ""]


def _expressions(node: _Node) -> Iterator[Expression]:
    match node:
        case Expression():
            yield node
        case _Text(parts):
            yield from (part for part in parts if isinstance(part, Expression))
        case _Object(fields):
            for _, inner in fields:
                yield from _expressions(inner)
        case _Array(items):
            for inner in items:
                yield from _expressions(inner)
        case _Constant():
            return


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
