"""What a command loads: no more than it uses. Asserted by names of packages, never by the clock."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from alembic.script import ScriptDirectory

from orchestrator.store import migrations

SQL = {"sqlalchemy"}
POSTGRES = {"psycopg", "psycopg_binary"}
CHANGES = {"alembic", "mako"}
BROKER = {"celery", "kombu", "billiard"}
DRIVERS = {"redis", "amqp"}
EXPRESSIONS = {"cel"}
CALLS = {"httpx"}
AGENTS = {"aiohttp", "workers"}
WEB = {"fastapi", "starlette", "uvicorn"}
METRICS = {"prometheus_client"}
#: What nothing of ours uses: the terminal toolkit of CEL's own command line.
NEVER = {"prompt_toolkit"}
HEAVY = SQL | POSTGRES | CHANGES | BROKER | DRIVERS | EXPRESSIONS | CALLS | AGENTS | WEB | METRICS | NEVER

RUN = "from orchestrator.cli import main\ntry:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n    code = end.code"
PROBE = """
import sys
code = 0
{}
print("loaded", *sorted({{name.partition(".")[0] for name in sys.modules}}), file=sys.stderr)
sys.exit(code)
"""
WORKFLOW = """
name: hello
agents: {a: {kind: scripted}}
steps: [{id: one, agent: a, with: {words: "${{ input }}"}, on_failure: []}]
"""


class Answers(BaseHTTPRequestHandler):
    """An API without a job."""

    def do_GET(self) -> None:
        body = b'{"jobs": [], "dead_letters": [], "groups": [], "next": null}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.fixture
def url() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A directory with a database, and a workflow registered in it."""
    (tmp_path / "hello.yaml").write_text(WORKFLOW)
    loaded(tmp_path, "migrate")
    loaded(tmp_path, "workflows", "apply", "-f", "hello.yaml")
    return tmp_path


def loaded(home: Path, *words: str, program: str = RUN, url: str | None = None) -> set[str]:
    """The heavy packages that one process loads, which must end well: a command of ``words``, or ``program``."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("ORCHESTRATOR_")}
    place = {"ORCHESTRATOR_URL": url} if url else {"ORCHESTRATOR_DATABASE_URL": f"sqlite:///{home}/jobs.db"}
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(program), *words],
        cwd=home,
        env={**ours, **place, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return HEAVY & set(done.stderr.rpartition("loaded ")[2].split())


def test_help_loads_nothing(tmp_path: Path) -> None:
    assert loaded(tmp_path, "--help") == set()
    assert loaded(tmp_path, "jobs", "list", "--help") == set()


@pytest.mark.parametrize("words", ["jobs list", "dead-letters list", "dead-letters groups --workflow hello"])
def test_a_command_over_http_loads_http(tmp_path: Path, url: str, words: str) -> None:
    assert loaded(tmp_path, *words.split(), url=url) == CALLS


def test_a_command_on_the_database_loads_sql(home: Path) -> None:
    for words in ("jobs list", "dead-letters list", "workflows list", "migrate", "verify"):
        assert loaded(home, *words.split()) == SQL, words


def test_a_submit_loads_expressions_too(home: Path) -> None:
    assert loaded(home, "submit", "hello", "--input", "to=you") == SQL | EXPRESSIONS
    assert loaded(home, "compile", "hello.yaml") == BROKER | EXPRESSIONS | {"amqp"}  # amqp is kombu's own


def test_a_run_loads_no_server_and_no_driver(home: Path) -> None:
    found = loaded(home, "run", "hello.yaml", "--db", "jobs.db")
    assert found & (WEB | CHANGES | POSTGRES | NEVER | {"redis"}) == set()


def test_a_worker_loads_no_web_and_no_migrations(tmp_path: Path) -> None:
    program = """
from orchestrator.bootstrap import build_app
from orchestrator.settings import Settings
import workers.runtime, workers.tasks
build_app(Settings.load(broker_url="redis://127.0.0.1:1"))
"""
    found = loaded(tmp_path, program=program)
    assert found & (WEB | CHANGES | NEVER) == set()


def test_a_workers_parent_loads_no_agents_and_no_migrations(tmp_path: Path) -> None:
    """All that it needs when its child dies is there from the start."""
    program = """
from orchestrator.cli.parent import Parent
from orchestrator.settings import Settings
Parent(Settings.load(broker_url="redis://127.0.0.1:1"))
"""
    assert loaded(tmp_path, program=program) == SQL | BROKER | DRIVERS


def test_the_client_loads_no_sql(tmp_path: Path) -> None:
    assert loaded(tmp_path, program="import orchestrator.client") == CALLS


def test_the_engine_of_expressions_leaves_its_package_whole(tmp_path: Path) -> None:
    """Its command line, which we leave out, is there for who asks for it."""
    program = """
from orchestrator.domain.expressions import Expression
assert Expression.compile("1 + 1").evaluate({}) == 2
assert "rich" not in sys.modules
import cel.cli
assert callable(cel.cli.main)
assert cel.evaluate("1 + 1", {}) == 2
"""
    assert loaded(tmp_path, program=program) >= EXPRESSIONS


def test_revisions_are_those_that_alembic_finds() -> None:
    """A change's file begins with its revision, and the last is the head: so nobody asks Alembic for it."""
    scripts = ScriptDirectory.from_config(migrations._config())
    found = [script.revision for script in scripts.walk_revisions()]
    assert list(migrations.revisions()) == found[::-1]
    assert scripts.get_heads() == [migrations.head()]
