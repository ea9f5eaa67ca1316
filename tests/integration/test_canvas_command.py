"""The real command, ``celery -A … worker``, with its signals and pools."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from orchestrator.canvas.app import make_app
from orchestrator.canvas.dispatch import KombuDispatcher
from orchestrator.domain.ids import JobId, QueueName, StepPath, StepRef


class Command:
    """A worker process and what it says."""

    def __init__(self, url: str, *options: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "tests.support.fake_worker", "worker", "-l", "INFO", *options],
            env=os.environ | {"BROKER": url, "PYTHONPATH": ".", "PYTHONWARNINGS": "ignore"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.said: queue.Queue[dict[str, Any]] = queue.Queue()
        self.ready = threading.Event()
        self.log: list[str] = []
        threading.Thread(target=self._hear, daemon=True).start()
        threading.Thread(target=self._read_log, daemon=True).start()
        assert self.ready.wait(40), "".join(self.log)

    def _hear(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(b"{"):
                self.said.put(json.loads(line))

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line.decode())
            if "ready." in self.log[-1]:
                self.ready.set()

    def hears(self, seconds: float = 20.0, **facts: Any) -> dict[str, Any]:
        """The next thing it says that has these facts."""
        while True:
            try:
                found = self.said.get(timeout=seconds)
            except queue.Empty:
                pytest.fail(f"did not say {facts} within {seconds:g} s:\n{''.join(self.log[-40:])}")
            if facts.items() <= found.items():
                return found

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(30)


@pytest.fixture
def command() -> Iterator[Callable[..., Command]]:
    started: list[Command] = []

    def start(url: str, *options: str) -> Command:
        started.append(Command(url, *options))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
        one.process.wait()
        for stream in (one.process.stdout, one.process.stderr):
            assert stream is not None
            stream.close()


@pytest.fixture(params=["redis", "rabbitmq"])
def url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
def dispatcher(url: str) -> Iterator[KombuDispatcher]:
    made = KombuDispatcher(make_app(url), lambda _: None, lambda _: None)
    yield made
    made.close()


def step(path: str, group: str | None = None) -> StepRef:
    return StepRef(JobId("job"), StepPath(path), 1, QueueName("default"), StepPath(group) if group else None)


def test_runs_steps_without_any_option(url: str, dispatcher: KombuDispatcher, command: Callable[..., Command]) -> None:
    worker = command(url)
    dispatcher.publish([step("fan/1", "fan")])
    assert worker.hears(event="began")["group"] == "fan"
    assert worker.hears(event="ran")["pid"] == worker.process.pid, "in the worker's own process: the asyncio pool"
    assert worker.end() == 0
    worker.hears(event="runtime stopped")


def test_sigterm_lets_live_steps_end_and_takes_no_more(
    url: str, dispatcher: KombuDispatcher, command: Callable[..., Command]
) -> None:
    worker = command(url)
    dispatcher.publish([step(f"slow{number}") for number in range(4)])
    worker.hears(event="began")
    worker.hears(event="began")
    assert worker.end() == 0
    said = [worker.hears(event="ran")["path"] for _ in range(2)]
    assert set(said) == {"slow0", "slow1"}
    other = command(url)
    assert {other.hears(event="ran")["path"] for _ in range(2)} == {"slow2", "slow3"}


def test_prefork_runs_steps_too(url: str, dispatcher: KombuDispatcher, command: Callable[..., Command]) -> None:
    worker = command(url, "-P", "prefork")
    dispatcher.publish([step(f"s{number}") for number in range(20)])
    pids = {worker.hears(event="ran")["pid"] for _ in range(20)}
    assert worker.process.pid not in pids
    dispatcher.publish_marker(QueueName("default"), 5)
    assert worker.hears(event="marker")["number"] == 5
    dispatcher.publish([step("fan/1", "fan")])
    assert worker.hears(event="began")["group"] == "fan"
    assert worker.end() == 0


def test_prefork_outlives_a_step_that_kills_its_process(
    url: str, dispatcher: KombuDispatcher, command: Callable[..., Command]
) -> None:
    worker = command(url, "-P", "prefork")
    dispatcher.publish([step("killer")])
    lost = worker.hears(event="began")["pid"]
    dispatcher.publish([step(f"s{number}") for number in range(5)])
    assert lost not in {worker.hears(event="ran")["pid"] for _ in range(5)}


def test_prefork_quarantines(redis_url: str, command: Callable[..., Command]) -> None:
    worker = command(redis_url, "-P", "prefork")
    with redis.Redis.from_url(redis_url) as client:
        client.lpush("default", b"rubbish")
    assert worker.hears(event="quarantined")["pid"] == worker.process.pid


def test_a_worker_waits_for_its_broker(redis_server: Any, redis_url: str, command: Callable[..., Command]) -> None:
    worker = command(redis_url)
    redis_server.kill()
    redis_server.start()
    made = KombuDispatcher(make_app(redis_url), lambda _: None, lambda _: None)
    try:
        made.publish([step("a")])
        worker.hears(event="ran")
    finally:
        made.close()


@pytest.mark.parametrize(
    ("broker", "message"),
    [("memory://", "only `orchestrator run`"), ("kafka://x", "must begin with"), (";", "must begin with")],
)
def test_a_wrong_broker_is_one_line_and_exit_78(broker: str, message: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "workers.app", "worker"],
        env=os.environ | {"ORCHESTRATOR_BROKER_URL": broker, "PYTHONPATH": "."},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 78, done.stderr
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
