"""The real commands as child processes: their output, their exit codes, real signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from orchestrator.clock import Clock

REPOSITORY = Path(__file__).parents[2]
WORKFLOWS = Path(__file__).parent / "workflows"
SECONDS = 60.0


@dataclass(slots=True)
class Running:
    """A command that is under way. What it says is collected line by line."""

    process: subprocess.Popen[str]
    out: list[str] = field(default_factory=list)
    err: list[str] = field(default_factory=list)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _readers: list[threading.Thread] = field(default_factory=list)

    def __post_init__(self) -> None:
        for stream, lines in ((self.process.stdout, self.out), (self.process.stderr, self.err)):
            thread = threading.Thread(target=self._read, args=(stream, lines), daemon=True)
            thread.start()
            self._readers.append(thread)

    def _read(self, stream: Iterator[str], lines: list[str]) -> None:
        for line in stream:
            with self._changed:
                lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def line(self, lines: list[str], text: str, seconds: float = SECONDS) -> str:
        """The first of ``lines`` that contains ``text``, once it is said."""

        def said() -> bool:
            return any(text in line for line in lines) or self.process.poll() is not None

        with self._changed:
            self._changed.wait_for(said, seconds)
        found = next((line for line in lines if text in line), None)
        assert found is not None, f"never said {text!r}:\n{self.said()}"
        return found

    def said(self) -> str:
        return "\n".join(["-- stdout", *self.out, "-- stderr", *self.err])

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, seconds: float = SECONDS) -> int:
        code = self.process.wait(seconds)
        for reader in self._readers:
            reader.join(5)
        return code


@dataclass(slots=True)
class Shell:
    """Runs ``orchestrator`` in ``directory``. Nothing of the caller's settings leaks in."""

    directory: Path
    settings: dict[str, str] = field(default_factory=dict)
    #: Where Python agents are imported from, beside the repository.
    paths: list[Path] = field(default_factory=list)
    _begun: list[Running] = field(default_factory=list)

    def environment(self, settings: dict[str, str] | None = None) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("ORCHESTRATOR_")}
        path = os.pathsep.join(filter(None, [str(REPOSITORY), *map(str, self.paths), clean.get("PYTHONPATH")]))
        given = {f"ORCHESTRATOR_{name}": value for name, value in {**self.settings, **(settings or {})}.items()}
        return {**clean, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **given}

    def start(self, *words: str | Path, **settings: str) -> Running:
        process = subprocess.Popen(
            [sys.executable, "-m", "orchestrator.cli", *map(str, words)],
            cwd=self.directory,
            env=self.environment(settings),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._begun.append(Running(process))
        return self._begun[-1]

    def run(self, *words: str | Path, **settings: str) -> subprocess.CompletedProcess[str]:
        begun = self.start(*words, **settings)
        code = begun.wait()
        out, err = ("".join(f"{line}\n" for line in lines) for lines in (begun.out, begun.err))
        return subprocess.CompletedProcess([str(word) for word in words], code, out, err)

    def close(self) -> None:
        for begun in self._begun:
            if begun.process.poll() is None:
                begun.process.terminate()
        for begun in self._begun:
            try:
                begun.wait(20)
            except subprocess.TimeoutExpired:
                begun.process.kill()
                begun.wait()
            for stream in (begun.process.stdout, begun.process.stderr):
                assert stream is not None
                stream.close()


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    made = Shell(tmp_path)
    yield made
    made.close()


@dataclass(slots=True)
class Ledger:
    """What the agents themselves say they did."""

    path: Path

    def counts(self) -> Counter[str]:
        return Counter(self.path.read_text().splitlines()) if self.path.exists() else Counter()

    def wait_for(self, enough: Callable[[Counter[str]], bool], seconds: float = SECONDS) -> Counter[str]:
        until(lambda: enough(self.counts()), seconds, lambda: f"ledger: {dict(self.counts())}")
        return self.counts()


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.txt")


def until(true: Callable[[], bool], seconds: float, otherwise: Callable[[], str] = lambda: "") -> float:
    """Waits for something another process does; answers how long it took."""
    clock = Clock()
    began = clock.monotonic()
    while not true():
        assert clock.monotonic() - began < seconds, f"not within {seconds} s. {otherwise()}"
        clock.sleep(0.02)
    return clock.monotonic() - began
