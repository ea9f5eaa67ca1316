"""One suite, every store: each test here runs on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.bench import Bench


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    fixture = "sqlite_url" if request.param == "sqlite" else "postgres_url"
    return str(request.getfixturevalue(fixture))


@pytest.fixture
def bench(url: str) -> Iterator[Bench]:
    it = Bench(url)
    yield it
    it.check()
    it.close()


@pytest.fixture
def other(url: str, bench: Bench) -> Iterator[Bench]:
    """A second worker on the same database."""
    it = Bench(url, process="bench-2")
    yield it
    it.close()
