"""The whole house as processes: the contract review over HTTP, a worker killed, Redis emptied, nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from orchestrator.client import Client
from orchestrator.local.family import descendants, is_alive
from tests.acceptance.conftest import REPOSITORY, WORKFLOWS, Ledger, Running, Shell, until

EXAMPLE = REPOSITORY / "examples/contract_review"
pytestmark = [pytest.mark.faults, pytest.mark.postgres, pytest.mark.redis]


class House:
    """A started ``up-local``."""

    def __init__(self, running: Running) -> None:
        running.line(running.out, "}", seconds=90)
        until(lambda: running.out[-1] == "}", 5)
        self.running = running
        self.facts: dict[str, Any] = json.loads("\n".join(running.out))
        self.client = Client(self.facts["url"], api_key=self.facts["api_key"])
        self.family = descendants(running.process.pid)


@pytest.fixture
def house(shell: Shell) -> Iterator[House]:
    shell.paths += [WORKFLOWS, EXAMPLE]
    shell.settings["AGENT_PACKAGES"] = "ledger_agents,contract_review"
    made = House(shell.start("up-local", "--workers", "2", "--json"))
    yield made
    made.client.close()


def workflow(path: Path) -> dict[str, Any]:
    from orchestrator.cli.remote import definition
    from orchestrator.cli.workflows import read_workflow

    return definition(read_workflow(path))


def test_end_to_end(house: House, shell: Shell, ledger: Ledger, tmp_path: Path) -> None:
    """One house for all of it: it takes seconds to start."""
    review(house)
    kill_a_worker(house, ledger, tmp_path)
    empty_redis(house, Ledger(tmp_path / "second.txt"), tmp_path)
    checked = shell.run("verify", "--json", DATABASE_URL=house.facts["database_url"])
    assert (checked.returncode, json.loads(checked.stdout)) == (0, []), checked.stderr
    stop(house)


def review(house: House) -> None:
    """The main example, of a real text, by HTTP."""
    text = (REPOSITORY / "LICENSE").read_text()
    job = house.client.submit(workflow(EXAMPLE / "workflow.yaml"), {"contract": text}, key="license")
    done = house.client.wait(job.id, timeout=60)
    assert done.state.value == "succeeded", done
    assert done.output["markdown"].startswith("# Contract review")
    assert done.output["json"]["met"] is True
    assert house.client.submit(workflow(EXAMPLE / "workflow.yaml"), {"contract": text}, key="license").id == job.id
    assert next(iter(house.client.events(job.id))).number == 1


def begun(house: House, ledger: Ledger, hold: Path) -> str:
    """A job whose fan-out is half done and half held."""
    job = house.client.submit(workflow(WORKFLOWS / "sequence.yaml"), {"ledger": str(ledger.path), "hold": str(hold)})
    ledger.wait_for(lambda seen: all(seen[f"end many-{n}"] and seen[f"begin many-{n + 4}"] for n in range(4)))
    return job.id


def kill_a_worker(house: House, ledger: Ledger, tmp_path: Path) -> None:
    """The pool process that holds the steps, in the midst of its calls."""
    hold = tmp_path / "go-1"
    job = begun(house, ledger, hold)
    owners = {step["worker"] for step in house.client.steps(job) if step["state"] == "running" and step["worker"]}
    for name in ("worker-1", "worker-2"):
        for pid in descendants(house.facts["pids"][name]):
            if any(owner in Path(f"/proc/{pid}/cmdline").read_text() for owner in owners):
                os.kill(pid, signal.SIGKILL)
    until(lambda: all(ledger.counts()[f"begin many-{n}"] == 2 for n in range(4, 8)), 20)
    hold.touch()
    assert house.client.wait(job, timeout=60).state.value == "succeeded"
    again = {line for line, count in ledger.counts().items() if line.startswith("begin") and count > 1}
    assert again == {f"begin many-{n}" for n in range(4, 8)}


def empty_redis(house: House, ledger: Ledger, tmp_path: Path) -> None:
    """What was published and is lost is published again."""
    hold = tmp_path / "go-2"
    job = begun(house, ledger, hold)
    others = [begun_later(house, tmp_path / f"other-{n}.txt") for n in range(20)]
    with redis.Redis.from_url(house.facts["broker_url"]) as broker:
        broker.flushall()
    hold.touch()
    for each in (job, *others):
        assert house.client.wait(each, timeout=60).state.value == "succeeded"
    assert max(ledger.counts().values()) == 1


def begun_later(house: House, ledger: Path) -> str:
    return house.client.submit(workflow(WORKFLOWS / "sequence.yaml"), {"ledger": str(ledger)}).id


def stop(house: House) -> None:
    """Ctrl-C: in order, and nothing stays."""
    family = [*house.family, *descendants(house.running.process.pid)]
    house.running.signal(signal.SIGINT)
    assert house.running.wait(90) == 0, house.running.said()
    until(lambda: not any(is_alive(pid) for pid in family), 5)
    assert not Path(house.facts["logs"]).exists()
    port = int(house.facts["url"].rpartition(":")[2])
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_killed_itself_it_leaves_no_process(shell: Shell) -> None:
    house = House(shell.start("up-local", "--workers", "1", "--json"))
    family = descendants(house.running.process.pid)
    assert len(family) >= 5
    house.running.signal(signal.SIGKILL)
    house.running.process.wait(10)
    until(lambda: not any(is_alive(pid) for pid in family), 40)
    house.client.close()
