"""The job desk from a shell: the same commands give the same output on the database itself and through the API."""

from __future__ import annotations

import gzip
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook

from tests.acceptance.conftest import Running, Shell, until
from tests.support.receiver import receiving

WORKFLOWS = {
    "hello.yaml": """
name: hello
agents: {echo: {kind: scripted}}
steps:
  - {id: a, agent: echo, with: {who: "${{ input.who }}"}}
  - {id: fan, for_each: "[1, 2, 3]", do: {agent: echo}}
output: {hello: "${{ steps.a.who }}", fan: "${{ steps.fan }}"}
""",
    "broken.yaml": """
name: broken
agents: {no: {kind: scripted, script: [{fail: {class: permanent, message: "no such clause"}}, {output: 7}]}}
steps: [{id: a, agent: no}]
""",
    "frail.yaml": """
name: frail
agents: {frail: {kind: scripted, script: [{fail: {class: transient, message: "away"}}], breaker: {calls: 1}}}
steps: [{id: a, agent: frail, retry: {attempts: 1}}]
""",
    "asks.yaml": """
name: asks
agents: {no: {kind: scripted, script: [{fail: {class: permanent, message: "no such clause"}}]}}
steps: [{id: a, agent: no, on_failure: [{escalate: legal}]}]
""",
    "slow.yaml": """
name: slow
agents: {slow: {kind: scripted, script: [{delay: 60s, output: 1}]}}
steps: [{id: a, agent: slow}, {id: b, agent: slow}]
""",
}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / "workflows"
    made.mkdir()
    for name, text in WORKFLOWS.items():
        (made / name).write_text(text)
    return made


@pytest.fixture
def dev(shell: Shell, directory: Path) -> Running:
    """A server with the workflows registered, on the database where the shell looks by itself."""
    running = shell.start("dev", "--port", "0", "--workflows", directory)
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


def both(shell: Shell, dev: Running, *words: str) -> Any:
    """What both desks print, which is the same."""
    here, there = shell.run(*words), shell.run(*words, URL=dev.out[0])
    assert (here.returncode, here.stdout) == (there.returncode, there.stdout), here.stderr + there.stderr
    assert here.returncode == 0, here.stderr
    return here.stdout


def test_a_job_from_submit_to_its_output(desk: Shell) -> None:
    job = read(desk, "submit", "hello", "--input", "who=you", "--key", "k1", "--tag", "team=legal", "--wait")
    assert (job["state"], job["output"]) == ("succeeded", {"hello": "you", "fan": [1, 2, 3]})
    again = desk.run("submit", "hello", "--input", "who=you", "--key", "k1", "--tag", "team=legal")
    assert again.stdout.strip() == job["id"]
    other = desk.run("submit", "hello", "--input", "who=me", "--key", "k1", "--tag", "team=legal")
    assert (other.returncode, other.stdout) == (4, "")
    assert other.stderr.startswith("error[idempotency_mismatch]: the idempotency key 'k1' was used for another body")
    misfit = desk.run("submit", "nothing")
    assert misfit.returncode == 3
    assert misfit.stderr.startswith("error[not_found]: no workflow 'nothing' is registered.")


def test_both_desks_print_the_same(shell: Shell, dev: Running) -> None:
    job = read(shell, "submit", "hello", "--input", "who=you", "--tag", "team=legal", "--wait")["id"]
    failed = read(shell, "submit", "broken", "--wait", code=1)["id"]
    for words in (
        ["jobs", "list", "--tag", "team=legal", "--json"],
        ["jobs", "list", "--state", "failed", "--workflow", "broken", "--limit", "1"],
        ["jobs", "show", job],
        ["jobs", "show", failed, "--json"],
        ["jobs", "steps", job, "--json"],
        ["jobs", "events", job, "--after", "3"],
        ["dead-letters", "list", "--job", failed, "--json"],
        ["workflows", "list"],
        ["workflows", "show", "hello", "--json"],
    ):
        assert both(shell, dev, *words), words
    numbers = [json.loads(line)["number"] for line in both(shell, dev, "jobs", "events", job, "--json").splitlines()]
    assert numbers == list(range(1, len(numbers) + 1))


