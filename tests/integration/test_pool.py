"""The asyncio pool on each broker: slots, acks, errors, shutdown, a broker that goes and comes back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from kombu import Connection

from orchestrator.canvas.app import make_app, step_queue
from orchestrator.canvas.runtime import Verdict
from orchestrator.clock import Clock
from orchestrator.domain.ids import JobId, QueueName, StepPath, StepRef
from tests.support.brokers import Scene, log_line, refs, scene
from tests.support.fault_proxy import FaultProxy
from tests.support.servers import RedisServer

BROKERS = ("memory", "redis", "rabbitmq")


@pytest.fixture(params=BROKERS)
def broker_url(request: pytest.FixtureRequest) -> str:
    return "memory://" if request.param == "memory" else str(request.getfixturevalue(f"{request.param}_url"))


class Hold:
    """Steps that claim at once and run until ``release``."""

    def __init__(self) -> None:
        self.released = threading.Event()

    async def __call__(self, _ref: StepRef, claimed: Callable[[], None]) -> Verdict | None:
        claimed()
        while not self.released.is_set():  # noqa: ASYNC110 - set by the test's thread
            await asyncio.sleep(0.005)
        return None


@pytest.fixture
def hold() -> Iterator[Hold]:
    held = Hold()
    yield held
    held.released.set()


def waiting(here: Scene, url: str) -> int:
    """Messages that no worker has."""
    if url.startswith("memory"):
        return int(here.app.orchestrator_broker.size("default"))
    if url.startswith("redis"):
        with redis.Redis.from_url(url) as client:
            return int(client.llen("default"))
    with Connection(url) as connection:
        return int(step_queue("default")(connection.default_channel).queue_declare(passive=True).message_count)


def becomes(read: Callable[[], int], wanted: int, seconds: float = 20.0) -> None:
    """RabbitMQ's counts lag."""
    clock = Clock()
    end = clock.monotonic() + seconds
    while (found := read()) != wanted:
        assert clock.monotonic() < end, f"{found}, not {wanted}"
        clock.sleep(0.05)


def test_a_thousand_messages(broker_url: str) -> None:
    async def work(_ref: StepRef, claimed: Callable[[], None]) -> None:
        await asyncio.sleep(0)
        claimed()
        await asyncio.sleep(0.001)

    with scene(broker_url, work, concurrency=7) as here:
        steps = refs(1_000)
        here.publish(steps)
        here.ran(1_000, 60)
        assert sorted(here.runtime.runner.ran, key=str) == sorted(steps, key=str)
        assert here.runtime.runner.most <= 7
        assert here.lost == []
        becomes(lambda: waiting(here, broker_url), 0)


def test_a_full_worker_fetches_nothing(broker_url: str, hold: Hold) -> None:
    with scene(broker_url, hold, concurrency=5) as here:
        here.publish(refs(50))
        here.runtime.wait(lambda: here.runtime.runner.running == 5)
        becomes(lambda: waiting(here, broker_url), 45)
        hold.released.set()
        here.ran(50)
        assert here.runtime.runner.most == 5


def test_a_slot_lasts_until_the_run_ends_not_until_the_claim(broker_url: str, hold: Hold) -> None:
    with scene(broker_url, hold, concurrency=1) as here:
        here.publish(refs(2))
        here.runtime.wait(lambda: here.runtime.runner.running == 1)
        becomes(lambda: waiting(here, broker_url), 1)
        hold.released.set()
        here.ran(2)
        assert here.runtime.runner.most == 1


def test_what_the_runner_takes_is_not_fetched_for(broker_url: str, hold: Hold) -> None:
    """It takes half of what is free and not promised to the broker; given back, messages have it."""
    with scene(broker_url, hold, concurrency=6) as here:
        taken = here.worker.worker.pool.take()
        assert taken == (1 if broker_url.startswith("amqp") else 3)  # RabbitMQ may push three at any time
        here.publish(refs(20))
        here.runtime.wait(lambda: here.runtime.runner.running == 6 - taken)
        becomes(lambda: waiting(here, broker_url), 20 - (6 - taken))
        assert here.worker.worker.pool.take() == 0
        here.worker.worker.pool.give_back(taken)
        here.runtime.wait(lambda: here.runtime.runner.running == 6)
        hold.released.set()
        here.ran(20)
        assert here.runtime.runner.most == 6
        becomes(here.worker.worker.pool.free_slots, 6)


