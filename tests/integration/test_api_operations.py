"""The desk in bulk over HTTP: groups, replays by filter, operations, audit, explain; and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from orchestrator.engine import replays
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


def fail(api: Api, http: httpx.Client, message: str = "no such clause") -> str:
    job = str(http.post("/v1/jobs", json={"workflow": "two-steps", "input": {"n": 1}}).json()["id"])
    do(api.engine, job, "first", fail=message)
    return job


def refused(answer: httpx.Response, status: int, code: str, says: str) -> None:
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert says in answer.text


def test_from_the_groups_to_the_end_of_a_replay(api: Api, http: httpx.Client) -> None:
    jobs = [fail(api, http) for _ in range(3)]
    other = fail(api, http, "no money")
    groups = http.get("/v1/dead-letters/groups").json()["groups"]
    assert [(group["count"], group["message"]) for group in groups] == [(3, "no such clause"), (1, "no money")]
    fingerprint = groups[0]["fingerprint"]
    page = http.get("/v1/dead-letters", params={"fingerprint": fingerprint}).json()["dead_letters"]
    assert {row["job_id"] for row in page} == set(jobs)

    asked: dict[str, Any] = {"filter": {"fingerprint": fingerprint}, "rate": 500, "note": "mended"}
    seen = http.post("/v1/dead-letters/replay", json={**asked, "dry_run": True})
    assert (seen.status_code, seen.json()["total"]) == (200, 3)
    for since, total in ((1.0, 4), ("2020-01-01T00:00:00Z", 4), ("2999-01-01T00:00:00", 0)):
        dry = {"filter": {"created_after": since}, "dry_run": True}
        assert http.post("/v1/dead-letters/replay", json=dry).json()["total"] == total
    begun = http.post("/v1/dead-letters/replay", json=asked)
    assert begun.status_code == 202
    place = begun.headers["location"]
    assert place == f"/v1/operations/{begun.json()['id']}"
    assert (begun.json()["state"], begun.json()["left"]) == ("running", 3)
    refused(http.post("/v1/dead-letters/replay", json=asked), 409, "wrong_state", "is running here")

    while http.get(place).json()["state"] == "running":
        replays.advance(api.engine)
    done = http.get(place).json()
    assert (done["state"], done["replayed"], done["left"], done["failed_again"]) == ("done", 3, 0, 0)
    assert {http.get(f"/v1/jobs/{job}").json()["run"] for job in jobs} == {2}
    assert http.get(f"/v1/jobs/{other}").json()["run"] == 1
    assert [row["id"] for row in http.get("/v1/operations").json()["operations"]] == [done["id"]]
    refused(http.post(f"{place}/cancel"), 409, "wrong_state", "is done")
    trail = http.get("/v1/audit", params={"subject": done["id"]}).json()["entries"]
    assert {(row["what"], row["who"]) for row in trail} == {
        ("replay.started", "operate of default"),
        ("replay.done", "operate of default"),
    }


def test_a_replay_is_cancelled_and_a_discard_undone(api: Api, http: httpx.Client) -> None:
    for _ in range(2):
        fail(api, http)
    begun = http.post("/v1/dead-letters/replay", json={"filter": {"all": True}, "rate": 0.1}).json()
    for _ in range(2):  # again is no error
        done = http.post(f"/v1/operations/{begun['id']}/cancel", json={"note": "too early"})
        assert (done.status_code, done.json()["state"]) == (200, "cancelled")
    letter = http.get("/v1/dead-letters").json()["dead_letters"][0]["id"]
    refused(http.post(f"/v1/dead-letters/{letter}/undiscard"), 409, "wrong_state", "is open, not discarded")
    assert http.post(f"/v1/dead-letters/{letter}/discard").json()["state"] == "discarded"
    assert http.post(f"/v1/dead-letters/{letter}/undiscard").json()["state"] == "open"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "/filter"),
        ({"filter": {}}, "all: true"),
        ({"filter": {"all": False}}, "all: true"),
        ({"filter": {"all": True, "workflow": "two-steps"}}, "contradict"),
        ({"filter": {"ids": ["a"]}}, "/filter/ids"),
        ({"filter": {"all": "yes"}}, "/filter/all"),
        ({"filter": {"reason": "tired"}}, "/filter/reason"),
        ({"filter": {"created_after": "yesterday"}}, "/filter/created_after"),
        ({"filter": {"created_after": False}}, "/filter/created_after"),
        ({"filter": {"created_after": "2026-01-02T00:00Z", "created_before": "2026-01-01T00:00Z"}}, "in between"),
        ({"filter": {"all": True}, "rate": 0}, "/rate"),
        ({"filter": {"all": True}, "rate": "fast"}, "/rate"),
        ({"filter": {"all": True}, "speed": 3}, "/speed"),
    ],
)
def test_a_filter_that_says_nothing_is_refused(api: Api, http: httpx.Client, body: dict[str, Any], says: str) -> None:
    fail(api, http)
    refused(http.post("/v1/dead-letters/replay", json=body), 422, "invalid_input", says)
    assert http.get("/v1/operations").json()["operations"] == []


def test_what_is_not_there_is_404_and_what_is_anothers_too(api: Api, http: httpx.Client) -> None:
    fail(api, http)
    nothing = {"filter": {"workflow": "nothing"}}
    refused(http.post("/v1/dead-letters/replay", json=nothing), 404, "not_found", "no open dead letter matches")
    begun = http.post("/v1/dead-letters/replay", json={"filter": {"all": True}, "rate": 0.1}).json()["id"]
    with client(api, add_key(api.engine, "operate", "other")) as stranger:
        for answer in (
            stranger.get(f"/v1/operations/{begun}"),
            stranger.post(f"/v1/operations/{begun}/cancel"),
            stranger.post("/v1/dead-letters/replay", json={"filter": {"all": True}}),
        ):
            assert answer.status_code == 404, answer.text
        assert stranger.get("/v1/audit").json()["entries"] == []
        assert stranger.get("/v1/dead-letters/groups").json()["groups"] == []
    with client(api, api.keys["submit"]) as reader:
        for answer in (
            reader.post("/v1/dead-letters/replay", json={"filter": {"all": True}}),
            reader.get("/v1/operations"),
            reader.get("/v1/audit"),
        ):
            refused(answer, 403, "forbidden", "it takes operate")


def test_a_job_explains_itself(api: Api, http: httpx.Client) -> None:
    job = str(http.post("/v1/jobs", json={"workflow": "two-steps", "input": {"n": 1}}).json()["id"])
    seen = http.get(f"/v1/jobs/{job}/explain").json()
    assert [cause["code"] for cause in seen["causes"]] == ["no_worker"]
    assert seen["summary"] == seen["causes"][0]["says"]
    assert http.post(f"/v1/jobs/{job}/cancel").status_code == 202
    assert http.get(f"/v1/jobs/{job}/explain").json()["causes"][0]["code"] == "cancelled"
    (entry,) = http.get("/v1/audit", params={"subject": job}).json()["entries"]
    assert (entry["what"], entry["who"]) == ("job.cancelled", "operate of default")
    refused(http.get("/v1/jobs/nobody/explain"), 404, "not_found", "no job nobody")
