"""Messages that are not ours: one for each way of being wrong, and random mutations of a right one."""

from __future__ import annotations

import base64
import copy
import json
import random
from typing import Any

from orchestrator.canvas.messages import step_message
from orchestrator.domain.ids import JobId, StepPath, StepRef


def good_envelope(path: str = "a", queue: str = "default") -> dict[str, Any]:
    """A step as kombu puts it into a Redis list."""
    message = step_message(StepRef(JobId("job"), StepPath(path), 1))
    return {
        "body": base64.b64encode(message.body).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": message.headers,
        "properties": {
            "correlation_id": message.id,
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": queue},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": f"tag-{path}",
        },
    }


def with_body(content: Any, **headers: Any) -> dict[str, Any]:
    envelope = good_envelope()
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    envelope["body"] = base64.b64encode(body).decode()
    envelope["headers"] |= headers
    return envelope


def without(*path: str) -> dict[str, Any]:
    envelope = good_envelope()
    inner = envelope
    for name in path[:-1]:
        inner = inner[name]
    del inner[path[-1]]
    return envelope


def changed(*path_and_value: Any) -> dict[str, Any]:
    envelope = good_envelope()
    *path, last, value = path_and_value
    inner = envelope
    for name in path:
        inner = inner[name]
    inner[last] = value
    return envelope


EMBED: dict[str, Any] = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
PROTOCOL_1 = {"task": "orchestrator.step", "id": "x", "args": ["job", "a", 1], "kwargs": {}}
#: An empty tuple, pickled; written out because nothing here may import that module.
PICKLED = b"\x80\x04)."


def protocol_1() -> dict[str, Any]:
    envelope = with_body(PROTOCOL_1)
    envelope["headers"] = {}
    return envelope


def deep(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


#: Each as the raw entry of a list, by its class.
BROKEN: dict[str, bytes] = {
    "not JSON": b"\xff\xfe not json",
    "empty": b"",
    "JSON, but no envelope": b'"hello"',
    "cut off": json.dumps(good_envelope()).encode()[:-20],
    "deep envelope": deep(100_000),
    "no headers": json.dumps(without("headers")).encode(),
    "headers are a list": json.dumps(changed("headers", [1])).encode(),
    "no properties": json.dumps(without("properties")).encode(),
    "no delivery tag": json.dumps(without("properties", "delivery_tag")).encode(),
    "delivery tag is a list": json.dumps(changed("properties", "delivery_tag", [1])).encode(),
    "no delivery info": json.dumps(without("properties", "delivery_info")).encode(),
    "no body": json.dumps(without("body")).encode(),
    "body is an object": json.dumps(changed("body", {"a": 1})).encode(),
    "broken base64": json.dumps(changed("body", "§§§ not base64")).encode(),
    "unknown body encoding": json.dumps(changed("properties", "body_encoding", "rot13")).encode(),
    "body is not JSON": json.dumps(with_body(b"{nope")).encode(),
    "body is not UTF-8": json.dumps(with_body(b'["\xff\xff"]')).encode(),
    "deep body": json.dumps(with_body(deep(50_000))).encode(),
    "body has two parts": json.dumps(with_body([["job", "a", 1], {}])).encode(),
    "args are an object": json.dumps(with_body([{"job": 1}, {}, EMBED])).encode(),
    "epoch is a text": json.dumps(with_body([["job", "a", "1"], {}, EMBED])).encode(),
    "epoch is true": json.dumps(with_body([["job", "a", True], {}, EMBED])).encode(),
    "epoch beyond SQL": json.dumps(with_body([["job", "a", 2**63], {}, EMBED])).encode(),
    "too few args": json.dumps(with_body([["job"], {}, EMBED])).encode(),
    "NUL in the job": json.dumps(with_body([["jo\0b", "a", 1], {}, EMBED])).encode(),
    "lone surrogate": json.dumps(with_body([["job", "\ud800", 1], {}, EMBED])).encode(),
    "kwargs": json.dumps(with_body([["job", "a", 1], {"x": 1}, EMBED])).encode(),
    "wrong content type": json.dumps(changed("content-type", "text/plain")).encode(),
    "no content type": json.dumps(without("content-type")).encode(),
    "wrong content encoding": json.dumps(changed("content-encoding", "utf-16")).encode(),
    "pickle": json.dumps(with_body(PICKLED) | {"content-type": "application/x-python-serialize"}).encode(),
    "compressed": json.dumps(changed("headers", "compression", "application/x-gzip")).encode(),
    "protocol 1": json.dumps(protocol_1()).encode(),
    "no task": json.dumps(without("headers", "task")).encode(),
    "no id": json.dumps(without("headers", "id")).encode(),
    "unknown task": json.dumps(changed("headers", "task", "os.system")).encode(),
    "task is a number": json.dumps(changed("headers", "task", 7)).encode(),
    "ETA": json.dumps(changed("headers", "eta", "2099-01-01T00:00:00")).encode(),
    "expires is garbage": json.dumps(changed("headers", "expires", "tomorrow")).encode(),
    "retries is a list": json.dumps(changed("headers", "retries", [1])).encode(),
    "callbacks are text": json.dumps(with_body([["job", "a", 1], {}, EMBED | {"callbacks": "x"}])).encode(),
    "stamps": json.dumps(changed("headers", "stamped_headers", ["x"])).encode(),
    "huge": json.dumps(changed("headers", "argsrepr", "x" * 1_100_000)).encode(),
}

ODD: tuple[Any, ...] = (None, True, -1, 2**70, 1.5, "", "\0", "x" * 5000, [], {}, [[]], {"a": {}}, ["x"] * 50)


def mutate(raw: bytes, chance: random.Random) -> bytes:
    """``raw`` with a few bytes changed, cut out or doubled, or as JSON with one value replaced or taken away."""
    if chance.random() < 0.5:
        return _mutate_bytes(raw, chance)
    return json.dumps(mutate_value(json.loads(raw), chance)).encode()


def _mutate_bytes(raw: bytes, chance: random.Random) -> bytes:
    found = bytearray(raw)
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(found)) if found else 0
        match chance.randrange(4):
            case 0:
                found[place : place + 1] = bytes([chance.randrange(256)])
            case 1:
                del found[place : place + chance.randint(1, 50)]
            case 2:
                found[place:place] = found[place : place + chance.randint(1, 50)]
            case _:
                found[place:place] = bytes([chance.randrange(256)])
    return bytes(found)


def mutate_value(value: Any, chance: random.Random) -> Any:
    """A copy of a JSON value in which one place, however deep, holds something odd."""
    value = copy.deepcopy(value)
    outer: Any = None
    name: Any = None
    inner = value
    while isinstance(inner, dict | list) and inner and (outer is None or chance.random() < 0.8):
        outer, name = inner, chance.choice(list(inner) if isinstance(inner, dict) else range(len(inner)))
        inner = inner[name]
    if outer is None:
        return chance.choice(ODD)
    if chance.random() < 0.3:
        del outer[name]
    else:
        outer[name] = chance.choice(ODD)
    return value
