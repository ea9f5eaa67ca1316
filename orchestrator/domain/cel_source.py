"""What an expression's text says, found without running it: its names, the steps it reads, and its static caps.

The CEL module lists variables but not which are bound by a comprehension, nor which step ids are read, and its parser
and evaluator recurse on the native stack: a deep expression would end the process. So the text is read here first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

MAX_BYTES = 4096
MAX_NESTING = 32
#: Chains such as ``1 + 1 + …`` recurse too: 512 of them overflow a thread's stack of 256 KiB.
MAX_OPERATORS = 256

_TOKEN = re.compile(
    r"""
      (?P<space>\s+|//[^\n]*)
    | (?P<string>
        [bB]?[rR][bB]?(?:\"{3}.*?\"{3}|'{3}.*?'{3}|"[^"\n]*"|'[^'\n]*')
      | [bB]?(?:\"{3}(?:[^\\]|\\.)*?\"{3}|'{3}(?:[^\\]|\\.)*?'{3}|"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'))
    | (?P<number>0[xX][0-9a-fA-F]+[uU]?|(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d+)?[uU]?)
    | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
    | (?P<op>&&|\|\||[=!<>]=|.)
    """,
    re.VERBOSE | re.DOTALL,
)
_OPEN, _CLOSE = "([{", ")]}"
_OPERATORS = frozenset(["&&", "||", "==", "!=", "<=", ">=", "<", ">", "+", "-", "*", "/", "%", "!", "?", ".", "["])
TYPES = frozenset(["int", "uint", "double", "string", "bytes", "bool", "list", "map", "null_type", "type"])
_WORDS = frozenset(["true", "false", "null", "in"]) | TYPES
_RESERVED = _WORDS | frozenset(
    "as break const continue else for function if import let loop namespace package return var void while".split()
)
MACROS = frozenset(["all", "exists", "exists_one", "existsOne", "filter", "map"])
_TIMES = ("FullYear", "Month", "Date", "DayOfMonth", "DayOfWeek", "DayOfYear", "Hours", "Minutes", "Seconds")
FUNCTIONS = MACROS | {
    *("has", "size", "contains", "startsWith", "endsWith", "matches", "string", "int", "uint", "double", "bytes"),
    *("type", "dyn", "timestamp", "duration", "getMilliseconds"),
    *(f"get{name}" for name in _TIMES),
}


class SourceError(ValueError):
    """The text breaks a static rule; ``str`` says which."""


@dataclass(frozen=True, slots=True)
class Token:
    kind: str
    text: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Path:
    """A root name followed by fields and constant indexes: ``steps.a[0].b``."""

    root: str
    keys: tuple[str | int, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Facts:
    """``names``: free root identifiers; ``bound``: variables of comprehensions; ``calls``: functions used.

    ``sole`` is the path, if the whole text is one. ``loops`` is how deep comprehensions nest; ``growth`` bounds how
    often ``+`` inside them can multiply a value.
    """

    names: frozenset[str]
    bound: frozenset[str]
    steps: frozenset[str]
    calls: frozenset[str]
    paths: tuple[Path, ...]
    sole: Path | None
    loops: int
    comprehensions: int
    growth: int


def tokens(source: str, start: int = 0) -> Iterator[Token]:
    """The tokens of CEL text from ``start``, without space and comments. Any text has tokens; CEL judges them."""
    for match in _TOKEN.finditer(source, start):
        if match.lastgroup and match.lastgroup != "space":
            yield Token(match.lastgroup, match.group(), match.start(), match.end())


def is_variable(name: str) -> bool:
    """Whether ``name`` can be the name of a variable in CEL."""
    return re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) is not None and name not in _RESERVED


def closing(source: str, start: int) -> int | None:
    """Where the ``}}`` lies that ends the expression begun at ``start``; None if there is none."""
    depth = 0
    for token in tokens(source, start):
        if token.kind != "op":
            continue
        if token.text in _OPEN:
            depth += 1
        elif token.text == "}" and depth == 0:
            return token.start if source.startswith("}}", token.start) else None
        elif token.text in _CLOSE:
            depth -= 1
    return None


def check_caps(source: str) -> None:
    """Raises ``SourceError`` for what must not reach the parser."""
    if len(source.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise SourceError(f"the expression is longer than {MAX_BYTES} bytes")
    depth = operators = 0
    for token in tokens(source):
        if token.kind != "op":
            continue
        depth += (token.text in _OPEN) - (token.text in _CLOSE)
        operators += token.text in _OPERATORS
        if depth > MAX_NESTING:
            raise SourceError(f"the expression is nested deeper than {MAX_NESTING}")
        if operators > MAX_OPERATORS:
            raise SourceError(f"the expression has more than {MAX_OPERATORS} operators and field accesses")


def analyse(source: str) -> Facts:
    """The facts of a text that CEL has parsed. Raises ``SourceError`` for a ``steps`` whose id is not plain."""
    return _Reader(source).read()


class _Reader:
    """One pass over the tokens. ``ends[i]`` is the index of the bracket that closes the one at i."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.tokens = list(tokens(source))
        self.ends = _brackets(self.tokens)
        # (first token, last token, variable) of each comprehension's body.
        self.bodies = [body for i in range(len(self.tokens)) if (body := self._body(i))]
        self.binders = {first - 2 for first, _, _ in self.bodies}

    def read(self) -> Facts:
        roots = [i for i in range(len(self.tokens)) if self._is_root(i)]
        paths = tuple(self._path(i) for i in roots)
        lone = len(roots) == 1 and roots[0] == 0 and paths[0].text == self.source.strip()
        return Facts(
            names=frozenset(path.root for path in paths),
            bound=frozenset(name for _, _, name in self.bodies),
            steps=frozenset(self._step(path) for path in paths if path.root == "steps"),
            calls=frozenset(t.text for i, t in enumerate(self.tokens) if t.kind == "name" and self._at(i + 1) == "("),
            paths=paths,
            sole=paths[0] if lone else None,
            loops=max((self._loops(first) for first, _, _ in self.bodies), default=0),
            comprehensions=len(self.bodies),
            growth=self._growth(),
        )

    def _at(self, i: int) -> str:
        return self.tokens[i].text if 0 <= i < len(self.tokens) else ""

    def _body(self, i: int) -> tuple[int, int, str] | None:
        """``x.map(v, …)`` at the token ``map``."""
        macro = self._at(i) in MACROS and self._at(i - 1) == "." and self._at(i + 1) == "("
        if not macro or i + 2 >= len(self.tokens) or self.tokens[i + 2].kind != "name" or self._at(i + 3) != ",":
            return None
        return i + 4, self.ends.get(i + 1, i + 4), self._at(i + 2)

    def _is_root(self, i: int) -> bool:
        token = self.tokens[i]
        if token.kind != "name" or token.text in _WORDS or i in self.binders:
            return False
        if self._at(i + 1) == "{":
            raise SourceError(f'{token.text}{{…}} builds a message; write a map, as in {{"key": 1}}')
        if self._at(i - 1) == ".":
            if not self._follows_operand(i - 1):
                raise SourceError(f"write {token.text!r} without the dot before it")
            return False
        bound = any(name == token.text and first <= i < last for first, last, name in self.bodies)
        return not bound and self._at(i + 1) != "("

    def _follows_operand(self, i: int) -> bool:
        before = self.tokens[i - 1] if i else None
        return before is not None and (before.kind != "op" or before.text in _CLOSE)

    def _path(self, i: int) -> Path:
        keys: list[str | int] = []
        end = i
        while True:
            one, two, three = self._at(end + 1), self._at(end + 2), self._at(end + 3)
            if one == "." and three != "(" and two:
                keys.append(two)
                end += 2
            elif one == "[" and three == "]" and (key := _literal(self.tokens[end + 2])) is not None:
                keys.append(key)
                end += 3
            else:
                text = self.source[self.tokens[i].start : self.tokens[end].end]
                return Path(self.tokens[i].text, tuple(keys), text)

    def _step(self, path: Path) -> str:
        if path.keys and isinstance(path.keys[0], str):
            return path.keys[0]
        raise SourceError(
            'name the step whose output is meant, as in steps.review or steps["second-review"]: which steps an '
            "expression reads must be known before it runs"
        )

    def _loops(self, i: int) -> int:
        return sum(first <= i < last for first, last, _ in self.bodies)

    def _growth(self) -> int:
        growth = 1
        for first, last, _ in self.bodies:
            growth *= 1 + sum(self._at(i) == "+" for i in range(first, last))
        return growth


def _brackets(found: list[Token]) -> dict[int, int]:
    ends: dict[int, int] = {}
    waiting: list[int] = []
    for i, token in enumerate(found):
        if token.kind == "op" and token.text in _OPEN:
            waiting.append(i)
        elif token.kind == "op" and token.text in _CLOSE and waiting:
            ends[waiting.pop()] = i
    return ends


def _literal(token: Token) -> str | int | None:
    """The constant in ``[…]``, where it is plain: a decimal integer, or a string without prefix or escape."""
    if token.kind == "number" and token.text.isdecimal() and len(token.text) < 10:
        return int(token.text)
    if token.kind == "string" and token.text[0] in "'\"" and "\\" not in token.text:
        quotes = 3 if token.text[:3] in ('"""', "'''") and len(token.text) >= 6 else 1
        return token.text[quotes:-quotes]
    return None
