"""Values on their way into and out of the CEL module, and its failures as one class."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from orchestrator.domain.cel_source import Facts, Path

T = TypeVar("T")

#: Element visits one evaluation may cost. A visit takes about 30 ns.
MAX_WORK = 200_000_000
#: Elements or characters that one value may grow to by ``+`` inside loops.
MAX_GROWN = 100_000_000
_SHOWN = 120
_OVERLOAD = re.compile(r"^No such overload.*", re.DOTALL)


class CelError(Exception):
    """Whatever the CEL module raised, or the reason why its result cannot be used; ``str`` is for people."""


def guarded(call: Callable[[], T]) -> T:
    """Runs ``call``; nothing but ``CelError`` leaves it, except what ends the process or the task."""
    try:
        return call()
    except KeyError as error:
        raise CelError(f"there is no field {str(error.args[0]).strip(chr(39))!r}") from None
    except Exception as error:  # noqa: BLE001 - the module raises nearly every built-in class
        raise CelError(_readable(str(error))) from None
    except BaseException as error:
        # A panic of the Rust module derives from BaseException, past every ordinary handler.
        if type(error).__name__ == "PanicException":
            raise CelError(f"the CEL engine could not evaluate it ({error})") from None
        raise


def _readable(message: str) -> str:
    if _OVERLOAD.match(message):
        return "these types do not go together (CEL converts nothing by itself: use double(x), int(x) or string(x))"
    return message.split(". Check ", maxsplit=1)[0].rstrip(".")


def plain(value: Any) -> Any:
    """A CEL result as JSON. Keys are sorted: CEL's maps have no order, and the same input must be sent twice alike."""
    match value:
        case None | bool() | int():
            return value
        case str():
            if "\0" in value:
                raise CelError("the result holds a NUL character, which is not stored")
            return value
        case float():
            if math.isfinite(value):
                return value
            raise CelError(f"the result holds {value}, which JSON cannot carry")
        case list():
            return [plain(item) for item in value]
        case dict():
            wrong = next((key for key in value if not isinstance(key, str)), None)
            if wrong is not None:
                raise CelError(f"the result has the key {wrong!r}; JSON keys are strings")
            return {key: plain(value[key]) for key in sorted(value)}
        case _:
            kind = {"datetime": "a timestamp", "timedelta": "a duration"}.get(type(value).__name__)
            kind = kind or f"a value of type {type(value).__name__}"
            raise CelError(f"the result holds {kind}, which JSON cannot carry; use string(x)")


def follow(path: Path, scope: Mapping[str, Any]) -> Any:
    """The value a path leads to, as CEL would find it; ``CelError`` says where it ends."""
    if path.root not in scope:
        raise CelError(f"there is no {path.root!r} here")
    value, at = scope[path.root], path.root
    for key in path.keys:
        if isinstance(value, Mapping) and isinstance(key, str):
            if key not in value:
                raise CelError(f"there is no field {key!r} in {at}, which has {_names(value)}")
            value = value[key]
        elif isinstance(value, list) and isinstance(key, int):
            if key >= len(value):
                raise CelError(f"there is no item {key} in {at}, which has {len(value)}")
            value = value[key]
        else:
            raise CelError(f"{at} is {show(value)}: it has no {'item' if isinstance(key, int) else 'field'} {key!r}")
        at += f"[{key}]" if isinstance(key, int) else f".{key}"
    return value


def describe(path: Path, scope: Mapping[str, Any]) -> str:
    """What ``path`` holds, for a message."""
    try:
        return show(follow(path, scope))
    except CelError:
        return "missing"


def show(value: Any) -> str:
    """A value as short JSON."""
    if isinstance(value, (dict, list)) and len(value) > 20:
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def _names(value: Mapping[str, Any]) -> str:
    names = list(value)
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "") or "none"


def check_work(facts: Facts, source: str, scope: Mapping[str, Any]) -> None:
    """Refuses what would run for more than seconds or fill memory: CEL has no limit, and cannot be interrupted.

    The bound is coarse and never too low: the largest collection to the power of how deep loops nest, and one more
    because the module's ``map`` and ``filter`` copy all they have collected at each item. ``+`` inside a loop makes
    larger values, which matters where they are looped over again, and for memory.
    """
    if not facts.loops:
        return
    items, text = _largest(scope)
    items = max(items, source.count(",") + 1)
    looped = items * (facts.growth if facts.comprehensions > 1 else 1)
    if looped ** (facts.loops + 1) > MAX_WORK or (facts.growth > 1 and facts.growth * max(items, text) > MAX_GROWN):
        raise CelError(f"it could cost too much: loops {facts.loops} deep over up to {items} items")


def _largest(value: Any) -> tuple[int, int]:
    """The sizes of the largest collection and of the longest string."""
    items, text = 0, 0
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            text = max(text, len(item))
        elif isinstance(item, Mapping):
            items = max(items, len(item))
            waiting.extend(item.values())
        elif isinstance(item, list):
            items = max(items, len(item))
            waiting.extend(item)
    return items, text
