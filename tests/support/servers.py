"""Which servers the tests need, and what happens on a machine that lacks one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest

from orchestrator.domain.errors import Unavailable
from orchestrator.local.servers import ChildServer, PostgresServer, PrometheusServer, RabbitServer, RedisServer

__all__ = ["ChildServer", "PostgresServer", "PrometheusServer", "RabbitServer", "RedisServer", "running"]


Server = TypeVar("Server", bound=ChildServer)


def running(make: Callable[[], Server], *, optional: bool = False) -> Iterator[Server]:
    """A started server, stopped afterwards. One that is ``optional`` and missing skips the test, but never in CI."""
    try:
        server = make()
    except Unavailable as error:
        if optional and not os.environ.get("CI"):
            pytest.skip(f"NOT TESTED HERE: {error}")
        pytest.fail(str(error), pytrace=False)
    with server:
        yield server
