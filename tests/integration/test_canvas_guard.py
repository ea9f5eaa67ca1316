"""M3: broken messages on a real queue kill no worker, stop none, and each is kept."""

from __future__ import annotations

import base64
import calendar
import json
import random
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
import redis
from kombu import Connection

from orchestrator.canvas.messages import step_message
from tests.support.broken_messages import BROKEN, good_envelope, mutate, mutate_value
from tests.support.brokers import Scene, log_line, refs, scene

MUTATIONS = 2_000


def push(url: str, entries: Sequence[bytes]) -> None:
    """Straight into the list, past every client of ours."""
    with redis.Redis.from_url(url) as client:
        for entry in entries:
            client.lpush("default", entry)


def fates(here: Scene) -> int:
    return len(here.runtime.runner.ran) + len(here.runtime.quarantined) + len(here.runtime.markers)


def ends_well(here: Scene, count: int) -> None:
    """All ``count`` messages so far met a fate, and a good one after them is executed by the same worker."""
    here.runtime.wait(lambda: fates(here) >= count, 90)
    assert fates(here) == count
    here.publish(refs(1, job="after"))
    here.runtime.wait(lambda: any(ref.job_id == "after" for ref in here.runtime.runner.ran))
    assert here.app.orchestrator_guard.refused == len(here.runtime.quarantined)


def test_redis_every_class(redis_url: str) -> None:
    with scene(redis_url) as here:
        here.publish(refs(3))
        here.ran(3)
        push(redis_url, list(BROKEN.values()))
        ends_well(here, 3 + len(BROKEN))
        kept = {raw for raw, _, _ in here.runtime.quarantined}
        assert kept == {raw[: 1024 * 1024] for raw in BROKEN.values()}
        assert {queue for _, queue, _ in here.runtime.quarantined} == {"default"}


def test_redis_mutations(redis_url: str, seed: int) -> None:
    chance = random.Random(seed)
    good = json.dumps(good_envelope()).encode()
    with scene(redis_url) as here:
        here.publish(refs(3))
        here.ran(3)
        push(redis_url, [mutate(good, chance) for _ in range(MUTATIONS)])
        ends_well(here, 3 + MUTATIONS)


def test_redis_a_queue_that_is_no_list(redis_url: str) -> None:
    """WRONGTYPE answers every fetch until it is mended: the worker waits for that."""
    with redis.Redis.from_url(redis_url) as client, scene(redis_url) as here:
        with log_line("celery.worker.consumer.consumer", "ResponseError"):
            client.set("default", "not a list")
        client.delete("default")
        here.publish(refs(1))
        here.ran(1)


def as_amqp(envelope: Any) -> dict[str, Any]:
    """What of a mutated envelope RabbitMQ can carry."""
    whole = envelope if isinstance(envelope, dict) else {}
    body = whole.get("body")
    try:
        content = base64.b64decode(body)
    except (TypeError, ValueError):
        content = json.dumps(body).encode()
    headers = whole.get("headers")
    kinds = whole.get("content-type"), whole.get("content-encoding")
    content_type, content_encoding = (kind if isinstance(kind, str) and len(kind) < 200 else None for kind in kinds)
    return {
        "body": content,
        "headers": headers if isinstance(headers, dict) else {},
        "content_type": content_type,
        "content_encoding": content_encoding,
    }


def send(channel: Any, parts: dict[str, Any]) -> bool:
    """False when py-amqp cannot write it."""
    message = channel.prepare_message(**parts)
    try:
        channel.basic_publish(message, exchange="", routing_key="default")
    except Exception:  # noqa: BLE001 - it has a dozen ways to say so, all before the first byte
        return False
    return True


def odd_headers() -> list[dict[str, Any]]:
    headers = step_message(refs(1)[0]).headers
    return [
        headers | {"id": datetime(2026, 1, 1, tzinfo=UTC)},
        headers | {"x": b"\xff\xfe"},
        headers | {"timelimit": ["a", "b"]},
        headers | {"task": b"\xff"},
        {},
    ]


def test_rabbitmq_every_class(rabbitmq_url: str) -> None:
    with scene(rabbitmq_url) as here, Connection(rabbitmq_url) as connection:
        here.publish(refs(3))
        here.ran(3)
        body = step_message(refs(1)[0]).body
        parts = [as_amqp(json.loads(raw)) for kind, raw in BROKEN.items() if is_json(raw) and kind not in ENVELOPE_ONLY]
        parts += [
            {"body": body, "headers": one, "content_type": "application/json", "content_encoding": "utf-8"}
            for one in odd_headers()
        ]
        assert len(parts) >= 17
        assert all(send(connection.default_channel, one) for one in parts)
        here.runtime.wait(lambda: len(here.runtime.runner.ran) + len(here.runtime.quarantined) >= 3 + len(parts))
        ran = here.runtime.runner.ran[3:]
        assert len(ran) == 1, "only the unknown header is harmless"
        ends_well(here, 3 + len(parts))


#: Faults of an envelope that RabbitMQ does not have.
ENVELOPE_ONLY = {
    "no properties", "no delivery tag", "delivery tag is a list", "no delivery info", "unknown body encoding",
    "broken base64", "huge",
}  # fmt: skip


def is_json(raw: bytes) -> bool:
    try:
        return isinstance(json.loads(raw), dict)
    except (ValueError, RecursionError):
        return False


def test_rabbitmq_mutations(rabbitmq_url: str, seed: int) -> None:
    chance = random.Random(seed)
    with scene(rabbitmq_url) as here, Connection(rabbitmq_url) as connection:
        here.publish(refs(3))
        here.ran(3)
        sent = 0
        while sent < MUTATIONS:
            parts = as_amqp(mutate_value(good_envelope(), chance))
            if chance.random() < 0.3:
                parts["body"] = mutate(parts["body"], chance) if is_list(parts["body"]) else b""
            sent += send(connection.default_channel, parts)
        ends_well(here, 3 + MUTATIONS)


def is_list(raw: bytes) -> bool:
    try:
        return isinstance(json.loads(raw), list)
    except ValueError:
        return False


def test_rabbitmq_properties_that_do_not_parse(rabbitmq_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A time stamp of the year 36 billion fails py-amqp while it reads the frame."""
    with scene(rabbitmq_url) as here, Connection(rabbitmq_url) as connection:
        here.publish(refs(1))
        here.ran(1)
        headers = step_message(refs(1)[0]).headers | {"when": datetime(2026, 1, 1, tzinfo=UTC)}
        parts = {"body": b"[]", "headers": headers, "content_type": "application/json", "content_encoding": "utf-8"}
        monkeypatch.setattr(calendar, "timegm", lambda _: 2**60)
        assert send(connection.default_channel, parts)
        monkeypatch.undo()
        ends_well(here, 2)
        assert here.runtime.quarantined[0][0] == b"[]"
