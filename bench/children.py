"""Child processes of a run: none outlives it, whatever ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from orchestrator.local.family import descendants, die_with_parent, is_alive
from orchestrator.settings import PREFIX

ROOT = Path(__file__).parents[1]
STOP_SECONDS = 15.0
TICKS = os.sysconf("SC_CLK_TCK")


class Child:
    """``python -m WORDS…`` with its talk in ``log``; with ``talks`` its stdout is ``lines`` and its stdin is open.

    ``under``: the words of a tool that runs it.
    """

    def __init__(
        self,
        name: str,
        words: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        *,
        talks: bool = False,
        under: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.log = log
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [*under, sys.executable, "-m", *words],
                env={**_inherited(), "PYTHONPATH": str(ROOT), **environment},
                stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
                stdout=subprocess.PIPE if talks else file,
                stderr=file,
                cwd=log.parent,  # a .env of the caller's directory must not leak in
                text=True,
                start_new_session=True,  # Ctrl-C is ours to hand on, in order
                preexec_fn=die_with_parent(signal.SIGTERM),  # noqa: PLW1509 - from the main thread only
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def family(self) -> list[int]:
        return [self.pid, *descendants(self.pid)]

    def read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def stop(self) -> None:
        """SIGTERM; SIGKILL to whatever of its family is left after 15 s."""
        family = self.family() if self.alive else []
        if self.alive:
            self.process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_SECONDS)
        for pid in filter(is_alive, family):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-2000:]


def _inherited() -> dict[str, str]:
    """The caller's variables without settings of ours, which would change what is measured."""
    return {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}


def cpu_seconds(pids: Sequence[int]) -> float:
    """Processor time of these processes and of their children that have ended."""
    total = 0
    for pid in pids:
        with suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += sum(map(int, fields[11:15]))
    return total / TICKS


def peak_memory(pid: int) -> float:
    """The most memory the process ever had resident, in MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0
