"""A client of the HTTP API that submits load, is refused while the database is in trouble, and knows what it sent."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx

from orchestrator.domain.ids import JobId
from orchestrator.domain.workflow import Workflow
from orchestrator.engine.submit import register
from tests.faults.test_random_kills import four_calls
from tests.support.api import Api, serving
from tests.support.cluster import Cluster


def refused(answer: httpx.Response) -> None:
    assert answer.status_code == 503, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.json()["code"] == "unavailable"


class LoadClient:
    """Submits the load over HTTP, and knows what was accepted."""

    def __init__(self, it: Cluster, api: Api) -> None:
        self._it = it
        self._http = httpx.Client(
            base_url=api.url, headers={"Authorization": f"Bearer {api.keys['operate']}"}, timeout=60
        )
        register(it.engine, Workflow.model_validate(four_calls(it)))
        self.accepted: list[JobId] = []

    def submit(self, key: str) -> httpx.Response:
        body = {"workflow": "load", "input": {"n": 0}}
        answer = self._http.post("/v1/jobs", json=body, headers={"Idempotency-Key": key})
        if answer.status_code == 202:
            self.accepted.append(JobId(answer.json()["id"]))
        return answer

    def until_refused(self, key: str, seconds: float = 60.0) -> int:
        """Submits until the answer is 503; answers how many were accepted before."""
        deadline = self._it.clock.monotonic() + seconds
        for count in itertools.count():
            answer = self.submit(f"{key}-{count}")
            if answer.status_code != 202:
                refused(answer)
                return count
            assert self._it.clock.monotonic() < deadline, f"{count} submits and none was refused"
        raise AssertionError

    def until_accepted(self, key: str) -> None:
        while (answer := self.submit(key)).status_code != 202:
            refused(answer)
            self._it.clock.sleep(0.1)

    def cancel(self, job: JobId) -> httpx.Response:
        return self._http.post(f"/v1/jobs/{job}/cancel")

    def close(self) -> None:
        self._http.close()


@contextmanager
def load_client(it: Cluster, pool: int) -> Iterator[LoadClient]:
    """An API over the cluster's engine with ``pool`` threads, and its client."""
    with serving(it.engine, db_pool_size=pool) as api:
        client = LoadClient(it, api)
        yield client
        client.close()


def everything_ended(
    it: Cluster, client: LoadClient, report: Callable[..., None], row: str, figure: str, back: float
) -> int:
    """What was accepted is there and succeeds, nothing that settled is repeated, no promise is broken.

    Answers how many calls were made again.
    """
    known = [JobId(one["id"]) for one in it.rows("SELECT id FROM jobs")]
    assert set(client.accepted) <= set(known), "a 202 without a row"
    assert it.wait(known, 120) == {"succeeded": len(known)}
    calls = it.ledger.calls()
    first = min(call.started for call in calls if call.started > back)
    doubled = len(it.called_again())
    repeated = len(calls) - 4 * len(known)
    report(row, jobs=len(known), repeated=repeated, doubled=doubled, recovery=[first - back], figure=figure)
    assert doubled == 0, "a step that had settled was called again"
    it.check()
    return repeated
