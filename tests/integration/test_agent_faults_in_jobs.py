"""Rows A1–A4 of the fault matrix seen from a job: whatever an agent does, the job ends, classified, and nothing invalid
reaches the next step. What the caller itself makes of each fault is in ``test_agent_faults.py``.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from orchestrator.domain.ids import JobId
from orchestrator.engine import queries
from tests.support.bench import Bench
from tests.support.fake_agents_server import MEBIBYTE, FakeAgents, Reply
from workers.agents import AgentCalls, Egress

#: Seconds an attempt may take here that never ends by itself.
LIMIT = 2.0
OBJECT = {"type": "object", "required": ["ok"], "properties": {"ok": {"type": "boolean"}}}
#: What the other side does, and how the step ends.
FAULTS = {
    "/hang": "timeout",
    "/drip": "timeout",
    "/cut": "transient",
    "/half": "transient",
    "/500": "transient",
    "/503": "transient",
    "/429": "rate_limited",
    "/404": "permanent",
    "/empty": "invalid_output",
    "/truncated": "invalid_output",
    "/nan": "invalid_output",
    "/html": "invalid_output",
    "/schema": "invalid_output",
    "/huge/100": "invalid_output",
    "/bomb/300/1": "invalid_output",
}


@pytest.fixture
def bench(sqlite_url: str) -> Iterator[Bench]:
    it = Bench(sqlite_url)
    it.attempt.calls = AgentCalls(egress=Egress(unrestricted=True), max_output_bytes=2 * MEBIBYTE)
    yield it
    it.check()
    it.close()


@pytest.fixture
def server() -> Iterator[FakeAgents]:
    with FakeAgents() as running:
        for status in (500, 503, 429, 404):
            running.reply(f"/{status}", Reply(status, b"{}"))
        running.reply("/empty", Reply(body=b""))
        running.reply("/truncated", Reply(body=b'{"ok": tr'))
        running.reply("/nan", Reply(body=b'{"ok": NaN}'))
        running.reply("/html", Reply(body=b"<html>busy</html>"))
        running.reply("/schema", Reply(body=b'{"ok": "yes"}'))
        running.reply("/well", Reply(body=b'{"ok": true}'))
        running.reply("/soon", Reply(429, b"{}", {"Retry-After": "0.1"}), Reply(500), Reply(body=b'{"ok": true}'))
        yield running


@contextmanager
def resetting() -> Iterator[str]:
    """A server that takes the request and resets the connection."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def reset() -> None:
            connection, _ = listening.accept()
            connection.recv(65536)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()

        thread = threading.Thread(target=reset)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        thread.join(5)


def flow(url: str, seconds: float = 30.0, **more: Any) -> dict[str, Any]:
    agent = {"kind": "http", "url": url, "output_schema": OBJECT, "timeout": {"attempt": f"{seconds:g}s"}}
    steps = [{"id": "a", "agent": "it", "retry": {"attempts": 1}, **more}, {"id": "b", "agent": "echo"}]
    return {"name": "t", "agents": {"it": agent, "echo": {"kind": "scripted"}}, "steps": steps}


def finish(bench: Bench, jobs: list[JobId]) -> None:
    """Runs them all in one event loop, which owns the connections."""

    calls = bench.attempt.calls
    assert isinstance(calls, AgentCalls)

    async def run() -> None:
        try:
            async with asyncio.timeout(60):
                while any(bench.job(job)["state"] in ("queued", "running") for job in jobs):
                    await bench._drive(1000)
                    await asyncio.sleep(0.02)
        finally:
            await calls.close()

    asyncio.run(run())


@pytest.mark.faults
def test_whatever_an_agent_does_the_job_ends_and_says_why(
    bench: Bench, server: FakeAgents, report: Callable[..., None]
) -> None:
    """E11: hang, slow drip, cut, reset, 5xx, 429, broken JSON, wrong schema, floods: each is classified, in time."""
    with resetting() as url:
        jobs = {
            path: bench.submit(flow(f"{server.url}{path}", LIMIT if kind == "timeout" else 30.0))
            for path, kind in FAULTS.items()
        }
        jobs["reset"] = bench.submit(flow(url))
        jobs["well"] = bench.submit(flow(f"{server.url}/well"))
        finish(bench, list(jobs.values()))
    found = {path: bench.job(job)["failure"] for path, job in jobs.items()}
    assert found.pop("well") is None
    assert bench.job(jobs.pop("well"))["output"] == {"ok": True}
    assert {path: failure["class"] for path, failure in found.items()} == {**FAULTS, "reset": "transient"}
    assert {bench.steps(job)["b"]["attempt"] for job in jobs.values()} == {0}
    for path in ("/hang", "/drip"):
        (attempt,) = queries.list_attempts(bench.engine, jobs[path])
        assert LIMIT <= attempt["ended_at"] - attempt["started_at"] <= LIMIT + 1
    report("A1-A4", jobs=len(jobs) + 1, figure=f"{len(found)} faults, each in its class")


def test_a_rate_limit_and_an_error_are_lived_through(bench: Bench, server: FakeAgents) -> None:
    """E11: a 429 that names its wait costs no try, a 500 one; then the answer comes."""
    retry = {"attempts": 2, "initial": "1ms", "max": "1ms"}
    job = bench.submit(flow(f"{server.url}/soon", retry=retry))
    finish(bench, [job])
    assert bench.job(job)["output"] == {"ok": True}
    attempts = [row["failure"] for row in queries.list_attempts(bench.engine, job) if row["path"] == "a"]
    assert [failure and failure["class"] for failure in attempts] == ["rate_limited", "transient", None]
