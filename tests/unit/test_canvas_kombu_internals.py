"""What our subclasses override or copy, as it was when they were written.

A failure means that Celery, kombu or py-amqp changed under us. Read what changed, adapt the file named, run the tests
on real brokers (tests/integration/test_pool.py, test_canvas_*.py), then write the new fingerprint here.
"""

from __future__ import annotations

import hashlib
import inspect
from typing import Any

import amqp.method_framing
import celery
import kombu
import pytest
from celery.bin.worker import WorkersPool
from celery.worker import loops
from celery.worker.consumer import Consumer
from celery.worker.consumer.consumer import Evloop
from celery.worker.consumer.tasks import Tasks
from kombu.asynchronous.hub import Hub
from kombu.transport import redis, virtual

FINGERPRINTS: dict[str, tuple[Any, str]] = {
    "transport.py: Channel._brpop_read": (redis.Channel._brpop_read, "c42518699709"),
    "transport.py: Channel._create_client": (redis.Channel._create_client, "dae92bc4075d"),
    "transport.py: Channel.conn_or_acquire": (redis.Channel.conn_or_acquire, "25883caca6c4"),
    "transport.py: Channel._disconnect_pools": (redis.Channel._disconnect_pools, "db50da048a22"),
    "transport.py: MultiChannelPoller": (redis.MultiChannelPoller, "0530f30a9dec"),
    "publisher.py: PublishBatch": (redis.PublishBatch, "94e63c589c36"),
    "inprocess.py: virtual.Transport": (virtual.Transport, "93f7561a50cb"),
    "inprocess.py: virtual.Channel.basic_consume": (virtual.Channel.basic_consume, "0fec96269493"),
    "envelope.py: virtual.Message": (virtual.Message, "03eca4812d47"),
    "rabbit.py: frame_handler": (amqp.method_framing.frame_handler, "77ba238ed08f"),
    "consumer.py: Tasks.start": (Tasks.start, "e0165bf1d620"),
    "consumer.py: Consumer.__init__": (Consumer.__init__, "c27ca6ec2d4b"),
    "consumer.py: Consumer.ensure_connected": (Consumer.ensure_connected, "3f79cf3bb6d6"),
    "consumer.py: Consumer.call_soon_ack": (Consumer.call_soon_ack, "39f8579d0762"),
    "consumer.py: Consumer.create_task_handler": (Consumer.create_task_handler, "292c5a681f10"),
    "consumer.py: Consumer.on_connection_error": (Consumer.on_connection_error_after_connected, "4f84dbfff329"),
    "consumer.py: Evloop.start": (Evloop.start, "6d6e5bda6846"),
    "consumer.py: asynloop": (loops.asynloop, "05a53e519988"),
    "consumer.py: synloop": (loops.synloop, "0b746e5242c7"),
    "consumer.py: Hub.call_soon": (Hub.call_soon, "ec0433083ce8"),
    "workers/app.py: WorkersPool.convert": (WorkersPool.convert, "9b9c0eb6dfe9"),
}


def fingerprint(thing: Any) -> str:
    return hashlib.sha256(inspect.getsource(thing).encode()).hexdigest()[:12]


@pytest.mark.parametrize("name", FINGERPRINTS)
def test_is_what_we_know(name: str) -> None:
    thing, known = FINGERPRINTS[name]
    assert fingerprint(thing) == known, f"{name.partition(':')[0]} depends on {name.partition(': ')[2]}, which changed"


def test_the_minor_versions_are_those_we_know() -> None:
    assert celery.__version__.startswith("5.7.")
    assert kombu.__version__.startswith("5.7.")
