"""Many dead letters from a shell, and the two commands for 2 AM: ``jobs explain`` and ``doctor`` (E8, K7)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.conftest import Running, Shell, until

BROKEN = """
name: broken
agents: {no: {kind: scripted, script: [{fail: {class: permanent, message: "no such clause"}}, {output: 7}]}}
steps: [{id: a, agent: no}]
"""


@pytest.fixture
def dev(shell: Shell, tmp_path: Path) -> Running:
    """A server with the workflow registered, on the database where the shell looks by itself."""
    made = tmp_path / "workflows"
    made.mkdir()
    (made / "broken.yaml").write_text(BROKEN)
    running = shell.start("dev", "--port", "0", "--workflows", made)
    running.line(running.out, "http://127.0.0.1:")
    return running


@pytest.fixture(params=["database", "server"])
def desk(request: pytest.FixtureRequest, shell: Shell, dev: Running) -> Shell:
    """The same commands, without and with ORCHESTRATOR_URL."""
    if request.param == "server":
        shell.settings["URL"] = dev.out[0]
    return shell


def read(shell: Shell, *words: str, code: int = 0) -> Any:
    done = shell.run(*words, "--json")
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_many_letters_go_back_to_work(desk: Shell) -> None:
    jobs = [read(desk, "submit", "broken", "--wait", code=1)["id"] for _ in range(3)]
    (group,) = read(desk, "dead-letters", "groups")
    assert (group["count"], group["workflows"]) == (3, ["broken"])
    explained = desk.run("jobs", "explain", jobs[0])
    assert "permanent: no such clause" in explained.stdout
    assert "moved by: orchestrator dead-letters replay" in explained.stdout

    dry = desk.run("dead-letters", "replay", "--fingerprint", group["fingerprint"], "--dry-run", "--rate", "2")
    assert dry.returncode == 0
    assert "3 dead letters would be replayed; at 2 a second in about 2 s" in dry.stderr
    begun = desk.run("dead-letters", "replay", "--all", "--rate", "50", "--note", "mended")
    assert begun.returncode == 0, begun.stderr
    operation = begun.stdout.strip()
    until(lambda: read(desk, "operations", "show", operation)["state"] == "done", 20)
    assert read(desk, "operations", "list")[0]["replayed"] == 3
    for job in jobs:
        until(lambda job=job: read(desk, "jobs", "show", job)["state"] == "succeeded", 20)  # type: ignore[misc]
    assert "It has ended: succeeded." in desk.run("jobs", "explain", jobs[0]).stdout
    trail = read(desk, "audit", operation)
    assert {row["what"] for row in trail} == {"replay.started", "replay.done"}
    assert trail[0]["who"]
    late = desk.run("operations", "cancel", operation)
    assert (late.returncode, late.stdout) == (4, "")
    assert late.stderr == f"error[wrong_state]: operation {operation} is done and cannot be cancelled.\n"


UNCLEAR: list[tuple[tuple[str, ...], int, str]] = [
    ((), 2, "no filter would mean every open dead letter"),
    (("--all", "--workflow", "broken"), 2, "contradict each other"),
    (("--workflow", "nothing"), 3, "no open dead letter matches this filter"),
    (("--reason", "tired"), 2, "'tired' is no failure class"),
    (("--all", "--created-after", "yesterday"), 2, "--created-after 'yesterday' is no time"),
    (("--all", "--rate", "0"), 2, "--rate"),
    (("LETTER", "--all"), 2, "do not go together"),
]


def test_what_is_not_clear_is_not_done(shell: Shell) -> None:
    assert shell.run("migrate").returncode == 0
    for words, code, says in UNCLEAR:
        done = shell.run("dead-letters", "replay", *words)
        assert (done.returncode, done.stdout) == (code, ""), words
        assert says in done.stderr


def test_a_discard_is_undone(desk: Shell) -> None:
    read(desk, "submit", "broken", "--wait", code=1)
    (letter,) = read(desk, "dead-letters", "list")
    assert read(desk, "dead-letters", "discard", letter["id"])["state"] == "discarded"
    assert desk.run("dead-letters", "undiscard", letter["id"]).stdout.strip() == f"{letter['id']} open"
    assert desk.run("dead-letters", "undiscard", letter["id"]).returncode == 4


def test_the_doctor_finds_what_is_wrong_and_ends_with_1(shell: Shell) -> None:
    absent = shell.run("doctor")
    assert absent.returncode == 78
    assert "Run: orchestrator migrate" in absent.stderr
    assert shell.run("migrate").returncode == 0
    well = shell.run("doctor")
    assert well.returncode == 0, well.stdout + well.stderr
    assert "warning[no_api_key]" in well.stdout
    assert "0 errors" in well.stderr
    ill = shell.run("doctor", "--json", BROKER_URL="redis://127.0.0.1:1/0")
    assert ill.returncode == 1
    first = json.loads(ill.stdout)[0]
    assert (first["severity"], first["check"]) == ("error", "broker_down")
