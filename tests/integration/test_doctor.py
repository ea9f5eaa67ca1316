"""doctor finds what is misconfigured or stuck, and says nothing where all is well (K7)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import redis

from orchestrator.bootstrap import build_app
from orchestrator.canvas.checkup import broker_facts
from orchestrator.clock import Clock
from orchestrator.domain.errors import Unavailable
from orchestrator.domain.ids import Incarnation
from orchestrator.engine.context import Engine
from orchestrator.engine.doctor import Finding, doctor
from orchestrator.engine.settle import claim
from orchestrator.settings import Settings
from orchestrator.store import checkup, desk
from orchestrator.store.database import Database
from orchestrator.store.desk import Caller
from tests.support.bench import Bench

FLOW: dict[str, Any] = {
    "name": "t",
    "agents": {
        "far": {"kind": "http", "url": "https://api.example.com/x"},
        "py": {"kind": "python", "target": "tests.support.sample_agents:echo"},
    },
    "steps": [{"id": "a", "agent": "far"}, {"id": "b", "agent": "py"}],
}
WELL = {"kind": "redis", "maxmemory_policy": "noeviction"}


@pytest.fixture(params=["sqlite", "postgresql"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    it = Bench(request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_url"))
    yield it
    it.close()


def settings(bench: Bench, **more: Any) -> Settings:
    return Settings.load(env_file=None, database_url=bench.db.url.render_as_string(False), **more)


def examine(bench: Bench, broker: Callable[[], Mapping[str, str]] = lambda: WELL, **more: Any) -> dict[str, Finding]:
    return {finding.check: finding for finding in doctor(bench.engine, settings(bench, **more), broker)}


def add_key(bench: Bench) -> None:
    bench.db.run(lambda session: desk.add_key(session, Caller("k", "ann", "default", "admin"), "secret"))


def test_where_all_is_well_it_finds_nothing(bench: Bench) -> None:
    add_key(bench)
    bench.submit(FLOW)
    bench.pump()
    assert examine(bench, agent_packages="tests", egress="https://api.example.com/") == {}


def test_it_finds_what_is_stuck(bench: Bench) -> None:
    add_key(bench)
    flow = {"name": "t", "agents": {"e": {"kind": "scripted"}}, "steps": [{"id": "a", "agent": "e"}]}
    held, due = bench.submit(flow), bench.submit(flow)
    other = bench.submit({**flow, "agents": {"e": {"kind": "scripted", "queue": "lonely"}}})
    bench.pump()
    claim(bench.engine, bench.dispatcher.refs)

    def work(session: Any) -> None:
        session.execute("UPDATE steps SET lease_until = {now} - 60 WHERE job_id = :job", {"job": held})
        session.execute(
            "UPDATE steps SET state = 'retrying', lease_owner = NULL, lease_until = NULL, not_before = {now} - 60"
            " WHERE job_id = :job AND path = 'a'",
            {"job": due},
        )
        session.execute("UPDATE workers SET heartbeat_at = {now} - 100, lost_slots = 3")

    bench.db.run(work)
    found = examine(bench)
    assert {"no_worker", "stuck_lease", "late_timers", "silent_worker", "lost_slots", "promise_I8"} <= found.keys()
    assert found["no_worker"].where == "queue lonely"
    assert found["no_worker"].mend == "Run: orchestrator worker -Q lonely"
    assert held in found["stuck_lease"].what
    assert found["stuck_lease"].severity == "error"
    assert found["silent_worker"].severity == "warning"
    assert isinstance(other, str)


def test_it_names_questions_that_are_old(bench: Bench) -> None:
    broken = {"kind": "scripted", "script": [{"fail": {"class": "permanent"}}]}
    step = {"id": "a", "agent": "e", "on_failure": [{"escalate": "legal"}]}
    bench.submit({"name": "t", "agents": {"e": broken}, "steps": [step]})
    bench.drive()
    assert "decisions_old" not in examine(bench)
    bench.db.run(lambda session: session.execute("UPDATE waits SET created_at = created_at - 200000"))
    found = examine(bench)["decisions_old"]
    assert (found.severity, found.mend) == ("warning", "Look: orchestrator decisions list")
    assert found.what.startswith("1 wait")


def test_it_finds_defaults_left_open(bench: Bench) -> None:
    bench.submit(FLOW)
    found = examine(bench, insecure_no_auth=True)
    assert {"open_door", "no_agent_packages", "no_egress"} <= found.keys()
    assert examine(bench)["no_api_key"].severity == "warning"
    assert examine(bench, host="0.0.0.0")["no_api_key"].severity == "error"
    add_key(bench)
    assert "no_api_key" not in examine(bench)


def test_it_sees_dead_letters_grow(bench: Bench) -> None:
    script = [{"fail": {"class": "permanent", "message": "x"}}]
    flow = {"name": "t", "agents": {"e": {"kind": "scripted", "script": script}}, "steps": [{"id": "a", "agent": "e"}]}
    for _ in range(3):
        bench.submit(flow)
    bench.drive()
    assert "3 came in the last hour, 0 in the hour before; 3 open" in examine(bench)["dead_letters_grow"].what
    bench.db.run(lambda s: s.execute("UPDATE dead_letters SET created_at = created_at - 200000"))
    assert "the oldest for 2 d" in examine(bench)["dead_letters_old"].what


def test_it_compares_the_clocks(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    now = Clock.now
    monkeypatch.setattr(Clock, "now", lambda self: now(self) + 5)
    assert examine(bench)["clock_skew"].severity == "warning"
    monkeypatch.setattr(Clock, "now", lambda self: now(self) - 500)
    assert examine(bench)["clock_skew"].severity == "error"


def test_it_says_what_the_broker_is(bench: Bench) -> None:
    def down() -> dict[str, str]:
        raise Unavailable("the broker does not answer.", mend="Start it.")

    assert examine(bench, down)["broker_down"].severity == "error"
    assert examine(bench, lambda: {"kind": "memory"})["broker_in_memory"].severity == "warning"
    assert "redis_unreadable" in examine(bench, lambda: {"kind": "redis", "unreadable": "NOPERM"})


def test_it_finds_a_broken_promise(bench: Bench) -> None:
    job = bench.submit(FLOW)
    bench.db.run(lambda s: s.execute("DELETE FROM events WHERE job_id = :job", {"job": job}))
    found = examine(bench)["promise_I6"]
    assert (found.severity, found.where) == ("error", f"job {job}")
    assert "orchestrator verify" in found.mend


def test_an_old_schema_and_no_database_are_findings(sqlite_url: str) -> None:
    engine = Engine(Database(sqlite_url), Clock(), Incarnation("x"))
    made = Settings.load(env_file=None, database_url=sqlite_url)
    (found,) = doctor(engine, made, lambda: WELL)
    assert (found.check, found.mend) == ("schema", "Run: orchestrator migrate")
    engine.db.close()
    away = "postgresql+psycopg://nobody@127.0.0.1:1/nowhere"
    engine = Engine(Database(away), Clock(), Incarnation("x"))
    (found,) = doctor(engine, Settings.load(env_file=None, database_url=away), lambda: WELL)
    assert found.check == "database_down"
    engine.db.close()


def test_it_reads_a_servers_settings(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    it = Bench(postgres_url)
    with it.db.connect(readonly=True) as session:
        real = checkup.server_settings(session)
    assert real.keys() >= {"fsync", "synchronous_commit", "full_page_writes", "server_version_num"}
    it.db.run(lambda s: s.execute("SELECT 1"))
    with it.db.engine.connect() as connection:
        name = it.db.url.database
        connection.exec_driver_sql(f'ALTER DATABASE "{name}" SET synchronous_commit = off')
        connection.commit()
    it.db.engine.dispose()
    assert examine(it)["synchronous_commit"].severity == "error"
    monkeypatch.setattr(checkup, "server_settings", lambda _: {"fsync": "off", "server_version_num": "140005"})
    found = examine(it)
    assert (found["fsync"].severity, found["postgres_version"].what) == ("error", "this is PostgreSQL 14.")
    it.close()


def test_a_network_disk_is_no_place_for_sqlite(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    it = Bench(sqlite_url)
    kind = checkup.disk_of(it.db)
    assert kind is None or kind not in checkup.NETWORK_DISKS
    monkeypatch.setattr(checkup, "disk_of", lambda _: "nfs4")
    assert "network disk (nfs4)" in examine(it)["network_disk"].what
    it.close()


def test_a_redis_that_evicts(redis_url: str, sqlite_url: str) -> None:
    app = build_app(Settings.load(env_file=None, database_url=sqlite_url, broker_url=redis_url))
    with redis.Redis.from_url(redis_url) as server:
        before = server.config_get("maxmemory-policy")["maxmemory-policy"]
        try:
            server.config_set("maxmemory-policy", "allkeys-lru")
            facts = broker_facts(app)
        finally:
            server.config_set("maxmemory-policy", before)
    assert (facts["kind"], facts["maxmemory_policy"]) == ("redis", "allkeys-lru")
    it = Bench(sqlite_url)
    assert "allkeys-lru" in examine(it, lambda: facts)["redis_evicts"].what
    it.close()
    assert broker_facts(build_app(Settings.load(env_file=None, broker_url="memory://")))["kind"] == "memory"
    with pytest.raises(Unavailable):
        broker_facts(build_app(Settings.load(env_file=None, broker_url="redis://127.0.0.1:1/0")))
