"""A16: a submit answers at once: 50 requests a second, 1 KB of input, one api process on PostgreSQL, broker and all."""

from __future__ import annotations

import re
from statistics import quantiles

import httpx
import pytest

from orchestrator.clock import Clock
from tests.acceptance.conftest import Shell

FLOW = {"name": "one", "agents": {"echo": {"kind": "scripted"}}, "steps": [{"id": "a", "agent": "echo"}]}
RATE, SECONDS, LIMIT = 50, 5, 0.050


def one_round(http: httpx.Client, clock: Clock) -> float:
    """The 95th percentile of the answers' times, in seconds, at a fixed rate of requests."""
    times = []
    begin = clock.monotonic()
    for number in range(RATE * SECONDS):
        clock.sleep(max(0.0, begin + number / RATE - clock.monotonic()))  # the rate is the load
        sent = clock.perf()
        answer = http.post("/v1/jobs", json={"workflow": "one", "input": {"text": "x" * 1000}})
        times.append(clock.perf() - sent)
        assert answer.status_code == 202, answer.text
    return quantiles(times, n=20)[-1]


@pytest.mark.quiet
def test_a_submit_answers_within_50_ms(shell: Shell, postgres_url: str, redis_url: str) -> None:
    """A16: the job's id comes back in less than 50 ms at the 95th percentile; the best of three rounds counts."""
    settings = {"DATABASE_URL": postgres_url, "BROKER_URL": redis_url, "INSECURE_NO_AUTH": "1", "PORT": "0"}
    assert shell.run("migrate", **settings).returncode == 0
    api = shell.start("api", **settings)
    said = api.line(api.out, "http://")
    url = re.search(r"http://127\.0\.0\.1:\d+", said)
    assert url is not None
    clock = Clock()
    with httpx.Client(base_url=url[0], timeout=10) as http:
        http.put("/v1/workflows/one", json=FLOW).raise_for_status()
        rounds = [one_round(http, clock) for _ in range(3)]
    print("p95 in ms:", [round(value * 1000, 1) for value in rounds])
    assert min(rounds) < LIMIT
