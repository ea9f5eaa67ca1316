"""Our engine in one process on SQLite with ``synchronous`` FULL: no server, the broker is its memory."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from bench.children import Child, cpu_seconds
from bench.columns.column import Fleet
from bench.columns.ours import BATCH
from bench.lab import Lab
from bench.shapes import Shape
from orchestrator.domain.errors import Unavailable

#: Its end, under a tool that makes everything slow.
SECONDS_TO_END = 60.0


class Embedded:
    name = "embedded"

    def __init__(self, lab: Lab, under: Sequence[str] = ()) -> None:
        """``under``: the words of a tool that runs it."""
        self._lab = lab
        self._under = under
        self.workers: list[Child] = []
        self._waiting = 0

    def start(self, fleet: Fleet) -> None:  # noqa: ARG002 - it is one process, whatever the others are
        file = self._lab.directory / "embedded.db"
        self.workers.append(self._lab.child("embedded", "bench.embedded_app", str(file), talks=True, under=self._under))
        self._read("ready")

    def stop(self) -> None:
        for child in self.workers:
            with suppress(OSError, subprocess.TimeoutExpired):
                child.process.communicate(timeout=SECONDS_TO_END)
            child.stop()
        self.workers.clear()
        for file in self._lab.directory.glob("embedded.db*"):
            if file.is_file():
                file.unlink()

    def submit(self, shape: Shape, inputs: Sequence[dict[str, Any]]) -> None:
        for start in range(0, len(inputs), BATCH):
            self._ask({"submit": asdict(shape), "inputs": inputs[start : start + BATCH]})
        self._waiting += len(inputs)

    def settled(self) -> bool:
        states = self._states()
        return states.get("succeeded", 0) == self._waiting

    def check(self) -> None:
        self._states()

    def cpu(self) -> float:
        return cpu_seconds([pid for child in self.workers for pid in child.family()])

    def _states(self) -> dict[str, int]:
        states = self._ask({"states": 0})
        if states.get("failed") or states.get("cancelled"):
            raise Unavailable(f"jobs of the embedded column failed: {states}.", mend="See --logs DIR.")
        return states

    def _ask(self, request: dict[str, Any]) -> dict[str, int]:
        self.workers[0].say(json.dumps(request))
        answer: dict[str, int] = json.loads(self._read("{"))
        return answer

    def _read(self, start: str) -> str:
        line = self.workers[0].read()
        if not line.startswith(start):
            raise Unavailable(f"the embedded process ended. Its log ends:\n{self.workers[0].tail()}", mend="Mend that.")
        return line
