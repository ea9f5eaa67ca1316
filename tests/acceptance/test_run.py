"""``orchestrator run``: to its end in one process, and on from where it was after any kind of death."""

from __future__ import annotations

import json
import re
import signal
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from tests.acceptance.conftest import WORKFLOWS, Ledger, Running, Shell, until

SEQUENCE, FAILING = WORKFLOWS / "sequence.yaml", WORKFLOWS / "failing.yaml"
NAMES = ["one", *(f"many-{n}" for n in range(8)), "last"]
ONCE = Counter(f"{when} {name}" for when in ("begin", "end") for name in NAMES)


def job_of(running: Running) -> str:
    found = re.match(r"job (\w+):", running.line(running.err, "job "))
    assert found is not None
    return found[1]


def begun_to_the_middle(shell: Shell, ledger: Ledger) -> tuple[Running, str]:
    """A run that has finished ``one`` and half of ``many``; the other half waits for the file ``go``."""
    hold = shell.directory / "go"
    running = shell.start("run", SEQUENCE, "--input", f"ledger={ledger.path}", "--input", f"hold={hold}")
    ledger.wait_for(lambda seen: all(seen[f"end many-{n}"] and seen[f"begin many-{n + 4}"] for n in range(4)))
    until(lambda: checkpoints(shell) == 5, 20)  # what has ended is not finished before its checkpoint is there
    return running, job_of(running)


def checkpoints(shell: Shell) -> int:
    """Calls whose result is committed."""
    with closing(sqlite3.connect(f"file:{shell.directory}/.orchestrator/run.db?mode=ro", uri=True)) as db:
        found = db.execute("SELECT count(*) FROM steps WHERE kind = 'agent' AND state = 'succeeded'").fetchone()
    return int(found[0])


def test_data_goes_to_stdout_and_talk_to_stderr(shell: Shell, ledger: Ledger) -> None:
    done = shell.run("run", SEQUENCE, "--input", f"ledger={ledger.path}", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"markdown": "# Done", "did": [f"many-{n}" for n in range(8)], "last": "last"}
    said = done.stderr.splitlines()
    assert re.fullmatch(r"job \w{32}: sequence", said[0])
    assert [line.partition(",")[0] for line in said[1:-1]] == [
        "one: succeeded",
        "many: 8 branches",
        "many: succeeded",
        "last: succeeded",
    ]
    assert re.fullmatch(r"job \w{32}: succeeded after [\d.]+ s, 12 steps", said[-1])
    assert ledger.counts() == ONCE


def test_markdown_is_printed_as_it_is(shell: Shell, ledger: Ledger) -> None:
    assert shell.run("run", SEQUENCE, "--input", f"ledger={ledger.path}").stdout == "# Done\n"