@pytest.mark.parametrize("stops", [False, True])
def test_messages_that_were_asked_for_before_the_slots_were_taken_wait(redis_url: str, hold: Hold, stops: bool) -> None:
    """The limit holds; one that waits runs when a slot is given back, or goes back when the worker stops."""
    with scene(redis_url, hold, concurrency=8, soft=0.5) as here:
        pool, taken = here.worker.worker.pool, list[int]()
        qos = here.worker.worker.consumer.connection.default_channel.qos
        ask = qos.can_consume_max_estimate

        def ask_and_take() -> int:
            """The consumer is about to ask for as many as are free; meanwhile the runner takes half of them."""
            free = ask()
            taken.append(pool.take())
            return int(free)

        qos.can_consume_max_estimate = ask_and_take
        here.publish(refs(20))
        here.runtime.wait(lambda: taken and here.runtime.runner.running == 8 - sum(taken))
        becomes(lambda: waiting(here, redis_url), 20 - 8)
        assert (taken[0], here.runtime.runner.running) == (3, 5)
        qos.can_consume_max_estimate = ask
        if not stops:
            pool.give_back(sum(taken))
            here.runtime.wait(lambda: here.runtime.runner.running == 8)
            hold.released.set()
            here.ran(20)
            assert here.runtime.runner.most == 8
            becomes(pool.free_slots, 8)
    if stops:
        becomes(lambda: waiting(here, redis_url), 20 - 5)


def test_markers_and_a_users_own_task(broker_url: str) -> None:
    done = threading.Event()
    with scene(broker_url) as here:

        @here.app.task(name="theirs.add", shared=False)
        def add(left: int, right: int) -> int:
            assert (left, right) == (1, 2)
            done.set()
            return left + right

        # As if it had been registered before the worker began.
        here.worker.worker.consumer.update_strategies()
        here.dispatcher.publish_marker(QueueName("default"), 41)
        here.runtime.wait(lambda: here.runtime.markers == [("default", 41)])
        with here.app.connection_for_write() as connection:
            here.app.send_task("theirs.add", (1, 2), queue="default", connection=connection)
        assert done.wait(20)
        assert here.runtime.quarantined == []


def test_a_marker_stays_behind_the_steps_published_before_it(broker_url: str) -> None:
    with scene(broker_url, concurrency=1) as here:
        here.publish(refs(300))
        here.dispatcher.publish_marker(QueueName("default"), 1)
        here.runtime.wait(lambda: here.runtime.markers)
        assert len(here.runtime.runner.ran) == 300


def test_what_a_message_says_of_its_step(broker_url: str) -> None:
    member = StepRef(JobId("job"), StepPath("assess/3"), 4, QueueName("default"), StepPath("assess"))
    root = StepRef(JobId("job"), StepPath(""), 0)
    with scene(broker_url) as here:
        here.publish([member, root])
        here.ran(2)
        assert here.runtime.runner.ran == [member, root]


def test_a_verdict_with_a_body_is_sent_by_the_backend(broker_url: str) -> None:
    body = StepRef(JobId("job"), StepPath("assess"), 1)

    async def last(_ref: StepRef, claimed: Callable[[], None]) -> Verdict:
        claimed()
        return Verdict(body)

    with scene(broker_url, last) as here:
        here.publish(refs(1))
        here.ran(1)
    assert here.runtime.dispatcher.published == [body]


def test_a_runner_that_raises_frees_its_slot_and_acks(broker_url: str) -> None:
    async def fail(_ref: StepRef, _claimed: Callable[[], None]) -> None:
        raise RuntimeError("a bug")

    with scene(broker_url, fail, concurrency=2) as here, log_line("workers.pool", "step.runner_raised"):
        here.publish(refs(20))
        here.ran(20)
        becomes(here.worker.worker.pool.free_slots, 2)
    becomes(lambda: waiting(here, broker_url), 0)


def test_stop_waits_for_what_runs_and_leaves_the_rest(broker_url: str, hold: Hold) -> None:
    with scene(broker_url, hold, concurrency=3) as here:
        here.publish(refs(8))
        here.runtime.wait(lambda: here.runtime.runner.running == 3)
        stopping = threading.Thread(target=here.worker.stop)
        stopping.start()
        here.runtime.wait(lambda: here.runtime.runner.draining)
        assert here.runtime.runner.running == 3
        hold.released.set()
        stopping.join(20)
        assert not stopping.is_alive()
        assert len(here.runtime.runner.ran) == 3
        assert here.runtime.stopped == 1
    becomes(lambda: waiting(here, broker_url), 5)


