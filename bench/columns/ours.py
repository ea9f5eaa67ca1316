"""Our column: ``orchestrator worker`` commands and a scheduler on PostgreSQL and Redis; the driver submits in SQL."""

from __future__ import annotations

import functools
import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from bench.children import Child, cpu_seconds
from bench.columns.column import Fleet
from bench.lab import OUR_BROKER, Lab
from bench.shapes import Shape
from orchestrator import bootstrap
from orchestrator.domain.errors import Unavailable
from orchestrator.domain.workflow import Workflow
from orchestrator.engine.submit import Submission, register, submit_many
from orchestrator.local.process import free_port
from orchestrator.settings import Settings
from orchestrator.store import migrations

#: Jobs submitted in one transaction.
BATCH = 100


class Ours:
    name = "ours"

    def __init__(self, lab: Lab, broker: int = OUR_BROKER) -> None:
        """``broker``: the Redis database that is its alone."""
        self._lab = lab
        self.database = lab.postgres.create_database()
        self.environment = {
            "ORCHESTRATOR_DATABASE_URL": self.database,
            "ORCHESTRATOR_BROKER_URL": lab.redis.database_url(broker),
            "ORCHESTRATOR_AGENT_PACKAGES": "bench",
            "ORCHESTRATOR_EGRESS": "http://127.0.0.1:*",
            "ORCHESTRATOR_LOG_LEVEL": "warning",
        }
        self.workers: list[Child] = []
        self.others: list[Child] = []
        self._waiting: list[str] = []
        self._names: dict[Shape, str] = {}
        self._api: tuple[str, str] | None = None
        named = {name.removeprefix("ORCHESTRATOR_").lower(): value for name, value in self.environment.items()}
        self.settings = Settings.load(env_file=None, **named)
        db = bootstrap.open_database(self.settings)
        migrations.upgrade(db)
        db.close()
        self.engine = bootstrap.build_engine(self.settings, "bench")

    def start(self, fleet: Fleet) -> None:
        self.others.append(self._lab.child("scheduler", "orchestrator.cli", "scheduler", environment=self.environment))
        for _ in range(fleet.workers):
            self.add_worker(fleet.slots)
        self._lab.await_true("starting our workers", lambda: self.present() == fleet.workers, self.children)

    def add_worker(self, slots: int) -> Child:
        environment = {**self.environment, "ORCHESTRATOR_WORKER_CONCURRENCY": str(slots)}
        child = self._lab.child("worker", "orchestrator.cli", "worker", environment=environment)
        self.workers.append(child)
        return child

    @property
    def children(self) -> list[Child]:
        return [*self.others, *self.workers]

    def present(self) -> int:
        rows = self.rows("SELECT count(*) AS n FROM workers WHERE role = 'worker'")
        return int(rows[0]["n"])

    def stop(self) -> None:
        for child in [*self.workers, *self.others]:
            child.stop()
        self.workers.clear()
        self.others.clear()
        bootstrap.close_engine(self.engine)
        self._lab.postgres.drop_database(self.database)

    def submit(self, shape: Shape, inputs: Sequence[dict[str, Any]]) -> None:
        if shape not in self._names:
            self._names[shape] = self.register(f"{shape.kind}-{len(self._names)}", definition_of(shape))
        name = self._names[shape]
        for start in range(0, len(inputs), BATCH):
            accepted = submit_many(self.engine, [Submission(name, one) for one in inputs[start : start + BATCH]])
            self._waiting += [one.job.id for one in accepted]

    def settled(self) -> bool:
        rows = self.rows(
            "SELECT state, count(*) AS n FROM jobs WHERE id = ANY(:jobs) GROUP BY state", jobs=self._waiting
        )
        states = {row["state"]: row["n"] for row in rows}
        if states.get("failed") or states.get("cancelled"):
            raise Unavailable(f"jobs of ours failed: {states}. {self.first_failure()}")
        if states.get("succeeded", 0) != len(self._waiting):
            return False
        self._waiting.clear()
        return True

    def check(self) -> None:
        """Raises ``Unavailable`` when a job has failed: it will never ring."""
        if message := self.first_failure():
            raise Unavailable(f"a job of ours failed: {message}")

    def first_failure(self) -> str:
        rows = self.rows("SELECT message FROM dead_letters LIMIT 1")
        return str(rows[0]["message"]) if rows else ""

    def cpu(self) -> float:
        return cpu_seconds([pid for child in self.children for pid in child.family()])

    def register(self, name: str, definition: dict[str, Any]) -> str:
        register(self.engine, Workflow.model_validate({**definition, "name": name}))
        return name

    def api(self) -> tuple[str, str]:
        """The URL and an admin key of an API process, started at the first call."""
        if self._api is None:
            port = str(free_port(self._lab.clock))
            done = subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "orchestrator.cli",
                    "keys",
                    "create",
                    "--role",
                    "admin",
                    "--name",
                    "b",
                    "--json",
                ],
                env={**os.environ, **self.environment},
                capture_output=True,
                text=True,
                check=True,
            )
            environment = {**self.environment, "ORCHESTRATOR_PORT": port}
            child = self._lab.child("api", "orchestrator.cli", "api", environment=environment)
            self.others.append(child)
            self._lab.await_true("starting our API", lambda: _listens(int(port)), [child])
            self._api = f"http://127.0.0.1:{port}", json.loads(done.stdout)["key"]
        return self._api

    def execute(self, sql: str, **values: Any) -> None:
        self.engine.db.run(lambda session: session.execute(sql, values))

    def rows(self, sql: str, **values: Any) -> list[dict[str, Any]]:
        def work(session: Any) -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = session.rows(sql, values)
            return found

        return self.engine.db.run(work, readonly=True)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@functools.cache
