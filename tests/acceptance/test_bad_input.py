"""What people get wrong: one message with the place and the mend, the right exit code, nothing half-written."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.acceptance.conftest import Shell

GOOD = """
name: hello
input_schema: {type: object, required: [who], properties: {who: {type: string}}}
agents: {echo: {kind: scripted}}
steps: [{id: a, agent: echo, with: "${{ input.who }}"}]
"""


def refused(shell: Shell, *words: str | Path, code: int, **settings: str) -> str:
    """The single line a refused command says."""
    done = shell.run(*words, **settings)
    assert done.returncode == code, done.stdout + done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param("name: x\nsteps: [", "w.yaml: line 3: not YAML", id="broken YAML"),
        pytest.param(GOOD.replace("agent: echo", "agnt: echo"), "'agent'", id="unknown key"),
        pytest.param(GOOD.replace("agent: echo", "agent: ecko"), "Did you mean 'echo'?", id="unknown agent"),
        pytest.param(
            GOOD.replace("steps: [", "steps: [{id: b, agent: echo, needs: [a]}, ").replace(
                "id: a,", "id: a, needs: [b],"
            ),
            "cycle",
            id="cycle",
        ),
        pytest.param(GOOD.replace("input.who", "input.who +"), "at steps", id="broken expression"),
        pytest.param("", "w.yaml", id="empty"),
        pytest.param("steps: " + "[" * 1000, "w.yaml", id="1,000 deep"),
    ],
)
def test_a_broken_workflow_file(shell: Shell, text: str, says: str) -> None:
    (shell.directory / "w.yaml").write_text(text)
    line = refused(shell, "run", "w.yaml", code=2)
    assert line.startswith("error[invalid_definition]: w.yaml")
    assert says in line
    assert not (shell.directory / ".orchestrator").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        pytest.param(["run", "missing.yaml"], "missing.yaml cannot be read: No such file", id="no file"),
        pytest.param(["run"], "name the workflow FILE", id="no word"),
        pytest.param(["run", "w.yaml", "--input", "who"], "'who' is not KEY=VALUE", id="not a pair"),
        pytest.param(["run", "w.yaml", "--input", "who:=NaN"], "--input who: not JSON", id="NaN"),
        pytest.param(["run", "w.yaml", "--input", "who=@nope"], "--input who: nope cannot be read", id="no input file"),
        pytest.param(["run", "w.yaml", "--input", "who=@huge"], "104,857,600 bytes; the limit is", id="100 MB"),
        pytest.param(["run", "w.yaml", "--input-json", "@deep.json"], "JSON nested deeper than 100", id="1,000 deep"),
        pytest.param(
            ["run", "w.yaml", "--input", "who=x", "--db", "w.yaml"], "not a SQLite database", id="odd database"
        ),
        pytest.param(["run", "w.yaml", "--replay"], "--replay goes with --resume", id="replay of nothing"),
        pytest.param(["dev", "--workflows", "nowhere"], "nowhere is not a directory", id="no directory"),
        pytest.param(["jobs", "list", "--state", "done"], "One of: queued, running", id="no such state"),
        pytest.param(["submit", "w.yaml", "--deadline", "5"], "not a duration", id="no unit"),
    ],
)
def test_broken_words(shell: Shell, words: list[str], says: str) -> None:
    (shell.directory / "w.yaml").write_text(GOOD)
    (shell.directory / "deep.json").write_text("[" * 1000 + "]" * 1000)
    with (shell.directory / "huge").open("wb") as file:
        file.truncate(100 * 1024 * 1024)
    assert says in refused(shell, *words, code=2)
    assert not (shell.directory / ".orchestrator").exists()


def test_input_that_misses_its_schema_writes_no_job(shell: Shell) -> None:
    (shell.directory / "w.yaml").write_text(GOOD)
    line = refused(shell, "run", "w.yaml", code=2)
    assert line.startswith("error[invalid_input]: the input of 'hello' misses its schema:")
    assert "who" in line
    listed = shell.run("jobs", "list", DATABASE_URL="sqlite:///.orchestrator/run.db")
    assert (listed.returncode, listed.stdout) == (0, "")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"LEASE_SECOND": "3"}, "Did you mean ORCHESTRATOR_LEASE_SECONDS?"),
        ({"PORT": "http"}, "ORCHESTRATOR_PORT is 'http'"),
        ({"DATABASE_URL": "mysql://x"}, "ORCHESTRATOR_DATABASE_URL: must begin with postgresql"),
    ],
)
def test_a_wrong_setting(shell: Shell, settings: dict[str, str], says: str) -> None:
    assert says in refused(shell, "jobs", "list", code=78, **settings)


@pytest.mark.parametrize("role", ["api", "worker", "scheduler"])
def test_production_roles_refuse_the_in_process_broker(shell: Shell, role: str) -> None:
    line = refused(shell, role, code=78)
    assert "ORCHESTRATOR_BROKER_URL is memory://, which is for run and dev only" in line


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("words", [["jobs", "list"], ["migrate"], ["keys", "create"], ["verify"]])
def test_an_unreachable_database(shell: Shell, words: list[str]) -> None:
    url = f"postgresql://u:secret-word@127.0.0.1:{closed_port()}/x"
    line = refused(shell, *words, code=69, DATABASE_URL=url)
    assert line.startswith("error[unavailable]: ")
    assert "ORCHESTRATOR_DATABASE_URL" in line
    assert "secret-word" not in line


@pytest.mark.parametrize("role", ["api", "scheduler", "worker"])
def test_a_role_without_its_database_says_so(shell: Shell, role: str) -> None:
    url = f"postgresql://127.0.0.1:{closed_port()}/x"
    done = shell.run(role, DATABASE_URL=url, BROKER_URL=f"redis://127.0.0.1:{closed_port()}/0")
    assert done.returncode == 69, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error[unavailable]: ")


@pytest.mark.parametrize("role", ["api", "scheduler", "worker"])
def test_a_role_refuses_an_old_schema(shell: Shell, role: str) -> None:
    (shell.directory / "empty.db").touch()
    done = shell.run(role, DATABASE_URL="sqlite:///empty.db", BROKER_URL=f"redis://127.0.0.1:{closed_port()}/0")
    assert done.returncode == 78, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last == "error[schema_outdated]: the database has no schema yet. Run: orchestrator migrate"


def test_asking_makes_no_database(shell: Shell) -> None:
    assert "there is no database at" in refused(shell, "jobs", "list", code=78)
    assert list(shell.directory.iterdir()) == []


def test_a_busy_port(shell: Shell) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = refused(shell, "dev", "--port", str(port), code=78)
    assert f"the address 127.0.0.1:{port} is in use." in line
    assert not (shell.directory / ".orchestrator").exists()


def test_an_unreachable_server(shell: Shell) -> None:
    url = f"http://127.0.0.1:{closed_port()}"
    line = refused(shell, "jobs", "list", code=69, URL=url)
    assert line.startswith("error[unavailable]: ")
    assert url.removeprefix("http://") in line