def test_a_webhook_is_told_of_the_end(desk: Shell) -> None:
    """A16: the scheduler of ``dev`` calls a receiver on this machine."""
    with receiving() as receiver:
        words = ("submit", "hello", "--input", "who=you", "--webhook", receiver.url, "--webhook-event", "job.succeeded")
        job = desk.run(*words)
        assert job.returncode == 0, job.stderr
        secret = job.stderr.strip().rpartition(" ")[2]
        (got,) = receiver.wait(1)
        message = Webhook(secret).verify(got.body, got.headers)
    assert (message["type"], message["data"]["job"]) == ("job.succeeded", job.stdout.strip())
    until(lambda: read(desk, "jobs", "show", job.stdout.strip())["webhook"]["state"] == "done", 20)
    assert secret not in desk.run("jobs", "show", job.stdout.strip()).stdout
    resumed = desk.run("jobs", "resume-webhook", job.stdout.strip())
    assert resumed.stdout.strip() == f"{job.stdout.strip()} webhook done"
    assert desk.run("submit", "hello", "--webhook-event", "job.failed").returncode == 2
    assert desk.run("submit", "hello", "--webhook", "nowhere").returncode == 2


def test_a_failed_job_and_its_dead_letter(desk: Shell) -> None:
    done = desk.run("submit", "broken", "--wait")
    assert (done.returncode, done.stdout) == (1, "")
    assert "failed: permanent: no such clause" in done.stderr
    (letter,) = read(desk, "dead-letters", "list")
    assert (letter["state"], letter["reason"], letter["path"]) == ("open", "permanent", "a")
    assert len(read(desk, "dead-letters", "show", letter["id"])["attempts"]) == 1

    job = read(desk, "dead-letters", "replay", letter["id"], "--note", "mended")
    assert (job["state"], job["run"]) == ("running", 2)
    until(lambda: read(desk, "jobs", "show", job["id"])["state"] == "succeeded", 20)
    twice = desk.run("dead-letters", "replay", letter["id"])
    assert twice.returncode == 4
    assert f"dead letter {letter['id']} is replayed" in twice.stderr
    assert desk.run("dead-letters", "show", "0" * 32).returncode == 3


def test_a_question_and_its_answer(desk: Shell) -> None:
    job = read(desk, "submit", "asks")["id"]
    waits: list[Any] = []
    until(lambda: waits.extend(read(desk, "decisions", "list")) or waits, 20)
    (wait,) = waits
    assert (wait["job_id"], wait["reason"], wait["assignees"], wait["path"]) == (job, "escalate", ["legal"], "a")
    answer = ["decisions", "decide", wait["id"], "answer", "--output", '{"clause": 7}', "--note", "read it"]
    assert desk.run(*answer).stdout.strip() == f"{wait['id']} answer"
    late = desk.run("decisions", "decide", wait["id"], "fail")
    assert late.returncode == 4
    assert "has decided" in late.stderr
    seen = read(desk, "decisions", "show", wait["id"])
    assert (seen["decision"], seen["note"], seen["decisions"]) == ("answer", "read it", [])


def test_a_letter_goes_back_with_changes(desk: Shell, directory: Path) -> None:
    desk.run("submit", "broken", "--wait")
    (letter,) = read(desk, "dead-letters", "list")
    replay = ["dead-letters", "replay", letter["id"]]
    wrong = desk.run(*replay, "--agent", "nobody")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("error[invalid_input]: changes.agent: the job's workflow has no agent 'nobody'.")
    assert desk.run(*replay, "--input", "{").returncode == 2
    assert desk.run("dead-letters", "replay", "--all", "--output", "1").returncode == 2
    (directory / "answer.txt").write_text('{"by": "hand"}')
    assert read(desk, *replay, "--output", f"@{directory / 'answer.txt'}")["state"] == "succeeded"
    assert read(desk, "jobs", "show", letter["job_id"])["output"] == {"by": "hand"}
    assert read(desk, "dead-letters", "show", letter["id"])["attempts"][-1]["changed"]["output"] == "given"


