"""The inbox over HTTP and through the clients: what is asked, the first word, and what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from orchestrator.client import AsyncClient, Client
from orchestrator.domain.errors import Conflict
from orchestrator.domain.ids import JobId, StepPath, StepRef
from orchestrator.domain.outcome import Failure, FailureClass
from orchestrator.domain.result import Doubted
from orchestrator.engine.settle import Settle, claim, settle
from orchestrator.store import steps
from tests.support.api import Api, add_key, do, make_engine, register, serving


@pytest.fixture
def api(sqlite_url: str) -> Iterator[Api]:
    engine = make_engine(sqlite_url)
    register(engine)
    with serving(engine) as running:
        yield running
    engine.db.close()


@pytest.fixture
def http(api: Api) -> Iterator[httpx.Client]:
    with client(api, api.keys["operate"]) as made:
        yield made


def client(api: Api, key: str) -> httpx.Client:
    return httpx.Client(base_url=api.url, headers={"Authorization": f"Bearer {key}"}, timeout=30)


def asking(api: Api, http: httpx.Client) -> tuple[str, str]:
    """A job whose first step is in doubt, and the question."""
    job = str(http.post("/v1/jobs", json={"workflow": "two-steps", "input": {"n": 1}}).json()["id"])
    with api.engine.db.connect(readonly=True) as session:
        row = steps.load(session, JobId(job), [StepPath("first")])[0]
    ref = StepRef(row.job_id, row.path, row.epoch, row.queue)
    mine = claim(api.engine, [ref])[ref].row
    was = Failure(FailureClass.TIMEOUT, "late", outcome_known=False)
    doubted = Doubted(Failure(FailureClass.IN_DOUBT, "may have happened", outcome_known=False), was)
    assert settle(api.engine, [Settle(row.job_id, row.path, row.ref, mine.fence, doubted)])[0].won
    return job, str(http.get("/v1/decisions", params={"job": job}).json()["decisions"][0]["id"])


def refused(answer: httpx.Response, status: int, code: str, says: str) -> None:
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert says in answer.text


def test_from_the_question_to_the_end_of_the_job(api: Api, http: httpx.Client) -> None:
    job, wait = asking(api, http)
    assert http.get(f"/v1/jobs/{job}").json()["state"] == "waiting"
    shown = http.get(f"/v1/decisions/{wait}").json()
    assert (shown["state"], shown["reason"], shown["path"]) == ("open", "in_doubt", "first")
    assert shown["decisions"] == ["happened", "not_happened", "fail"]
    assert [attempt["outcome"] for attempt in shown["attempts"]] == ["failed"]
    said = {"decision": "happened", "output": {"first": True}, "note": "saw it"}
    closed = http.post(f"/v1/decisions/{wait}", json=said)
    assert closed.status_code == 200
    assert (closed.json()["state"], closed.json()["decided_by"]) == ("decided", "operate of default")
    do(api.engine, job, "second", 5)
    assert http.get(f"/v1/jobs/{job}").json()["output"] == 5
    assert http.get("/v1/decisions").json()["decisions"] == []
    assert len(http.get("/v1/decisions", params={"state": "decided"}).json()["decisions"]) == 1
    (entry,) = http.get("/v1/audit", params={"subject": wait}).json()["entries"]
    assert (entry["what"], entry["why"], entry["data"]["job"]) == ("wait.decided", "saw it", job)


def test_what_is_refused(api: Api, http: httpx.Client) -> None:
    _, wait = asking(api, http)
    refused(http.post(f"/v1/decisions/{wait}", json={"decision": "answer"}), 422, "invalid_input", "not_happened")
    refused(http.post(f"/v1/decisions/{wait}", json={"decision": "perhaps"}), 422, "invalid_input", "")
    refused(http.post(f"/v1/decisions/{wait}", json={"decision": "fail", "output": 1}), 422, "invalid_input", "")
    refused(http.post("/v1/decisions/none", json={"decision": "fail"}), 404, "not_found", "none")
    refused(http.get("/v1/decisions", params={"cursor": "bm9uZQ"}), 422, "invalid_input", "cursor")
    with client(api, api.keys["submit"]) as other:
        assert other.get(f"/v1/decisions/{wait}").status_code == 200
        refused(other.post(f"/v1/decisions/{wait}", json={"decision": "fail"}), 403, "forbidden", "operate")
    with client(api, add_key(api.engine, "operate", "strangers")) as stranger:
        assert stranger.get("/v1/decisions").json()["decisions"] == []
        refused(stranger.get(f"/v1/decisions/{wait}"), 404, "not_found", wait)
        refused(stranger.post(f"/v1/decisions/{wait}", json={"decision": "fail"}), 404, "not_found", wait)
    assert http.post(f"/v1/decisions/{wait}", json={"decision": "fail"}).status_code == 200
    late = http.post(f"/v1/decisions/{wait}", json={"decision": "not_happened"})
    refused(late, 409, "wrong_state", "operate of default has decided")
    assert "fail" in late.json()["detail"]


def test_the_inbox_in_pages(api: Api, http: httpx.Client) -> None:
    waits = [asking(api, http)[1] for _ in range(3)]
    first = http.get("/v1/decisions", params={"limit": 2}).json()
    second = http.get("/v1/decisions", params={"limit": 2, "cursor": first["next"]}).json()
    assert [row["id"] for row in first["decisions"] + second["decisions"]] == waits[::-1]
    assert second["next"] is None


def test_the_clients_decide(api: Api, http: httpx.Client) -> None:
    (_, one), (job, two) = asking(api, http), asking(api, http)
    with Client(api.url, api_key=api.keys["operate"]) as here:
        assert {row["id"] for row in here.decisions(page=1)} == {one, two}
        assert here.decision(one)["question"]["agent"] == "echo"
        assert here.decide(one, "not_happened", note="looked")["decision"] == "not_happened"
        with pytest.raises(Conflict, match="has decided"):
            here.decide(one, "fail")

    async def there() -> Any:
        async with AsyncClient(api.url, api_key=api.keys["operate"]) as remote:
            found = [row["id"] async for row in remote.decisions(job=job)]
            assert found == [two]
            assert (await remote.decision(two))["state"] == "open"
            return await remote.decide(two, "happened", output={"first": True})

    assert asyncio.run(there())["state"] == "decided"
