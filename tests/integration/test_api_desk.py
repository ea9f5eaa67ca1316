"""The desk's hands over HTTP and from the client: replay with changes; what does not fit is refused whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from orchestrator.client import Client
from orchestrator.domain.errors import Conflict, DefinitionError, InvalidInput
from orchestrator.domain.json_values import loads
from orchestrator.store import steps
from tests.support.api import Api, do, make_engine, register, serving

FLOW: dict[str, Any] = {
    "name": "desk",
    "agents": {"echo": {"kind": "scripted"}, "lite": {"kind": "scripted", "input_schema": {"type": "integer"}}},
    "steps": [
        {"id": "first", "agent": "echo", "output_schema": {"type": "integer"}},
        {"id": "second", "agent": "echo"},
    ],
}


@pytest.fixture(params=["sqlite_url", pytest.param("postgres_url", marks=pytest.mark.postgres)])
def api(request: pytest.FixtureRequest) -> Iterator[Api]:
    engine = make_engine(request.getfixturevalue(request.param))
    register(engine, FLOW)
    with serving(engine) as running:
        yield running
    engine.db.close()


@pytest.fixture
def http(api: Api) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=api.url, headers={"Authorization": f"Bearer {api.keys['operate']}"}) as client:
        yield client


@pytest.fixture
def client(api: Api) -> Iterator[Client]:
    with Client(api.url, api_key=api.keys["operate"]) as made:
        yield made


def submit(http: httpx.Client) -> str:
    return str(http.post("/v1/jobs", json={"workflow": "desk", "input": 1}).json()["id"])


def parked(api: Api, http: httpx.Client) -> tuple[str, str]:
    """A job that failed at its first step, and its letter."""
    job = submit(http)
    do(api.engine, job, "first", fail="no")
    [letter] = http.get("/v1/dead-letters", params={"job": job}).json()["dead_letters"]
    return job, letter["id"]


def refused(answer: httpx.Response, status: int, code: str, says: str) -> None:
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert says in answer.json()["detail"]


def test_a_letter_is_replayed_with_changes(api: Api, http: httpx.Client) -> None:
    job, letter = parked(api, http)
    body = {"note": "typo", "changes": {"input": None, "agent": "echo"}}
    again = http.post(f"/v1/dead-letters/{letter}/replay", json=body)
    assert (again.status_code, again.json()["run"]) == (202, 2)
    with api.engine.db.connect(readonly=True) as session:
        [row] = steps.load(session, job, ["first"])  # type: ignore[arg-type, list-item]
    assert (row.given.text, row.agent, row.generation) == ("null", "echo", 2)  # type: ignore[union-attr]
    refused(http.post(f"/v1/dead-letters/{letter}/replay", json=body), 409, "wrong_state", "replayed by operate")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"output": "x"}, "misses its schema"),
        ({"output": 1, "agent": "echo"}, "Give output alone"),
        ({"agent": "nobody"}, "no agent 'nobody'"),
        ({"agent": "lite", "input": "x"}, "input_schema of 'lite'"),
    ],
)
def test_changes_that_do_not_fit_are_refused(api: Api, http: httpx.Client, changes: Any, says: str) -> None:
    _, letter = parked(api, http)
    refused(http.post(f"/v1/dead-letters/{letter}/replay", json={"changes": changes}), 422, "invalid_input", says)
    assert http.get(f"/v1/dead-letters/{letter}").json()["state"] == "open"


def test_an_unknown_change_is_refused_by_name(api: Api, http: httpx.Client) -> None:
    _, letter = parked(api, http)
    answer = http.post(f"/v1/dead-letters/{letter}/replay", json={"changes": {"inptu": 1}})
    assert answer.status_code == 422
    assert "/changes/inptu" in answer.text
    assert http.get(f"/v1/dead-letters/{letter}").json()["state"] == "open"


def test_the_client_replays_with_changes(api: Api, http: httpx.Client, client: Client) -> None:
    job, letter = parked(api, http)
    with pytest.raises(InvalidInput, match="misses its schema"):
        client.replay(letter, changes={"output": "x"})
    assert client.replay(letter, changes={"output": 7}, note="by hand").run == 2
    with pytest.raises(Conflict, match="replayed"):
        client.replay(letter, changes={"output": 8})
    shown = {step["path"]: step for step in client.steps(job)}
    assert (shown["first"]["state"], shown["first"]["output"]) == ("succeeded", 7)
    assert [one["changed"] for one in client.attempts(job)] == [None, {"output": "given", "by": "operate of default"}]
    assert loads(http.get(f"/v1/jobs/{job}/attempts").content)["attempts"][1]["agent"] is None


def test_a_step_is_invalidated(api: Api, http: httpx.Client, client: Client) -> None:
    """C1: over HTTP and from the client; a dry run writes nothing, a second at once is told the state."""
    job = submit(http)
    with pytest.raises(Conflict, match="is queued"):
        client.invalidate(job, "first")
    do(api.engine, job, "first", 1)
    do(api.engine, job, "second", 2)
    seen = {"dry_run": True, "again": ["first", "second"], "around": [""], "gone": [], "effects": []}
    assert client.stale(job, "first") == seen
    assert client.invalidate(job, "second", note="again").run == 2
    do(api.engine, job, "second", 3)
    again = http.post(f"/v1/jobs/{job}/steps/first/invalidate")
    assert (again.status_code, again.json()["state"], again.json()["run"]) == (202, "running", 3)
    refused(http.post(f"/v1/jobs/{job}/steps/first/invalidate"), 409, "wrong_state", "is running")
    refused(http.post(f"/v1/jobs/{job}/steps/a/b/invalidate"), 404, "not_found", "no step 'a/b'")
    outputs = [(one["path"], one["epoch"], one["output"]) for one in client.attempts(job)]
    assert outputs == [("first", 1, 1), ("second", 1, 2), ("second", 2, 3)]


def test_strict_registration_refuses_what_is_left_to_the_default(api: Api) -> None:
    """E1: strict, nothing is registered; else the steps are named."""
    said = {**FLOW, "name": "said", "steps": [{**step, "on_failure": []} for step in FLOW["steps"]]}
    left = {**FLOW, "name": "left"}
    with httpx.Client(base_url=api.url, headers={"Authorization": f"Bearer {api.keys['admin']}"}) as admin:
        refused(admin.put("/v1/workflows/left?strict=true", json=left), 422, "left_to_default", "steps[0].on_failure")
        assert admin.get("/v1/workflows/left").status_code == 404
        assert len(admin.put("/v1/workflows/left", json=left).json()["warnings"]) == 2
        assert admin.put("/v1/workflows/said?strict=true", json=said).json()["warnings"] == []
    with Client(api.url, api_key=api.keys["admin"]) as client, pytest.raises(DefinitionError, match="on_failure"):
        client.register("left", left, strict=True)


def test_a_job_is_forked(api: Api, http: httpx.Client, client: Client) -> None:
    job = submit(http)
    refused(http.post(f"/v1/jobs/{job}/fork", json={"from_step": "first"}), 409, "wrong_state", "first is ready")
    do(api.engine, job, "first", 1)
    do(api.engine, job, "second", 2)
    seen = client.drift(job, "second")
    assert (seen["again"], seen["kept"], seen["drift"]) == (["second"], 1, [])
    body = {"from_step": "second", "changes": {"input": 7}}
    made = [http.post(f"/v1/jobs/{job}/fork", json=body, headers={"Idempotency-Key": "k"}) for _ in range(2)]
    assert [answer.status_code for answer in made] == [202, 202]
    assert made[0].json()["id"] == made[1].json()["id"]
    assert made[0].json()["origin"] == job
    assert made[0].headers["location"] == f"/v1/jobs/{made[0].json()['id']}"
    assert client.fork(job, "second").origin == job
    wrong = {"from_step": "second", "changes": {"agent": "nobody"}}
    refused(http.post(f"/v1/jobs/{job}/fork", json=wrong), 422, "invalid_input", "no agent 'nobody'")
