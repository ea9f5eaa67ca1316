"""Is this a message we can run? Pure checks, strict where Celery and kombu would raise, hang or run something else.

Two levels. ``open_envelope`` reads the raw entry of a virtual transport's queue (Redis, in-process): JSON that holds
body, headers and properties. ``check_message`` judges the message itself, whatever transport brought it. Both raise
``BadMessage``, whose text names what is wrong.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from typing import Any, Final

import orjson

from orchestrator.canvas.messages import MARKER, STEP, marker_problem, step_problem

#: Largest message, envelope included. Ours have some hundred bytes; a user's own tasks may carry more.
MAX_BYTES: Final = 1024 * 1024
#: Deepest JSON in the arguments of a user's own task.
MAX_DEPTH: Final = 64
MAX_ID: Final = 8192

_UTF8: Final = frozenset({"utf-8", "utf8"})
_TEXTS: Final = ("root_id", "parent_id", "group", "shadow", "argsrepr", "kwargsrepr", "origin", "eta", "expires")
_OURS: Final = {STEP: step_problem, MARKER: marker_problem}


class BadMessage(Exception):
    """Why a message cannot be run."""


def open_envelope(raw: bytes) -> dict[str, Any]:
    """The envelope as kombu's virtual channels want it. Raises ``BadMessage``."""
    if len(raw) > MAX_BYTES:
        raise BadMessage(f"envelope of {len(raw)} bytes, above the limit of {MAX_BYTES}")
    envelope = _json(raw, "envelope")
    if not isinstance(envelope, dict):
        raise BadMessage("envelope is not a JSON object")
    properties = envelope.get("properties")
    if not isinstance(properties, dict):
        raise BadMessage("envelope has no properties")
    if not isinstance(envelope.get("headers"), dict):
        raise BadMessage("envelope has no headers")
    _check_delivery(properties)
    _check_body(envelope.get("body"), properties)
    return envelope


def _check_delivery(properties: Mapping[str, Any]) -> None:
    if not _is_label(properties.get("delivery_tag")):
        raise BadMessage("envelope has no delivery tag")
    delivery = properties.get("delivery_info")
    if not isinstance(delivery, dict):
        raise BadMessage("envelope has no delivery info")
    for name in ("exchange", "routing_key"):
        if not isinstance(delivery.get(name), str):
            raise BadMessage(f"envelope's delivery info has no {name}")


def _check_body(body: Any, properties: Mapping[str, Any]) -> None:
    if not isinstance(body, str):
        raise BadMessage("envelope's body is not a text")
    encoding = properties.get("body_encoding")
    if encoding == "base64":
        try:
            base64.b64decode(body, validate=True)
        except (binascii.Error, ValueError):
            raise BadMessage("envelope's body is not Base64") from None
    elif encoding is not None and (not isinstance(encoding, str) or encoding.lower() != "utf-8"):
        raise BadMessage("envelope's body encoding is neither base64 nor utf-8")


def check_message(message: Any, is_known: Callable[[str], bool]) -> None:
    """``message``: a kombu message, body undecoded; ``is_known``: is there such a task. Raises ``BadMessage``."""
    headers = message.headers
    if not isinstance(headers, Mapping):
        raise BadMessage("headers are not a mapping")
    _check_content(message)
    task = headers.get("task")
    if task is None:
        raise BadMessage("no header 'task': not a Celery message of protocol 2")
    if not isinstance(task, str) or not is_known(task):
        raise BadMessage(f"unknown task {str(task)[:100]!r}")
    _check_headers(headers)
    _check_properties(message.properties)
    args = _check_arguments(message.body, ours=task in _OURS)
    if task in _OURS:
        _check_ours(task, args, headers)


def _check_content(message: Any) -> None:
    if message.content_type != "application/json":
        raise BadMessage(f"content type {str(message.content_type)[:100]!r} is not application/json")
    encoding = message.content_encoding
    if not isinstance(encoding, str) or encoding.lower() not in _UTF8:
        raise BadMessage(f"content encoding {str(encoding)[:100]!r} is not utf-8")
    if message.headers.get("compression"):
        raise BadMessage("compressed: nothing of ours is, and a bomb would be")