def test_killed_half_way_and_resumed_no_finished_call_is_repeated(shell: Shell, ledger: Ledger) -> None:
    """W4: one command, SQLite, no server; killed at any time it goes on."""
    running, job = begun_to_the_middle(shell, ledger)
    running.signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    before = ledger.counts()
    (shell.directory / "go").touch()

    done = shell.run("run", "--resume", job, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["last"] == "last"
    after = ledger.counts()
    assert {line: count for line, count in after.items() if line.startswith("end")} == {
        f"end {name}": 1 for name in NAMES
    }
    unfinished = {name for name in NAMES if before[f"begin {name}"] and not before[f"end {name}"]}
    assert {name for name in NAMES if after[f"begin {name}"] == 2} == unfinished == {f"many-{n}" for n in range(4, 8)}

    again = shell.run("run", "--resume", job, "--json")  # it has ended: only its output is told again
    assert (again.returncode, again.stdout) == (0, done.stdout)
    assert ledger.counts() == after


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_by_hand_the_calls_in_flight_end_and_it_says_how_to_go_on(
    shell: Shell, ledger: Ledger, number: signal.Signals, code: int
) -> None:
    running, job = begun_to_the_middle(shell, ledger)
    running.signal(number)
    hint = running.line(running.err, f"Go on with: orchestrator run --resume {job}")
    (shell.directory / "go").touch()
    assert running.wait() == code, running.said()
    assert running.out == []
    assert "Traceback" not in running.said()
    assert ledger.counts()["end many-7"] == 1
    assert shell.run(*hint.partition("Go on with: orchestrator ")[2].split()).returncode == 0
    assert ledger.counts() == ONCE


def test_stopped_twice_it_ends_at_once(shell: Shell, ledger: Ledger) -> None:
    running, job = begun_to_the_middle(shell, ledger)
    running.signal(signal.SIGINT)
    running.line(running.err, "Go on with:")
    running.signal(signal.SIGINT)
    assert running.wait(5) == -signal.SIGINT
    (shell.directory / "go").touch()
    assert shell.run("run", "--resume", job).returncode == 0


def test_two_resumes_of_one_job_the_second_is_a_conflict(shell: Shell, ledger: Ledger) -> None:
    running, job = begun_to_the_middle(shell, ledger)
    twin = shell.run("run", "--resume", job)
    assert twin.returncode == 4
    assert twin.stderr.startswith(f"error[wrong_state]: another process runs job {job} now.")
    assert ledger.counts()["begin many-4"] == 1
    (shell.directory / "go").touch()
    assert running.wait() == 0, running.said()


def test_a_killed_run_does_not_come_back_to_life_in_the_next(shell: Shell, ledger: Ledger, tmp_path: Path) -> None:
    running, job = begun_to_the_middle(shell, ledger)
    running.signal(signal.SIGKILL)
    running.wait()
    before = ledger.counts()
    other = Ledger(tmp_path / "other.txt")
    assert shell.run("run", SEQUENCE, "--input", f"ledger={other.path}").returncode == 0
    assert other.counts() == ONCE
    assert ledger.counts() == before
    (shell.directory / "go").touch()
    assert shell.run("run", "--resume", job).returncode == 0


def test_a_chosen_database_is_never_shared_by_two_unfinished_runs(shell: Shell, ledger: Ledger) -> None:
    hold = shell.directory / "go"
    words = ["run", SEQUENCE, "--db", "my.db", "--input", f"ledger={ledger.path}"]
    running = shell.start(*words, "--input", f"hold={hold}")
    ledger.wait_for(lambda seen: seen["begin many-7"] > 0)
    busy = shell.run(*words)
    assert (busy.returncode, busy.stderr.split(".")[0]) == (4, "error[wrong_state]: another run works on my")
    running.signal(signal.SIGKILL)
    running.wait()
    unfinished = shell.run(*words)
    assert unfinished.returncode == 4
    assert f"--resume {job_of(running)}" in unfinished.stderr


def test_a_failed_job_names_its_dead_letter_and_replays_from_what_failed(shell: Shell, ledger: Ledger) -> None:
    mended = shell.directory / "mended"
    failed = shell.run("run", FAILING, "--input", f"ledger={ledger.path}", "--input", f"fail_until={mended}")
    assert failed.returncode == 1
    assert failed.stdout == ""
    assert "ValueError: mended is missing" in failed.stderr
    hint = re.search(r"dead letter \w+\. Once its cause is mended: orchestrator (.*)", failed.stderr)
    assert hint is not None, failed.stderr
    job = hint[1].split()[2]

    before = ledger.counts()
    still = shell.run("run", "--resume", job)
    assert still.returncode == 1
    assert "--replay" in still.stderr
    assert ledger.counts() == before  # to look at a failed job is no call

    mended.touch()
    done = shell.run(*hint[1].split(), "--json")
    assert (done.returncode, done.stdout) == (0, '"two"\n'), done.stderr
    assert (ledger.counts()["begin one"], ledger.counts()["end two"]) == (1, 1)


def test_an_unknown_job_is_not_found(shell: Shell) -> None:
    done = shell.run("run", "--resume", "0" * 32)
    assert done.returncode == 3
    assert done.stderr.startswith(f"error[not_found]: no job {'0' * 32} in .orchestrator/run.db.")
    assert not (shell.directory / ".orchestrator").exists()


def test_a_run_ends_where_a_person_is_asked_and_goes_on_afterwards(shell: Shell) -> None:
    file = shell.directory / "asks.yaml"
    file.write_text("""
name: asks
agents: {no: {kind: scripted, script: [{fail: {class: permanent, message: "no such clause"}}]}, echo: {kind: scripted}}
steps: [{id: a, agent: no, on_failure: [{escalate: legal}]}, {id: b, agent: echo}]
""")
    asked = shell.run("run", file)
    assert (asked.returncode, asked.stdout) == (1, "")
    assert "a: asks a person (permanent: no such clause)" in asked.stderr
    found = re.search(r"ORCHESTRATOR_DATABASE_URL=(\S+) orchestrator decisions decide (\S+) answer\|", asked.stderr)
    assert found is not None, asked.stderr
    decided = shell.run("decisions", "decide", found[2], "answer", "--output", '"seven"', DATABASE_URL=found[1])
    assert decided.returncode == 0, decided.stderr
    job = re.search(r"run --resume (\w+)", asked.stderr)
    assert job is not None
    resumed = shell.run("run", "--resume", job[1])
    assert (resumed.returncode, resumed.stdout) == (0, '"seven"\n'), resumed.stderr