def test_a_finished_step_is_invalidated(desk: Shell) -> None:
    job = read(desk, "submit", "hello", "--input", "who=you", "--wait")["id"]
    seen = read(desk, "jobs", "invalidate", job, "fan/1", "--dry-run")
    assert (seen["again"], seen["around"]) == (["fan/1"], ["", "fan"])
    assert read(desk, "jobs", "invalidate", job, "fan/1", "--note", "once more")["run"] == 2
    until(lambda: read(desk, "jobs", "show", job)["state"] == "succeeded", 20)
    assert [step["epoch"] for step in read(desk, "jobs", "steps", job)] == [1, 2, 1, 2, 1]
    assert desk.run("jobs", "invalidate", job, "nothing").returncode == 3
    assert read(desk, "jobs", "fork", job, "fan", "--dry-run")["again"] == ["fan"]
    made = read(desk, "jobs", "fork", job, "a", "--input", '{"who": "me"}', "--key", "f1")["id"]
    until(lambda: read(desk, "jobs", "show", made)["state"] == "succeeded", 20)
    shown = read(desk, "jobs", "show", made)
    assert (shown["output"]["hello"], shown["origin"]) == ("me", job)


def test_discard_closes_a_letter(desk: Shell) -> None:
    desk.run("submit", "broken", "--wait")
    (letter,) = read(desk, "dead-letters", "list")
    assert read(desk, "dead-letters", "discard", letter["id"])["state"] == "discarded"
    assert read(desk, "dead-letters", "list") == []
    assert [row["id"] for row in read(desk, "dead-letters", "list", "--state", "all")] == [letter["id"]]


def test_a_breaker_is_listed_and_reset(desk: Shell) -> None:
    assert read(desk, "breakers", "list") == []
    assert desk.run("submit", "frail", "--wait").returncode == 1
    (found,) = read(desk, "breakers", "list")
    assert (found["name"], found["state"], found["tripped_by"]["signal"]) == ("frail", "open", "failures")
    job = read(desk, "submit", "frail")["id"]
    until(lambda: "breaker of agent frail" in read(desk, "jobs", "explain", job)["summary"], 20)
    assert "1 of 1 calls failed" in desk.run("breakers", "list").stdout
    (done,) = read(desk, "breakers", "reset", "frail", "--note", "mended")
    assert done["state"] == "closed"
    until(lambda: read(desk, "jobs", "show", job)["state"] == "failed", 20)
    assert desk.run("breakers", "reset", "nobody").returncode == 3
    assert read(desk, "breakers", "open", "frail", "--for", "1h")[0]["cooldown"] == 3600
    assert desk.run("breakers", "open", "frail", "--for", "soon").returncode == 2
    assert [row["what"] for row in read(desk, "audit", "frail")] == ["breaker.opened", "breaker.reset"]


def test_cancel_is_idempotent_and_follow_sees_the_end(desk: Shell) -> None:
    job = read(desk, "submit", "slow")["id"]
    following = desk.start("jobs", "events", job, "--follow", "--json")
    following.line(following.out, "job.submitted")
    assert read(desk, "jobs", "cancel", job)["state"] in {"cancelling", "cancelled"}
    assert following.wait() == 0
    assert json.loads(following.out[-1])["type"] == "job.cancelled"
    assert read(desk, "jobs", "cancel", job)["state"] == "cancelled"
    ended = read(desk, "submit", "hello", "--input", "who=x", "--wait")["id"]
    late = desk.run("jobs", "cancel", ended)
    assert late.returncode == 4
    assert f"job {ended} is succeeded" in late.stderr


def test_apply_registers_all_or_says_what_is_wrong(desk: Shell, directory: Path) -> None:
    (directory / "new.yaml").write_text(WORKFLOWS["hello.yaml"].replace("name: hello", "name: new"))
    (directory / "bad.txt").write_text("name: bad\nsteps: [{agent: nobody}]")
    refused = desk.run("workflows", "apply", "-f", directory / "new.yaml", "-f", directory / "bad.txt")
    assert refused.returncode == 2
    assert "bad.txt: line 2" in refused.stderr
    strict = desk.run("workflows", "apply", "--strict", "-f", directory / "new.yaml")
    assert (strict.returncode, strict.stdout) == (2, "")
    assert f"error[left_to_default]: {directory / 'new.yaml'}: at steps[0].on_failure: the step 'a'" in strict.stderr
    first = read(desk, "workflows", "apply", "-f", str(directory / "new.yaml"))
    assert read(desk, "workflows", "apply", "-f", str(directory / "new.yaml")) == first
    assert desk.run("submit", f"new@{first[0]['version'][:8]}", "--input", "who=x", "--wait").returncode == 0