def workflow_of(shape: Shape) -> Workflow:
    return Workflow.model_validate(definition_of(shape))


def definition_of(shape: Shape) -> dict[str, Any]:
    """The shape as a workflow file would say it."""
    match shape.kind:
        case "sequence":
            names = ["step"] * (shape.size - 1) + ["last"]
            return _workflow(shape, names, [{"agent": name} for name in names])
        case "calls":
            names = ["call"] * (shape.size - 1) + ["last_call"]
            return _workflow(shape, names, [{"agent": name} for name in names])
        case "fan_out":
            each: dict[str, Any] = {"id": "each", "for_each": "${{ steps.spread }}", "do": {"agent": "member"}}
            return _workflow(
                shape, ["spread", "member", "meet"], [{"id": "spread", "agent": "spread"}, each, _meet("each")]
            )
        case "nested":
            items = "${{ input.items }}"
            branch = [{"id": f"m{n}", "agent": "member"} for n in range(3)]
            each = {"id": "each", "for_each": items, "do": branch}
            return _workflow(shape, ["member", "meet"], [each, _meet("each")])
        case "supervisor":
            rule = {"supervisor": "lead", "workers": ["worker"], "rounds": 3, "until": "review.score >= 3"}
            loop = {"id": "loop", "supervise": rule, "with": "${{ input }}"}
            made = _workflow(shape, ["lead"], [loop])
            made["agents"]["worker"] = _agent("member")
            return made
        case "failing":
            made = _workflow(shape, ["paid"], [{"agent": "paid"}] * shape.size)
            made["agents"]["paid"]["retry"] = {"attempts": 3, "initial": "10ms"}
            return made
        case "http_calls":
            url = f"http://127.0.0.1:{shape.port}/delay/{shape.seconds:g}"
            calls: list[dict[str, Any]] = [{"agent": "remote"}] * shape.size
            toll: dict[str, Any] = {"agent": "toll", "with": "${{ input }}"}
            made = _workflow(shape, ["toll"], [*calls, toll])
            made["agents"]["remote"] = {"kind": "http", "url": url}
            return made


def _workflow(shape: Shape, agents: list[str], steps: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "name": shape.kind.replace("_", "-"),
        "agents": {name: _agent(name) for name in agents},
        "steps": [{"id": f"s{number}", **step} for number, step in enumerate(steps)],
        "output": None,
    }


def _agent(function: str) -> dict[str, Any]:
    return {"kind": "python", "target": f"bench.agents:{function}"}


def _meet(each: str) -> dict[str, Any]:
    value = {"run": "${{ input.run }}", "job": "${{ input.job }}", "ends": f"${{{{ steps.{each} }}}}"}
    return {"id": "meet", "agent": "meet", "with": value}
