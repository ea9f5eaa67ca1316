"""The warm parent, a migrated database to clone, and the fault report."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from orchestrator.engine.recover import migrate
from orchestrator.store.database import Database
from tests.faults.report import FINDING, write
from tests.support.cluster import Cluster
from tests.support.cluster_children import Warm
from tests.support.servers import PostgresServer

MakeCluster = Callable[..., Cluster]


@pytest.fixture(scope="session")
def warm() -> Iterator[Warm]:
    with Warm() as parent:
        yield parent


@pytest.fixture(scope="session")
def postgres_template(postgres_server: PostgresServer) -> str:
    """A database with the schema, to be cloned."""

    def fill(url: str) -> None:
        db = Database(url)
        migrate(db)
        db.close()

    return postgres_server.create_template("orchestrator_template", fill)


@pytest.fixture
def postgres_clone(postgres_server: PostgresServer, postgres_template: str) -> Iterator[str]:
    url = postgres_server.start().create_database(template=postgres_template)
    yield url
    postgres_server.start().drop_database(url)


@pytest.fixture
def cluster(warm: Warm, postgres_clone: str, redis_url: str, tmp_path: Path) -> Iterator[MakeCluster]:
    """``cluster(**settings)``: an empty installation on this test's database; checked and ended with the test."""
    with ExitStack() as stack:

        def make(broker: str = redis_url, **settings: str) -> Cluster:
            return stack.enter_context(Cluster(warm, postgres_clone, broker, tmp_path, **settings))

        yield make


class Collector:
    """Gathers what the tests reported, and writes it at the end of the run."""

    def __init__(self) -> None:
        self._findings: list[tuple[dict[str, Any], bool]] = []
        self._failed: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            self._findings += [(value, report.passed) for name, value in report.user_properties if name == FINDING]
        if report.failed:
            self._failed.append(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        if self._findings:
            write(self._findings, self._failed)


def pytest_configure(config: pytest.Config) -> None:
    if os.environ.get("FAULT_REPORT"):
        config.pluginmanager.register(Collector(), "fault-report")
