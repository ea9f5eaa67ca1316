"""The HTTP API over a real port and real databases: what it accepts, what it answers, what it refuses."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from starlette.requests import Request

from orchestrator.api.body import read
from orchestrator.domain.errors import PayloadTooLarge
from orchestrator.engine.retention import Policy, Retention
from tests.support.api import TWO_STEPS, Api, do, finish, make_engine, register, serving


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def api(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('api') / 'orchestrator.db'}"
    else:
        server = request.getfixturevalue("postgres_server").start()
        url = server.create_database()
    engine = make_engine(url)
    register(engine)
    with serving(engine) as running:
        yield running
    engine.db.close()
    if request.param == "postgres":
        server.drop_database(url)


@pytest.fixture
def http(api: Api) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=api.url, headers=bearer(api.keys["admin"]), timeout=30) as client:
        yield client


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def submit(http: httpx.Client, **body: object) -> str:
    answer = http.post("/v1/jobs", json={"workflow": "two-steps", "input": {"n": 1}, **body})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, object]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, object] = answer.json()
    assert body["code"] == code
    assert body["status"] == status
    assert body["type"] == f"urn:orchestrator:error:{code}"
    assert isinstance(body["detail"], str)
    assert body["detail"]
    return body


# -- submitting


def test_a_submit_is_202_with_its_place_after_the_row_is_there(api: Api, http: httpx.Client) -> None:
    answer = http.post("/v1/jobs", json={"workflow": "two-steps", "input": {"n": 1}, "tags": {"team": "red"}})
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/v1/jobs/{answer.json()['id']}"
    shown = http.get(answer.headers["location"]).json()
    assert (shown["state"], shown["input"], shown["tags"]) == ("queued", {"n": 1}, {"team": "red"})


def test_the_same_key_is_the_same_job_and_another_body_is_refused(http: httpx.Client) -> None:
    body = {"workflow": "two-steps", "input": {"n": 7}}
    first = http.post("/v1/jobs", json=body, headers={"Idempotency-Key": "k-1"})
    again = http.post("/v1/jobs", json=body, headers={"Idempotency-Key": "k-1"})
    assert first.json()["id"] == again.json()["id"]
    assert again.headers["idempotent-replayed"] == "true"
    assert "idempotent-replayed" not in first.headers
    other = http.post("/v1/jobs", json={**body, "input": {"n": 8}}, headers={"Idempotency-Key": "k-1"})
    problem(other, 422, "idempotency_mismatch")


def test_twins_at_the_same_time_are_one_job(http: httpx.Client) -> None:
    barrier = threading.Barrier(8)

    def one(_: int) -> str:
        barrier.wait()
        body = {"workflow": "two-steps", "input": {"n": 1}}
        answer = http.post("/v1/jobs", json=body, headers={"Idempotency-Key": "twins"})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(one, range(8)))) == 1


def test_a_definition_may_come_with_the_job(api: Api, http: httpx.Client) -> None:
    definition = {**TWO_STEPS, "name": "inline", "deadline": "2h"}
    answer = http.post("/v1/jobs", json={"definition": definition, "input": {}, "deadline": "90s", "priority": 5})
    job = answer.json()
    assert answer.status_code == 202
    assert (job["workflow"], job["priority"]) == ("inline", 5)
    assert job["deadline_at"] - job["created_at"] == pytest.approx(90)
    assert "inline" not in [found["name"] for found in http.get("/v1/workflows").json()["workflows"]]


def test_wait_answers_with_the_end_and_without_one_when_time_is_up(api: Api, http: httpx.Client) -> None:
    first = submit(http)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(http.get, f"/v1/jobs/{first}", headers={"Prefer": "wait=30"})
        finish(api.engine, first, {"done": 1})
        answer = waiting.result()
    assert (answer.json()["state"], answer.json()["output"]) == ("succeeded", {"done": 1})
    assert answer.headers["preference-applied"] == "wait=30"

    late = http.post("/v1/jobs", json={"workflow": "two-steps"}, headers={"Prefer": "respond-async, wait=1"})
    assert (late.status_code, late.json()["state"]) == (202, "queued")


def test_a_submit_that_waits_is_200_with_the_output(api: Api, http: httpx.Client) -> None:
    body = {"workflow": "two-steps", "tags": {"wait": "yes"}}
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(http.post, "/v1/jobs", json=body, headers={"Prefer": "wait=30"})
        found: list[dict[str, str]] = []
        while not found:
            found = http.get("/v1/jobs", params={"tag": "wait:yes"}).json()["jobs"]
        finish(api.engine, found[0]["id"], [1, 2])
        answer = waiting.result()
    assert (answer.status_code, answer.json()["output"]) == (200, [1, 2])


def test_a_batch_is_all_or_nothing(http: httpx.Client) -> None:
    jobs = [{"workflow": "two-steps", "input": {"n": n}, "key": f"batch-{n}"} for n in range(3)]
    answer = http.post("/v1/jobs/batch", json={"jobs": jobs})
    assert answer.status_code == 202
    ids = [job["id"] for job in answer.json()["jobs"]]
    assert len(set(ids)) == 3
    assert [job["id"] for job in http.post("/v1/jobs/batch", json={"jobs": jobs}).json()["jobs"]] == ids

    bad = [{"workflow": "two-steps", "tags": {"half": "1"}}, {"workflow": "nowhere"}]
    problem(http.post("/v1/jobs/batch", json={"jobs": bad}), 404, "not_found")
    assert http.get("/v1/jobs", params={"tag": "half:1"}).json()["jobs"] == []
    too_many = [{"workflow": "two-steps"}] * 1001
    problem(http.post("/v1/jobs/batch", json={"jobs": too_many}), 422, "invalid_input")


# -- looking


def test_lists_page_without_a_gap_or_a_repeat(http: httpx.Client) -> None:
    made = {submit(http, tags={"page": "me"}) for _ in range(7)}
    seen: list[str] = []
    cursor = None
    while True:
        params = {"tag": "page:me", "limit": "3", **({"cursor": cursor} if cursor else {})}
        page = http.get("/v1/jobs", params=params).json()
        seen += [job["id"] for job in page["jobs"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert (len(seen), set(seen)) == (7, made)
    assert seen == sorted(seen, reverse=True)


def test_filters(api: Api, http: httpx.Client) -> None:
    queued, done = submit(http, tags={"filter": "a"}), submit(http, tags={"filter": "b c:d"})
    finish(api.engine, done)

    def ids(**params: object) -> list[str]:
        answer = http.get("/v1/jobs", params=params)
        assert answer.status_code == 200, answer.text
        return [job["id"] for job in answer.json()["jobs"]]

    assert ids(tag="filter:a") == [queued]
    assert ids(tag="filter:b c:d") == [done]
    assert done in ids(state="succeeded")
    assert queued not in ids(state="succeeded")
    assert {queued, done} <= set(ids(state=["queued", "succeeded"]))
    assert ids(workflow="nothing") == []
    created = http.get(f"/v1/jobs/{queued}").json()["created_at"]
    assert queued in ids(created_after=created - 1)
    assert queued not in ids(created_after=created + 3600)
    assert queued in ids(created_before="2999-01-01T00:00:00Z")
    assert queued not in ids(created_before="2020-01-01")


def test_steps_attempts_and_event_pages(api: Api, http: httpx.Client) -> None:
    job = submit(http)
    finish(api.engine, job, {"x": "é\u2028"})
    page = http.get(f"/v1/jobs/{job}/steps", params={"limit": 1}).json()
    rest = http.get(f"/v1/jobs/{job}/steps", params={"cursor": page["next"]}).json()
    assert [step["path"] for step in page["steps"] + rest["steps"]] == ["first", "second"]
    assert rest["steps"][0]["output"] == {"x": "é\u2028"}
    attempts = http.get(f"/v1/jobs/{job}/attempts").json()["attempts"]
    assert [(a["path"], a["outcome"]) for a in attempts] == [("first", "succeeded"), ("second", "succeeded")]

    some = http.get(f"/v1/jobs/{job}/events", params={"limit": 2}).json()
    assert ([e["number"] for e in some["events"]], some["next"], some["complete"]) == ([1, 2], 2, False)
    rest = http.get(f"/v1/jobs/{job}/events", params={"after": some["next"]}).json()
    assert [e["type"] for e in rest["events"]] == ["step.succeeded", "job.succeeded"]
    assert rest["complete"] is True
    problem(http.get(f"/v1/jobs/{job}/events", params={"after": 99}), 410, "gone")


def test_a_removed_job_is_gone_for_everybody(api: Api, http: httpx.Client) -> None:
    job = submit(http)
    finish(api.engine, job)
    Retention(api.engine, Policy(keep=-1.0)).work()
    stream = {"Accept": "text/event-stream", "Last-Event-ID": "1"}
    for path in ("", "/steps", "/attempts", "/events", "/explain", "/compensations"):
        problem(http.get(f"/v1/jobs/{job}{path}"), 410, "gone")
    problem(http.get(f"/v1/jobs/{job}/events", headers=stream), 410, "gone")
    problem(http.post(f"/v1/jobs/{job}/cancel"), 410, "gone")
    problem(http.get(f"/v1/jobs/{'f' * 32}"), 404, "not_found")


def test_cancel_is_idempotent_and_says_which_state_is_in_the_way(api: Api, http: httpx.Client) -> None:
    job = submit(http)
    for _ in range(2):
        assert http.post(f"/v1/jobs/{job}/cancel").json()["state"] == "cancelled"
    done = submit(http)
    finish(api.engine, done)
    assert "succeeded" in str(problem(http.post(f"/v1/jobs/{done}/cancel"), 409, "wrong_state")["detail"])


def test_dead_letters_are_shown_replayed_and_discarded_once(api: Api, http: httpx.Client) -> None:
    job = submit(http)
    do(api.engine, job, "first", fail="the dog ate it")
    letters = http.get("/v1/dead-letters", params={"job": job}).json()["dead_letters"]
    assert [(a["path"], a["reason"], a["message"]) for a in letters] == [("first", "permanent", "the dog ate it")]
    letter = http.get(f"/v1/dead-letters/{letters[0]['id']}").json()
    assert letter["attempts"][0]["failure"]["message"] == "the dog ate it"

    replayed = http.post(f"/v1/dead-letters/{letter['id']}/replay", json={"note": "fed the dog"})
    assert (replayed.status_code, replayed.json()["state"], replayed.json()["run"]) == (202, "running", 2)
    problem(http.post(f"/v1/dead-letters/{letter['id']}/replay"), 409, "wrong_state")
    do(api.engine, job, "first", fail="again")
    [second] = http.get("/v1/dead-letters", params={"job": job}).json()["dead_letters"]
    assert http.post(f"/v1/dead-letters/{second['id']}/discard").json()["state"] == "discarded"
    problem(http.post(f"/v1/dead-letters/{second['id']}/discard", json={}), 409, "wrong_state")
    everything = http.get("/v1/dead-letters", params={"job": job, "state": "all", "limit": 1}).json()
    assert everything["next"] is not None
    problem(http.get("/v1/dead-letters/none"), 404, "not_found")


def test_workflows_are_registered_and_shown_by_version(http: httpx.Client) -> None:
    first = http.put("/v1/workflows/pair", json={**TWO_STEPS, "name": "pair"}).json()["version"]
    yaml = "name: pair\ndescription: new\nagents: {echo: {kind: scripted}}\nsteps: [{id: one, agent: echo}]\n"
    headers = {"Content-Type": "application/yaml"}
    second = http.put("/v1/workflows/pair", content=yaml, headers=headers).json()["version"]
    shown = http.get("/v1/workflows/pair").json()
    assert (shown["version"], shown["definition"]["description"]) == (second, "new")
    assert [found["version"] for found in shown["versions"]] == [second, first]
    assert http.get("/v1/workflows/pair", params={"version": first[:8]}).json()["version"] == first
    assert http.put("/v1/workflows/pair", content=yaml, headers=headers).json()["version"] == second
    problem(http.get("/v1/workflows/none"), 404, "not_found")

    body = problem(http.put("/v1/workflows/other", json={**TWO_STEPS, "name": "pair"}), 422, "invalid_definition")
    assert body["problems"][0]["path"] == "name"  # type: ignore[index]
    broken = http.put("/v1/workflows/pair", content="name: pair\nsteps:\n  - {id: a, agnt: x}\n", headers=headers)
    assert problem(broken, 422, "invalid_definition")["problems"][0]["line"] == 3  # type: ignore[index]


# -- machines


def test_probes_need_no_key_and_tell_a_broker_that_is_down(api: Api) -> None:
    for path in ("/livez", "/readyz", "/metrics", "/metrics/global", "/openapi.json"):
        assert httpx.get(api.url + path).status_code == 200
    assert httpx.get(f"{api.url}/readyz").json() == {"status": "ok", "database": "ok", "broker": "ok"}


def test_openapi_is_3_1_and_names_the_problems(api: Api) -> None:
    schema = httpx.get(f"{api.url}/openapi.json").json()
    assert schema["openapi"].startswith("3.1")
    operation = schema["paths"]["/v1/jobs"]["post"]
    assert operation["security"] == [{"key": []}]
    assert set(operation["responses"]) == {"200", "202", "4XX", "5XX"}
    assert list(operation["responses"]["4XX"]["content"]) == ["application/problem+json"]
    assert "HTTPValidationError" not in schema["components"]["schemas"]


# -- refusing

JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("content", "headers", "status", "code"),
    [
        (b"{", JSON, 422, "invalid_input"),
        (b"", JSON, 422, "invalid_input"),
        (b"[]", JSON, 422, "invalid_input"),
        (b'{"workflow": "two-steps", "input": NaN}', JSON, 422, "invalid_input"),
        (b'{"workflow": "two-steps", "input": "\\u0000"}', JSON, 422, "invalid_input"),
        (b'{"workflow": "two-steps", "input": "\\ud800"}', JSON, 422, "invalid_input"),
        (b'{"workflow": "two-steps", "input": ' + b"[" * 1000 + b"]" * 1000 + b"}", JSON, 422, "invalid_input"),
        (b'{"workflow": "two-steps", "input": {"n": "one"}}', JSON, 422, "invalid_input"),
        (b'{"workflow": "two-steps", "prio": 1}', JSON, 422, "invalid_input"),
        (b'{"workflow": "two-steps", "priority": 1e9}', JSON, 422, "invalid_input"),
        (b'{"workflow": "two-steps", "deadline": 5}', JSON, 422, "invalid_input"),
        (b'{"workflow": "two-steps", "deadline": "0s"}', JSON, 422, "invalid_input"),
        (b'{"workflow": "two-steps", "tags": {"a b": "c"}}', JSON, 422, "invalid_input"),
        (b'{"input": 1}', JSON, 422, "invalid_input"),
        (b'{"workflow": "nowhere"}', JSON, 404, "not_found"),
        (b'{"definition": {"name": "x"}}', JSON, 422, "invalid_definition"),
        (b'{"definition": {"name": "x", "steps": [{"id": "a", "agent": "who"}]}}', JSON, 422, "invalid_definition"),
        (b'{"workflow": "two-steps"}', {"Content-Type": "text/plain"}, 415, "unsupported_media_type"),
        (b'{"workflow": "two-steps"}', {}, 415, "unsupported_media_type"),
        (b'{"workflow": "two-steps"}', {**JSON, "Idempotency-Key": "x" * 300}, 422, "invalid_input"),
    ],
)
def test_bad_input_is_one_clear_problem(
    http: httpx.Client, content: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    """D4: bytes, depth, types: refused before anything is written, with what and where."""
    before = http.get("/v1/jobs", params={"limit": 1}).json()["jobs"][:1]
    problem(http.post("/v1/jobs", content=content, headers=headers), status, code)
    assert http.get("/v1/jobs", params={"limit": 1}).json()["jobs"][:1] == before


def test_a_problem_points_to_the_place(http: httpx.Client) -> None:
    body = problem(http.post("/v1/jobs", json={"workflow": "two-steps", "tags": {"a": 1}}), 422, "invalid_input")
    assert body["problems"][0]["pointer"] == "/tags/a"  # type: ignore[index]
    body = problem(http.get("/v1/jobs", params={"limit": 1000}), 422, "invalid_input")
    assert body["problems"][0]["parameter"] == "limit"  # type: ignore[index]


def test_a_large_body_is_refused_whatever_its_header_says(http: httpx.Client) -> None:
    """D4: as soon as it is longer, before it is parsed."""

    def chunks() -> Iterator[bytes]:
        yield b'{"workflow": "two-steps", "input": "'
        for _ in range(100):
            yield b"x" * (1024 * 1024)

    problem(http.post("/v1/jobs", content=chunks(), headers=JSON), 413, "payload_too_large")
    declared = http.post("/v1/jobs", content=b"x" * (5 * 1024 * 1024), headers=JSON)
    said = problem(declared, 413, "payload_too_large")
    mend = "Send a reference, or raise ORCHESTRATOR_MAX_BODY_BYTES."
    assert said["detail"] == f"the body is longer than 4194304 bytes. {mend}"


async def _taken(pieces: int, limit: int) -> int:
    taken = 0

    async def receive() -> dict[str, object]:
        nonlocal taken
        taken += 1
        return {"type": "http.request", "body": b"x" * 1000, "more_body": taken < pieces}

    with pytest.raises(PayloadTooLarge):
        await read(Request({"type": "http", "headers": []}, receive), limit)
    return taken


def test_no_more_of_a_body_is_read_than_the_limit() -> None:
    assert asyncio.run(_taken(pieces=1000, limit=4500)) == 5


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("DELETE", "/v1/jobs", 405, "method_not_allowed"),
        ("GET", "/v1/jobs/0123", 404, "not_found"),
        ("GET", "/v1/jobs/%00", 422, "invalid_input"),
        ("GET", "/v1/jobs?workflow=%00", 422, "invalid_input"),
        ("GET", "/v1/jobs?cursor=~~~", 422, "invalid_input"),
        ("GET", "/v1/jobs?state=done", 422, "invalid_input"),
        ("GET", "/v1/jobs?tag=nocolon", 422, "invalid_input"),
        ("GET", "/v1/jobs?created_after=yesterday", 422, "invalid_input"),
        ("GET", "/v1/jobs/0123/events?after=-1", 422, "invalid_input"),
        ("POST", "/v1/jobs/0123/cancel", 404, "not_found"),
    ],
)
def test_wrong_addresses_are_problems_too(http: httpx.Client, method: str, path: str, status: int, code: str) -> None:
    problem(http.request(method, path), status, code)