def test_keys_are_shown_once_and_open_the_door(shell: Shell, dev: Running) -> None:
    made = read(shell, "keys", "create", "--role", "operate", "--name", "ci", "--tenant", "acme")
    listed = read(shell, "keys", "list")
    assert [(row["id"], row["name"], row["tenant"], row["role"], row["revoked_at"]) for row in listed] == [
        (made["id"], "ci", "acme", "operate", None)
    ]
    assert made["key"] not in json.dumps(listed)
    assert shell.run("keys", "revoke", made["id"]).returncode == 0
    assert shell.run("keys", "revoke", made["id"]).returncode == 3
    assert shell.run("keys", "create", "--role", "king").returncode == 2


def test_upkeep(shell: Shell, dev: Running) -> None:
    assert shell.run("submit", "hello", "--input", "who=x", "--wait").returncode == 0
    assert (read(shell, "verify"), read(shell, "quarantine", "list")) == ([], [])
    assert shell.run("migrate").returncode == 0
    shown = read(shell, "config", "show")
    assert shown["lease_seconds"] == 15.0
    secret = shell.run("config", "show", DATABASE_URL="postgresql://me:secret-word@db/x", API_KEY="secret-key")
    assert "secret" not in secret.stdout
    assert json.loads(shell.run("schema").stdout)["title"] == "Orchestrator workflow"


def test_a_job_is_exported_by_hand(shell: Shell, dev: Running, tmp_path: Path) -> None:
    job = shell.run("submit", "hello", "--input", "who=me", "--wait", "--json")
    assert job.returncode == 0, job.stderr
    made = json.loads(job.stdout)["id"]
    line = json.loads(shell.run("jobs", "export", made).stdout)
    assert (line["job"]["id"], line["job"]["input"]) == (made, {"who": "me"})
    done = shell.run("jobs", "export", "--before", "2100-01-01", "--to", tmp_path / "archive")
    file = Path(done.stdout.strip())
    assert json.loads(gzip.decompress(file.read_bytes())) == line
    assert shell.run("jobs", "export", made, "--to", tmp_path / "one").returncode == 0
    assert shell.run("jobs", "export", "nothing").returncode == 3
    assert shell.run("jobs", "export").returncode == 2


def test_compile_shows_what_celery_is_given(shell: Shell, directory: Path) -> None:
    plain = shell.run("compile", directory / "hello.yaml").stdout.splitlines()
    assert plain == ["chain  a", "chain  fan", "chord  fan/0, fan/1 → fan"]
    stages = read(shell, "compile", str(directory / "hello.yaml"))
    assert stages[0]["signature"]["task"] == "orchestrator.step"
    assert stages[2]["signature"]["task"] == "celery.chord"
    whole = read(shell, "compile", str(directory / "hello.yaml"), "--target", "canvas")
    assert whole["task"] == "celery.chain"
    assert '"orchestrator.step"' in shell.run("compile", directory / "hello.yaml", "--show").stdout


def test_help_is_quick_and_lists_every_command(shell: Shell) -> None:
    done = shell.run("--help")
    assert done.returncode == 0
    commands = (
        "run dev up-local api worker scheduler migrate submit jobs dead-letters breakers workflows compile schema keys"
    )
    assert all(f"\n  {command} " in done.stdout for command in [*commands.split(), "config", "verify", "quarantine"])
    # What --help imports decides how quick it is: none of the heavy ones may be among them.
    heavy = "celery kombu sqlalchemy pydantic fastapi uvicorn httpx rich"
    code = f"import sys; import orchestrator.cli.app; print([m for m in '{heavy}'.split() if m in sys.modules])"
    seen = subprocess.run(
        [sys.executable, "-c", code], env=shell.environment(), capture_output=True, text=True, check=True
    )
    assert seen.stdout.strip() == "[]"


def test_interrupted_while_waiting(shell: Shell, dev: Running) -> None:
    waiting = shell.start("submit", "slow", "--wait")
    waiting.line(waiting.err, "waiting for its end")
    waiting.signal(signal.SIGINT)
    assert waiting.wait() == 130
    assert "Traceback" not in waiting.said()
