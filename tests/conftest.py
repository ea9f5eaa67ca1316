"""Real servers for the tests that need them: each started once for the run, each test in a database of its own."""

from __future__ import annotations

import itertools
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import redis

from orchestrator.clock import Clock
from tests.faults.report import FINDING, Finding
from tests.support.servers import PostgresServer, PrometheusServer, RabbitServer, RedisServer, running

#: Whether random tests look for what nobody has seen yet (``make test-faults``), or repeat themselves (``make test``).
EXPLORE = "FAULT_REPORT" in os.environ
#: A test that asks for one of these fixtures carries the marker of the server.
SERVERS = ("postgres", "redis", "rabbitmq", "prometheus")


def pytest_configure() -> None:
    """The caller's settings must not decide a test; machines differ too much in speed for Hypothesis's deadlines.

    ``make test`` tries the same examples each time, ``make test-faults`` others; a failure prints how to repeat it.
    """
    for name in [name for name in os.environ if name.startswith("ORCHESTRATOR_")]:
        del os.environ[name]
    slow = [hypothesis.HealthCheck.too_slow]
    hypothesis.settings.register_profile(
        "house",
        deadline=None,
        print_blob=True,
        suppress_health_check=slow,
        derandomize=not EXPLORE,
    )
    hypothesis.settings.load_profile("house")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for server in SERVERS:
            if any(name.startswith(f"{server}_") for name in getattr(item, "fixturenames", ())):
                item.add_marker(server)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    yield from running(PostgresServer)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    yield from running(RedisServer)


@pytest.fixture(scope="session")
def rabbitmq_server() -> Iterator[RabbitServer]:
    yield from running(RabbitServer, optional=True)


@pytest.fixture(scope="session")
def prometheus_server() -> Iterator[PrometheusServer]:
    yield from running(PrometheusServer, optional=True)


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """A fresh, empty database."""
    url = postgres_server.start().create_database()  # an earlier test may have killed it
    yield url
    postgres_server.start().drop_database(url)


@pytest.fixture(scope="session")
def _redis_numbers() -> Iterator[int]:
    return itertools.cycle(range(16))


@pytest.fixture
def redis_url(redis_server: RedisServer, _redis_numbers: Iterator[int]) -> str:
    """An empty database; what a straggler of the test before still writes goes elsewhere."""
    url = redis_server.start().database_url(next(_redis_numbers))
    with redis.Redis.from_url(url) as client:
        client.flushdb()
    return url


@pytest.fixture
def rabbitmq_url(rabbitmq_server: RabbitServer) -> Iterator[str]:
    """A fresh virtual host."""
    url = rabbitmq_server.start().create_vhost()
    yield url
    rabbitmq_server.start().delete_vhost(url)


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A file that does not exist yet."""
    return f"sqlite:///{tmp_path / 'orchestrator.db'}"


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """The seed of a random test, shown when it fails; TEST_SEED repeats it.

    ``make test`` gives each test the same one every time, ``make test-faults`` another.
    """
    own = int(Clock().uniform() * 2**32) if EXPLORE else zlib.crc32(request.node.nodeid.encode())
    value = int(os.environ.get("TEST_SEED") or own)
    print(f"TEST_SEED={value}")
    return value


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Callable[..., None]:
    """``report("K4", jobs=…, recovery=[…])`` adds to the fault report; ``FAULT_REPORT=1`` writes it."""

    def add(row: str, **values: Any) -> None:
        finding = Finding(row, **values)
        print(finding)
        request.node.user_properties.append((FINDING, asdict(finding)))

    return add