def _check_headers(headers: Mapping[str, Any]) -> None:
    if not _is_label(headers.get("id")) or not isinstance(headers["id"], str):
        raise BadMessage("no header 'id'")
    for name in _TEXTS:
        if not isinstance(headers.get(name), str | None):
            raise BadMessage(f"header {name!r} is not a text")
    if not _is_small_number(headers.get("retries", 0)):
        raise BadMessage("header 'retries' is not a whole number")
    limits = headers.get("timelimit")
    if limits is not None and not (
        isinstance(limits, list) and len(limits) == 2 and all(_is_seconds(limit) for limit in limits)
    ):
        raise BadMessage("header 'timelimit' is not a pair of seconds")
    if headers.get("stamped_headers") or headers.get("stamps"):
        raise BadMessage("stamped: not supported here")


def _check_properties(properties: Mapping[str, Any]) -> None:
    for name in ("correlation_id", "reply_to"):
        if not isinstance(properties.get(name), str | None):
            raise BadMessage(f"property {name!r} is not a text")


def _check_arguments(body: Any, *, ours: bool) -> list[Any]:
    if not isinstance(body, bytes | bytearray | memoryview):
        raise BadMessage("body is missing")
    if len(body) > MAX_BYTES:
        raise BadMessage(f"body of {len(body)} bytes, above the limit of {MAX_BYTES}")
    content = _json(bytes(body), "body")
    if not (isinstance(content, list) and len(content) == 3):
        raise BadMessage("body is not [args, kwargs, embed]")
    args, kwargs, embed = content
    if not isinstance(args, list):
        raise BadMessage("args are not a list")
    if not isinstance(kwargs, dict) or not isinstance(embed, dict):
        raise BadMessage("kwargs or embed is not an object")
    if not ours and deeper_than(content, MAX_DEPTH):
        raise BadMessage(f"arguments nest deeper than {MAX_DEPTH} levels")
    if ours and kwargs:
        raise BadMessage("kwargs where there are none")
    _check_embed(embed)
    return args


def _check_embed(embed: Mapping[str, Any]) -> None:
    for name in ("callbacks", "errbacks", "chain"):
        found = embed.get(name)
        if found is not None and not (isinstance(found, list) and all(isinstance(one, dict) for one in found)):
            raise BadMessage(f"embed's {name} are not a list of signatures")
    if not isinstance(embed.get("chord"), dict | None):
        raise BadMessage("embed's chord is not a signature")


def _check_ours(task: str, args: list[Any], headers: Mapping[str, Any]) -> None:
    problem = _OURS[task](args)
    if problem is not None:
        raise BadMessage(problem)
    # Celery would keep it in memory until then, or drop it: our timers and deadlines are rows.
    for name in ("eta", "expires"):
        if headers.get(name) is not None:
            raise BadMessage(f"header {name!r} on a message of ours")


def deeper_than(value: Any, limit: int) -> bool:
    """Does ``value`` nest lists and objects more than ``limit`` deep?"""
    level = [value]
    for _ in range(limit):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer if isinstance(outer, list) else ())
        ]
    return any(isinstance(inner, dict | list) for inner in level)


def _json(raw: bytes, what: str) -> Any:
    try:
        return orjson.loads(raw)
    except (orjson.JSONDecodeError, RecursionError):
        raise BadMessage(f"{what} is not JSON") from None


def _is_label(value: Any) -> bool:
    """Something to know a message by: hashable, not empty, not huge."""
    return type(value) is int or (isinstance(value, str) and 0 < len(value) <= MAX_ID)


def _is_small_number(value: Any) -> bool:
    return value is None or (type(value) is int and 0 <= value <= 2**31)


def _is_seconds(value: Any) -> bool:
    return value is None or (type(value) in {int, float} and 0 <= value <= 2**31)
