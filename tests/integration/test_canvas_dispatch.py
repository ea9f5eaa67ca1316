"""The dispatcher on real brokers: epochs, reachability, queues that nobody has declared, brokers that are not there."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import redis
from kombu import Connection

from orchestrator.canvas.app import make_app
from orchestrator.canvas.dispatch import KombuDispatcher
from orchestrator.canvas.epoch import EPOCH_KEY
from orchestrator.clock import Clock
from orchestrator.domain.errors import Unavailable
from orchestrator.domain.ids import JobId, QueueName, StepPath, StepRef
from tests.support.brokers import refs, scene
from tests.support.fault_proxy import FaultProxy


def dispatcher(url: str) -> KombuDispatcher:
    return KombuDispatcher(make_app(url), lambda _: None, lambda _: None)


def test_redis_epoch_is_made_once_and_lost_with_the_data(redis_url: str) -> None:
    one, two = dispatcher(redis_url), dispatcher(redis_url)
    try:
        first = one.broker_epoch()
        assert first
        assert one.broker_epoch() == two.broker_epoch() == first
        with redis.Redis.from_url(redis_url) as client:
            assert client.get(EPOCH_KEY) == first.encode()
            client.flushdb()
        second = two.broker_epoch()
        assert second not in {None, first}
        assert one.broker_epoch() == second
    finally:
        one.close()
        two.close()


def becomes_unavailable(made: Any, seconds: float = 10.0) -> None:
    """The proxy's threads reset what is open; a question that is quicker is still answered."""
    clock = Clock()
    end = clock.monotonic() + seconds
    while clock.monotonic() < end:
        try:
            made.broker_epoch()
        except Unavailable:
            return
    raise AssertionError("the broker is still there")


def test_rabbitmq_has_no_epoch_but_answers(rabbitmq_server: Any, rabbitmq_url: str) -> None:
    with FaultProxy(rabbitmq_server.port) as proxy:
        made = dispatcher(proxy.through(rabbitmq_url))
        try:
            assert made.broker_epoch() is None
            proxy.refuse()
            becomes_unavailable(made)
            proxy.resume()
            assert made.broker_epoch() is None
        finally:
            made.close()


def test_memory_has_the_epoch_of_its_process() -> None:
    one, two = dispatcher("memory://"), dispatcher("memory://")
    assert one.broker_epoch() == one.broker_epoch() != two.broker_epoch()
    one.close()
    two.close()


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_a_broker_that_is_not_there(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    made = dispatcher(f"{scheme}://127.0.0.1:{port}")
    with pytest.raises(Unavailable, match="ORCHESTRATOR_BROKER_URL"):
        made.broker_epoch()
    made.close()


@pytest.mark.parametrize("server", ["redis", "rabbitmq"])
def test_a_silent_broker_is_unavailable_within_seconds(server: str, request: pytest.FixtureRequest) -> None:
    url = request.getfixturevalue(f"{server}_url")
    clock = Clock()
    with FaultProxy(request.getfixturevalue(f"{server}_server").port) as proxy:
        made = dispatcher(proxy.through(url))
        made.broker_epoch()
        proxy.black_hole()
        began = clock.monotonic()
        with pytest.raises(Unavailable):
            made.broker_epoch()
        assert clock.monotonic() - began < 12
        proxy.resume()
        made.close()


@pytest.mark.parametrize("server", ["redis", "rabbitmq"])
def test_a_publish_into_a_black_hole_is_reported_lost(server: str, request: pytest.FixtureRequest) -> None:
    url = request.getfixturevalue(f"{server}_url")
    with FaultProxy(request.getfixturevalue(f"{server}_server").port) as proxy, scene(proxy.through(url)) as here:
        here.publish(refs(1))
        here.ran(1)
        proxy.black_hole()
        here.publish(refs(3, job="lost"))
        lost = set(refs(3, job="lost"))  # the first may count as lost too: its answer may not have come through
        here.runtime.wait(lambda: lost <= set(here.lost) and here.broker[-1] is False)
        proxy.resume()
        here.runtime.wait(lambda: here.broker[-1] is True)


def test_rabbitmq_keeps_what_is_sent_before_any_worker(rabbitmq_url: str) -> None:
    """Without the queue RabbitMQ would drop it."""
    made = dispatcher(rabbitmq_url)
    made.publish([StepRef(JobId("job"), StepPath("a"), 1, QueueName("gpu"))])
    made.close()
    with Connection(rabbitmq_url) as connection:
        declared = make_app(rabbitmq_url).amqp.queues["gpu"](connection.default_channel)
        assert declared.get().headers["task"] == "orchestrator.step"


def test_ten_thousand_at_once_arrive_in_order(redis_url: str) -> None:
    made = dispatcher(redis_url)
    made.publish(refs(10_000))
    made.close()
    with redis.Redis.from_url(redis_url) as client:
        assert client.llen("default") == 10_000
        assert b'"id": "job:s0:1"' in (client.rpop("default") or b"")
        assert b'"id": "job:s9999:1"' in (client.lpop("default") or b"")
