"""YAML or JSON text as plain values, and where in the text each of them stands.

YAML is read as JSON with less punctuation: the only booleans are ``true`` and ``false``, numbers are JSON's, and all
else (``on``, ``yes``, ``1:30``, ``2024-01-01``, ``007``) is a string. Keys are always strings. Anchors and aliases
work; tags and merge keys do not. The text is read as a stream of events, so nothing is built before it is counted.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any, assert_never

import yaml

from orchestrator.domain.errors import Problem
from orchestrator.domain.json_values import MAX_INT, MIN_INT, NotJson, loads
from orchestrator.domain.schemas import place_text

MAX_BYTES = 1024 * 1024
MAX_DEPTH = 64
#: Values in the document once its aliases are expanded: a nest of aliases makes billions of a few lines.
MAX_VALUES = 100_000

_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_WORDS: dict[str, Any] = {"": None, "~": None, "null": None, "Null": None, "NULL": None, "true": True, "false": False}
_TEXT_TAG = "tag:yaml.org,2002:str"

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, slots=True)
class Mark:
    """Where a value begins; counted from 1."""

    line: int
    column: int


@dataclass(slots=True)
class Document:
    """``value`` is plain JSON. ``keys`` and ``values`` map a path such as ``steps[1].with`` to its mark."""

    value: Any
    keys: dict[str, Mark] = field(default_factory=dict)
    values: dict[str, Mark] = field(default_factory=dict)

    def mark(self, path: str, *, key: bool = False) -> Mark | None:
        """Where ``path`` stands, or the nearest thing that encloses it and stands in the text."""
        if key and path in self.keys:
            return self.keys[path]
        while path not in self.values and path:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return self.values.get(path)


class TextError(ValueError):
    """The text cannot be read; ``problem`` says where."""

    def __init__(self, message: str, mark: Mark | None = None, path: str = "") -> None:
        super().__init__(message)
        self.problem = Problem(message, path, mark.line if mark else None, mark.column if mark else None)


def read_text(text: str) -> Document:
    """Raises ``TextError``. Limits: 1 MiB, 64 levels, 100,000 values."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise TextError("the text holds a lone surrogate, which is not Unicode; save the file as UTF-8") from None
    if size > MAX_BYTES:
        raise TextError(f"the definition has {size} bytes; the limit is {MAX_BYTES}")
    document = _from_json(text)
    return document if document is not None else _Builder(_tree(text)).document()


def _from_json(text: str) -> Document | None:
    """None where the text is not JSON, and may be YAML."""
    if not text.lstrip().startswith("{"):
        return None
    try:
        value = loads(text, max_depth=MAX_DEPTH)
    except NotJson:
        return None
    try:
        same = _Builder(_tree(text)).document()
    except _NotYaml:  # as with tabs between the tokens: what only JSON allows has no marks
        return Document(value)
    return Document(value, same.keys, same.values)


class _NotYaml(TextError):
    """What the YAML parser itself refuses; our own rules hold for JSON too."""


@dataclass(slots=True)
class _Scalar:
    value: Any
    text: str
    mark: Mark


@dataclass(slots=True)
class _List:
    mark: Mark
    items: list[_Node] = field(default_factory=list)


@dataclass(slots=True)
class _Map:
    mark: Mark
    items: list[tuple[_Scalar, _Node]] = field(default_factory=list)


_Node = _Scalar | _List | _Map


def _tree(text: str) -> _Node:
    reader = _TreeReader()
    try:
        for event in yaml.parse(text, Loader=_Loader):
            reader.take(event)
    except yaml.MarkedYAMLError as error:
        at = error.problem_mark or error.context_mark
        raise _NotYaml(f"not YAML: {error.problem}", _mark(at) if at else None) from None
    except yaml.YAMLError as error:
        raise _NotYaml(f"not YAML: {str(error).splitlines()[0]}") from None
    if reader.root is None:
        raise TextError("the definition is empty")
    return reader.root


@dataclass(slots=True)
class _Frame:
    """A list or map that is being read. ``key`` waits for its value."""

    node: _List | _Map
    anchor: str | None
    key: _Scalar | None = None
    seen: set[str] = field(default_factory=set)


