"""DBOS on the same PostgreSQL, in a database of its own; jobs are enqueued through its client."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dbos import DBOSClient

from bench.children import Child, cpu_seconds
from bench.columns.column import Fleet
from bench.dbos_app import QUEUE
from bench.lab import Lab
from bench.shapes import Shape


class Dbos:
    name = "dbos"

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._database = lab.postgres.create_database()
        self.workers: list[Child] = []
        self._client: Any = None
        self._waiting: list[str] = []

    def start(self, fleet: Fleet) -> None:
        environment = {"BENCH_DBOS": self._database, "BENCH_SLOTS": str(fleet.slots)}
        for number in range(fleet.workers):  # one after the other: each migrates
            child = self._lab.child("dbos", "bench.dbos_app", f"worker-{number}", environment=environment, talks=True)
            self.workers.append(child)
            line = child.read()
            if line != "ready":
                raise RuntimeError(f"DBOS did not start: {line} {child.tail()}")
        self._client = DBOSClient(system_database_url=self._database)

    def stop(self) -> None:
        if self._client is not None:
            self._client.destroy()
        for child in self.workers:
            child.stop()
        self.workers.clear()
        self._lab.postgres.drop_database(self._database)

    def submit(self, shape: Shape, inputs: Sequence[dict[str, Any]]) -> None:
        for one in inputs:
            options = {"workflow_name": shape.kind, "queue_name": QUEUE, "app_version": "1"}
            self._waiting.append(self._client.enqueue(options, one, shape.size).workflow_id)

    def settled(self) -> bool:
        left = [one for one in self._waiting if self._client.retrieve_workflow(one).get_status().status != "SUCCESS"]
        self._waiting = left
        return not left

    def check(self) -> None:
        """Its failures are in its log."""

    def cpu(self) -> float:
        return cpu_seconds([pid for child in self.workers for pid in child.family()])
