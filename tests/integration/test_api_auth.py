"""Who may do what: keys, roles, tenants, open doors, and addresses nobody may listen on without keys."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from orchestrator.api import auth
from orchestrator.api.auth import check_bind
from orchestrator.domain.errors import ConfigError
from orchestrator.engine.context import Engine
from orchestrator.settings import Settings
from orchestrator.store import desk
from tests.support.api import TWO_STEPS, Api, add_key, do, make_engine, register, serving


@pytest.fixture
def engine(sqlite_url: str) -> Iterator[Engine]:
    made = make_engine(sqlite_url)
    register(made)
    yield made
    made.db.close()


@pytest.fixture
def api(engine: Engine) -> Iterator[Api]:
    with serving(engine, agent_packages=("acme",), egress=("https://api.example.com/",)) as running:
        yield running


def as_(api: Api, key: str | None) -> httpx.Client:
    return httpx.Client(base_url=api.url, headers={"Authorization": f"Bearer {key}"} if key else {})


def code(answer: httpx.Response) -> tuple[int, str | None]:
    return answer.status_code, answer.json().get("code") if answer.status_code >= 400 else None


def test_without_a_key_there_is_nothing_to_see(api: Api) -> None:
    for key in (None, "wrong", "ünïcode".encode().hex()):
        with as_(api, key) as http:
            for path in ("/v1/jobs", "/v1/jobs/x", "/v1/dead-letters", "/v1/workflows", "/v1/queues", "/v1/workers"):
                answer = http.get(path)
                assert code(answer) == (401, "unauthorized")
                assert answer.headers["www-authenticate"] == "Bearer"
    basic = httpx.get(f"{api.url}/v1/jobs", auth=("user", api.keys["admin"]))
    assert code(basic) == (401, "unauthorized")


def test_the_door_comes_before_the_body(api: Api) -> None:
    with as_(api, None) as http:
        answer = http.post("/v1/jobs", content=b"{" * 1000, headers={"Content-Type": "application/json"})
        assert code(answer) == (401, "unauthorized")


@pytest.mark.parametrize(
    ("method", "path", "least"),
    [
        ("GET", "/v1/jobs", "submit"),
        ("POST", "/v1/jobs/x/cancel", "submit"),
        ("GET", "/v1/dead-letters", "submit"),
        ("GET", "/v1/workflows", "submit"),
        ("POST", "/v1/dead-letters/x/replay", "operate"),
        ("POST", "/v1/dead-letters/x/discard", "operate"),
        ("GET", "/v1/queues", "operate"),
        ("GET", "/v1/workers", "operate"),
        ("PUT", "/v1/workflows/two-steps", "admin"),
    ],
)
def test_each_call_takes_its_role(api: Api, method: str, path: str, least: str) -> None:
    for role in ("submit", "operate", "admin"):
        with as_(api, api.keys[role]) as http:
            answer = http.request(method, path, **({"json": TWO_STEPS} if method == "PUT" else {}))
            refused = auth.RANK[role] < auth.RANK[least]
            assert (code(answer) == (403, "forbidden")) is refused, answer.text


def test_a_tenant_sees_and_moves_only_its_own(api: Api, engine: Engine) -> None:
    with as_(api, add_key(engine, "operate", "acme")) as acme, as_(api, add_key(engine, "operate", "other")) as other:
        job = acme.post("/v1/jobs", json={"workflow": "two-steps"}, headers={"Idempotency-Key": "same"}).json()
        assert job["tenant"] == "acme"
        elsewhere = other.post("/v1/jobs", json={"workflow": "two-steps"}, headers={"Idempotency-Key": "same"}).json()
        assert elsewhere["id"] != job["id"]
        do(engine, job["id"], "first", fail="broken")
        [letter] = acme.get("/v1/dead-letters").json()["dead_letters"]

        reads = [f"/v1/jobs/{job['id']}{part}" for part in ("", "/steps", "/attempts", "/events")]
        for path in [*reads, f"/v1/dead-letters/{letter['id']}"]:
            assert acme.get(path).status_code == 200
            assert code(other.get(path)) == (404, "not_found")
        stream = {"Accept": "text/event-stream"}
        assert code(other.get(reads[-1], headers=stream)) == (404, "not_found")
        assert other.get("/v1/dead-letters").json()["dead_letters"] == []
        assert [found["id"] for found in other.get("/v1/jobs").json()["jobs"]] == [elsewhere["id"]]
        for path in (
            f"/v1/jobs/{job['id']}/cancel",
            f"/v1/dead-letters/{letter['id']}/replay",
            f"/v1/dead-letters/{letter['id']}/discard",
        ):
            assert code(other.post(path)) == (404, "not_found")
        assert code(other.get("/v1/jobs", params={"tenant": "acme"})) == (403, "forbidden")
        assert code(other.get("/v1/jobs", params={"tenant": "*"})) == (403, "forbidden")
        assert acme.get(f"/v1/dead-letters/{letter['id']}").json()["state"] == "open"


def test_an_admin_reaches_the_tenant_it_names(api: Api, engine: Engine) -> None:
    with as_(api, add_key(engine, "submit", "acme")) as acme, as_(api, api.keys["admin"]) as admin:
        job = acme.post("/v1/jobs", json={"workflow": "two-steps"}).json()["id"]
        assert code(admin.get(f"/v1/jobs/{job}")) == (404, "not_found")
        assert admin.get(f"/v1/jobs/{job}", params={"tenant": "acme"}).status_code == 200
        assert [found["id"] for found in admin.get("/v1/jobs", params={"tenant": "*"}).json()["jobs"]] == [job]
        for_acme = admin.post("/v1/jobs", json={"workflow": "two-steps"}, params={"tenant": "acme"})
        assert for_acme.json()["tenant"] == "acme"
        everyone = admin.post("/v1/jobs", json={"workflow": "two-steps"}, params={"tenant": "*"})
        assert code(everyone) == (422, "invalid_input")


def test_a_revoked_key_works_no_longer_than_it_is_remembered(
    api: Api, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = engine.clock.monotonic()
    monkeypatch.setattr(type(engine.clock), "monotonic", lambda _: now)
    with as_(api, api.keys["submit"]) as http:
        assert http.get("/v1/jobs").status_code == 200
        [key] = [k for k in engine.db.run(desk.keys, readonly=True) if k["role"] == "submit"]
        assert engine.db.run(lambda session: desk.revoke_key(session, key["id"]))
        now += auth.REMEMBER - 0.1
        assert http.get("/v1/jobs").status_code == 200
        now += 0.2
        assert code(http.get("/v1/jobs")) == (401, "unauthorized")


def test_a_definition_from_outside_may_not_reach_further_than_its_policy(api: Api) -> None:
    agents = {
        "good": {"kind": "python", "target": "acme.agents:run"},
        "bad": {"kind": "python", "target": "os:system"},
        "leak": {"kind": "http", "url": "https://evil.test/"},
    }
    steps = [{"id": f"s{i}", "agent": name} for i, name in enumerate(agents)]
    definition = {"name": "reach", "agents": agents, "steps": steps}
    with as_(api, api.keys["admin"]) as http:
        for answer in (
            http.post("/v1/jobs", json={"definition": definition}),
            http.post("/v1/jobs/batch", json={"jobs": [{"definition": definition}]}),
            http.put("/v1/workflows/reach", json=definition),
        ):
            assert code(answer) == (422, "refused_by_policy")
            assert [p["path"] for p in answer.json()["problems"]] == ["agents.bad.target", "agents.leak.url"]
        assert http.get("/v1/jobs").json()["jobs"] == []


def test_dev_serves_programs_here_without_keys_and_no_web_page(engine: Engine) -> None:
    with serving(engine, dev=True) as api, httpx.Client(base_url=api.url) as http:
        made = http.post("/v1/jobs", json={"workflow": "two-steps"})
        assert (made.status_code, made.json()["tenant"]) == (202, "default")
        assert http.put("/v1/workflows/two-steps", json=TWO_STEPS).status_code == 200
        assert http.get("/v1/jobs", headers={"Origin": "http://localhost:3000"}).status_code == 200
        for headers in (
            {"Host": "rebound.example.com"},
            {"Origin": "https://evil.test"},
            {"Origin": "null"},
            {"Sec-Fetch-Site": "cross-site"},
        ):
            assert code(http.post(f"/v1/jobs/{made.json()['id']}/cancel", headers=headers)) == (403, "forbidden")
        outside = {"kind": "python", "target": "my_agents:run"}
        free = {"name": "free", "agents": {"a": outside}, "steps": [{"id": "s", "agent": "a"}]}
        assert http.post("/v1/jobs", json={"definition": free}).status_code == 202


@pytest.mark.parametrize(
    ("host", "insecure", "dev", "keys", "starts"),
    [
        ("127.0.0.1", False, False, 0, False),
        ("127.0.0.1", True, False, 0, True),
        ("127.0.0.1", False, True, 0, True),
        ("0.0.0.0", False, False, 0, False),
        ("0.0.0.0", False, True, 0, False),
        ("0.0.0.0", False, False, 1, True),
        ("::", False, False, 1, True),
    ],
)
def test_no_address_is_listened_on_that_nobody_may_use(
    engine: Engine, host: str, insecure: bool, dev: bool, keys: int, starts: bool
) -> None:
    for _ in range(keys):
        add_key(engine, "submit")
    settings = Settings.load(env_file=None, host=host, insecure_no_auth=insecure)
    if starts:
        check_bind(engine, settings, host, dev=dev)
        return
    with pytest.raises(ConfigError, match="no API key") as raised:
        check_bind(engine, settings, host, dev=dev)
    assert raised.value.exit_code == 78


def test_revoked_keys_do_not_count(engine: Engine, tmp_path: Path) -> None:
    add_key(engine, "admin")
    for key in engine.db.run(desk.keys, readonly=True):
        engine.db.run(lambda session, key=key: desk.revoke_key(session, key["id"]))
    with pytest.raises(ConfigError):
        check_bind(engine, Settings.load(env_file=None), "0.0.0.0")