def test_stop_hands_back_what_was_not_claimed(broker_url: str) -> None:
    async def never(_ref: StepRef, _claimed: Callable[[], None]) -> None:
        await asyncio.Event().wait()

    with scene(broker_url, never, concurrency=3, soft=0.5) as here:
        here.publish(refs(8))
        # RabbitMQ has at most half the slots claiming at a time.
        here.runtime.wait(lambda: here.runtime.runner.running == (1 if broker_url.startswith("amqp") else 3))
    becomes(lambda: waiting(here, broker_url), 8)


def test_flushall_leaves_the_worker_alive(redis_server: RedisServer, redis_url: str) -> None:
    with scene(redis_url) as here, redis.Redis.from_url(redis_url) as client:
        for number in range(5):
            here.publish(refs(200, job=f"job{number}"))
            client.flushall()
        before = here.dispatcher.broker_epoch()
        client.flushall()
        assert here.dispatcher.broker_epoch() != before
        here.publish(refs(1, job="after"))
        here.runtime.wait(lambda: any(ref.job_id == "after" for ref in here.runtime.runner.ran))


def test_redis_restarts(redis_server: RedisServer, redis_url: str, hold: Hold) -> None:
    """Steps run on, the worker consumes again, the dispatcher publishes again, both by themselves."""
    with scene(redis_url, hold) as here:
        here.publish(refs(2))
        here.runtime.wait(lambda: here.runtime.runner.running == 2)
        with log_line("orchestrator.canvas", "broker.unreachable"):
            redis_server.kill()
        here.publish(refs(3, job="lost"))
        here.runtime.wait(lambda: len(here.lost) == 3)
        assert here.broker[-1] is False
        redis_server.start()
        here.runtime.wait(lambda: here.broker[-1] is True)
        here.publish(refs(1, job="after"))
        here.runtime.wait(lambda: here.runtime.runner.running == 3)
        hold.released.set()
        here.ran(3)


def test_rabbitmq_connections_are_reset(rabbitmq_server: Any, rabbitmq_url: str) -> None:
    with FaultProxy(rabbitmq_server.port) as proxy, scene(proxy.through(rabbitmq_url)) as here:
        here.publish(refs(5))
        here.ran(5)
        with log_line("celery.worker.consumer.consumer", "Connection to broker lost"):
            proxy.cut()
        while here.lost or not here.broker[-1] or len(here.runtime.runner.ran) == 5:
            here.lost.clear()
            here.publish(refs(1, job="after"))
            here.runtime.wait(lambda: here.lost or len(here.runtime.runner.ran) > 5)


@pytest.mark.faults
@pytest.mark.parametrize("server", ["redis", "rabbitmq"])
def test_a_silent_black_hole(server: str, request: pytest.FixtureRequest) -> None:
    """R3: no byte passes for 20 s and no connection closes; consuming again within 15 s of the mend."""
    url = request.getfixturevalue(f"{server}_url")
    port = request.getfixturevalue(f"{server}_server").port
    clock = Clock()
    with FaultProxy(port) as proxy, scene(proxy.through(url)) as here:
        here.publish(refs(1))
        here.ran(1)
        with log_line("celery.worker.consumer.consumer", "Connection to broker lost", 30):
            proxy.black_hole()
        assert here.app.orchestrator_pulse.silent_for() > 2
        proxy.resume()
        mended = clock.monotonic()
        steps = make_app(url)
        with steps.connection_for_write() as connection:
            steps.send_task("orchestrator.step", ("after", "x", 1), queue="default", connection=connection)
        here.runtime.wait(lambda: any(ref.job_id == "after" for ref in here.runtime.runner.ran), 15)
        print(f"consuming again {clock.monotonic() - mended:.1f} s after the mend")


@pytest.mark.quiet
def test_memory_hands_over_within_5_ms_and_does_not_poll() -> None:
    clock = Clock()
    with scene("memory://") as here:
        here.publish(refs(50))
        here.ran(50)
        took = []
        for number in range(50):
            began = clock.perf()
            here.publish(refs(1, job=f"job{number}"))
            here.ran(51 + number)
            took.append(clock.perf() - began)
        assert sorted(took)[25] < 0.005, sorted(took)


def test_apps_in_one_process_share_no_queue() -> None:
    with scene("memory://") as one, scene("memory://") as two:
        one.publish(refs(5))
        two.publish(refs(3))
        one.ran(5)
        two.ran(3)
        assert (len(one.runtime.runner.ran), len(two.runtime.runner.ran)) == (5, 3)