class _TreeReader:
    """Builds the tree from events without recursion, so that depth is refused before it can hurt."""

    def __init__(self) -> None:
        self.root: _Node | None = None
        self._open: list[_Frame] = []
        self._anchors: dict[str, _Node] = {}
        self._count = 0

    def take(self, event: yaml.Event) -> None:
        match event:
            case yaml.ScalarEvent():
                node = _scalar(event)
                self._add(node)
                if event.anchor:
                    self._anchors[event.anchor] = node
            case yaml.AliasEvent():
                self._add(self._named(event))
            case yaml.SequenceStartEvent():
                self._begin(_List(_mark(event.start_mark)), event)
            case yaml.MappingStartEvent():
                self._begin(_Map(_mark(event.start_mark)), event)
            case yaml.SequenceEndEvent() | yaml.MappingEndEvent():
                frame = self._open.pop()
                if frame.anchor:  # only now: an alias inside the value that it names would make it endless
                    self._anchors[frame.anchor] = frame.node
            case yaml.DocumentStartEvent() if self.root is not None:
                raise TextError("one file holds one definition: this is a second document", _mark(event.start_mark))
            case _:
                return

    def _named(self, event: yaml.AliasEvent) -> _Node:
        if event.anchor not in self._anchors:
            message = f"the alias *{event.anchor} has no anchor &{event.anchor} before it"
            raise TextError(message, _mark(event.start_mark))
        return self._anchors[event.anchor]

    def _begin(self, node: _List | _Map, event: yaml.CollectionStartEvent) -> None:
        if event.tag:
            raise TextError(f"tags are not supported: {event.tag}", node.mark)
        if len(self._open) == MAX_DEPTH:
            raise TextError(f"nested deeper than {MAX_DEPTH}", node.mark)
        self._add(node)
        self._open.append(_Frame(node, event.anchor))

    def _add(self, node: _Node) -> None:
        self._count += 1
        if self._count > MAX_VALUES:
            raise TextError(f"the definition holds more than {MAX_VALUES} values", node.mark)
        if not self._open:
            self.root = node
            return
        frame = self._open[-1]
        if isinstance(frame.node, _List):
            frame.node.items.append(node)
        elif frame.key is None:
            frame.key = self._key(frame, node)
        else:
            frame.node.items.append((frame.key, node))
            frame.key = None

    def _key(self, frame: _Frame, node: _Node) -> _Scalar:
        if not isinstance(node, _Scalar):
            raise TextError("a key must be a plain word or string; quote it", node.mark)
        if node.text in frame.seen:
            raise TextError(f"the key {node.text!r} is repeated", node.mark)
        frame.seen.add(node.text)
        return node


def _scalar(event: yaml.ScalarEvent) -> _Scalar:
    mark, text = _mark(event.start_mark), event.value
    if event.tag not in (None, "!", _TEXT_TAG):
        raise TextError(f"tags are not supported: {event.tag}", mark)
    if "\0" in text or any("\ud800" <= char <= "\udfff" for char in text):
        raise TextError("the text holds a NUL character or a lone surrogate; take it out", mark)
    value = _plain(text, mark) if event.implicit[0] and event.tag is None else text
    return _Scalar(value, text, mark)


def _plain(text: str, mark: Mark) -> Any:
    """An unquoted scalar."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        if len(text) > 20 or not MIN_INT <= int(text) <= MAX_INT:
            raise TextError("an integer of more than 64 bits; quote it", mark)
        return int(text)
    if _FLOAT.fullmatch(text):
        if math.isinf(value := float(text)):
            raise TextError(f"{text} is larger than any number; quote it", mark)
        return value
    return text


def _mark(mark: Any) -> Mark:
    return Mark(mark.line + 1, mark.column + 1)


class _Builder:
    """From the tree to the value. An alias is built anew wherever it stands, so that every path has its mark."""

    def __init__(self, root: _Node) -> None:
        self._root = root
        self._document = Document(None)
        self._count = 0

    def document(self) -> Document:
        self._document.value = self._build(self._root, (), self._root.mark)
        return self._document

    def _build(self, node: _Node, path: tuple[str | int, ...], at: Mark) -> Any:
        self._count += 1
        if self._count > MAX_VALUES:
            raise TextError(f"with its aliases the definition holds more than {MAX_VALUES} values", at)
        if len(path) > MAX_DEPTH:
            raise TextError(f"with its aliases nested deeper than {MAX_DEPTH}", at)
        self._document.values[place_text(path)] = node.mark
        match node:
            case _Scalar():
                return node.value
            case _List():
                return [self._build(item, (*path, i), item.mark) for i, item in enumerate(node.items)]
            case _Map():
                return {key.text: self._entry(key, item, (*path, key.text)) for key, item in node.items}
            case _:
                assert_never(node)

    def _entry(self, key: _Scalar, node: _Node, path: tuple[str | int, ...]) -> Any:
        self._document.keys[place_text(path)] = key.mark
        return self._build(node, path, key.mark)
