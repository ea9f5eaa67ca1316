"""``orchestrator dev``: one command, an API that works, workflow files that are followed."""

from __future__ import annotations

import json
import signal
import urllib.request
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from orchestrator.clock import Clock
from tests.acceptance.conftest import WORKFLOWS, Ledger, Running, Shell, until

HELLO = "name: hello\nagents: {echo: {kind: scripted}}\nsteps: [{id: a, agent: echo, with: 1}]\n"


def start(shell: Shell, *words: str | Path) -> Running:
    running = shell.start("dev", "--port", "0", *words)
    running.line(running.out, "http://127.0.0.1:")
    return running


def call(running: Running, path: str, body: Any = None) -> Any:
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(running.out[0] + path, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def result(running: Running, body: dict[str, Any]) -> Any:
    job = call(running, "/v1/jobs", body)
    until(lambda: call(running, f"/v1/jobs/{job['id']}")["state"] in {"succeeded", "failed"}, 20)
    return call(running, f"/v1/jobs/{job['id']}")


def kept_waiting(pid: int) -> float:
    """Seconds a process could have run and had no core: the machine may be shared."""
    found = Path(f"/proc/{pid}/schedstat")
    return int(found.read_text().split()[1]) / 1e9 if found.exists() else 0.0


def timed_start(shell: Shell) -> tuple[float, Running]:
    """Seconds until it says its URL and ``/readyz`` answers 200 there, but for those others kept it from a core."""
    clock = Clock()
    began = clock.monotonic()
    running = start(shell)
    with urllib.request.urlopen(running.out[0] + "/readyz", timeout=5) as answer:
        assert answer.status == 200
    return clock.monotonic() - began - kept_waiting(running.process.pid), running


@pytest.mark.quiet
@pytest.mark.timeout(240)
def test_it_is_ready_in_three_seconds_and_stops_clean(shell: Shell) -> None:
    """The first start, which makes the database, within 6 s; of five later ones, the median within 3 s."""
    took = []
    for _ in range(6):
        seconds, running = timed_start(shell)
        took.append(seconds)
        running.signal(signal.SIGINT)
        assert running.wait(20) == 0, running.said()
        assert running.err[-1] == "stopped"
        assert "Traceback" not in running.said()
    print("dev ready after", " ".join(f"{seconds:.2f}" for seconds in took), "s")
    assert took[0] <= 6
    assert median(took[1:]) <= 3


def test_python_agents_are_found_beside_the_workflow(shell: Shell, ledger: Ledger) -> None:
    running = start(shell, "--workflows", WORKFLOWS)
    done = result(running, {"workflow": "sequence", "input": {"ledger": str(ledger.path)}})
    assert done["output"]["last"] == "last", done
    assert ledger.counts()["end many-7"] == 1


def test_a_changed_file_is_a_new_version_and_a_broken_one_changes_nothing(shell: Shell, tmp_path: Path) -> None:
    directory = tmp_path / "flows"
    directory.mkdir()
    (directory / "hello.yaml").write_text(HELLO)
    running = start(shell, "--workflows", directory)
    assert result(running, {"workflow": "hello"})["output"] == 1

    (directory / "hello.yaml").write_text(HELLO.replace("with: 1", "with: 22"))
    until(lambda: result(running, {"workflow": "hello"})["output"] == 22, 20)

    (directory / "hello.yaml").write_text(HELLO.replace("agent: echo", "agent: ecko"))
    running.line(running.err, "hello.yaml is not registered; what was registered before stays.")
    assert any("Did you mean 'echo'?" in line for line in running.err)
    assert result(running, {"workflow": "hello"})["output"] == 22


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_what_was_under_way_goes_on_after_a_restart(shell: Shell, ledger: Ledger, number: signal.Signals) -> None:
    hold = shell.directory / "go"
    running = start(shell, "--workflows", WORKFLOWS)
    value = {"ledger": str(ledger.path), "hold": str(hold)}
    job = call(running, "/v1/jobs", {"workflow": "sequence", "input": value})
    ledger.wait_for(lambda seen: seen["begin many-7"] > 0 and seen["end many-3"] > 0)
    running.signal(number)
    if number is signal.SIGTERM:
        hold.touch()
    running.wait()
    hold.touch()
    running = start(shell, "--workflows", WORKFLOWS)
    until(lambda: call(running, f"/v1/jobs/{job['id']}")["state"] == "succeeded", 30)
    assert {line: n for line, n in ledger.counts().items() if line.startswith("end") and n != 1} == {}


def test_beyond_this_machine_it_wants_keys(shell: Shell) -> None:
    done = shell.run("dev", "--host", "0.0.0.0", "--port", "0")
    assert done.returncode == 78
    assert "there is no API key. Run: orchestrator keys create" in done.stderr
