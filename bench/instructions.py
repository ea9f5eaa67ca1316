"""Counts the instructions of a process: by ``perf`` where the processor's counters may be read, else by valgrind.

Valgrind interprets, so a process takes some twenty times as long; its count depends on no clock and no neighbour.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

#: Both print the count with or without separators: perf ``123,,instructions:u``, valgrind ``I   refs:      1,234``.
COUNTS = {
    "perf": re.compile(r"^(\d+),.*instructions", re.MULTILINE),
    "valgrind": re.compile(r"I\s+refs:\s+([\d,]+)"),
}


@dataclass(frozen=True, slots=True)
class Counter:
    tool: str

    def words(self, log: Path) -> list[str]:
        """What to write before a command; the count is in ``log`` once it has ended."""
        if self.tool == "perf":
            return ["perf", "stat", "-e", "instructions:u", "-x", ",", "-o", str(log), "--"]
        return [
            "valgrind",
            "--tool=cachegrind",
            "--cache-sim=no",
            "--cachegrind-out-file=/dev/null",
            f"--log-file={log}",
        ]

    def read(self, log: Path) -> int:
        found = COUNTS[self.tool].search(log.read_text())
        if found is None:
            raise ValueError(f"{self.tool} counted nothing: {log.read_text()[-500:]}")
        return int(found[1].replace(",", ""))


def find_counter() -> Counter | None:
    """The first that counts here; in many virtual machines and containers ``perf`` may not."""
    if shutil.which("perf") and COUNTS["perf"].search(
        _tried("perf", "stat", "-e", "instructions:u", "-x", ",", "true")
    ):
        return Counter("perf")
    return Counter("valgrind") if shutil.which("valgrind") else None


def _tried(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=20).stderr
