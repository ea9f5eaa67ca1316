"""Where a step's processor time goes: ``python -m bench.flame``.

It runs sequences in one process on SQLite, looks at the stack of every thread every few milliseconds, and weighs it
with the processor time that the thread has used since the last look: who waits weighs nothing. It prints the shares by
module of ours (what a library spends belongs to who called it) and writes every stack as a line that flame graph
viewers read. Where the kernel does not tell a thread's processor time it says so and ends with 69.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from bench.bell import Bell
from bench.children import ROOT
from bench.columns.ours import workflow_of
from bench.embedded_app import settings_of
from bench.shapes import Shape
from orchestrator.domain.errors import OrchestratorError, Unavailable
from orchestrator.engine.submit import Submission, submit_many
from workers.embedded import Embedded

TEN = Shape("sequence", 10)
#: Seconds between two looks.
INTERVAL = 0.003
SHOWN = 20
FAILED = "SELECT count(*) FROM jobs WHERE state = 'failed'"
OURS = ("orchestrator/", "workers/", "bench/")


class Sampler:
    """Samples all threads but its own between ``start`` and ``stop``; ``stacks`` are nanoseconds by stack."""

    def __init__(self) -> None:
        self.stacks: Counter[str] = Counter()
        self._used: dict[int, int] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._look()
        self.stacks.clear()
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(INTERVAL):
            self._look()

    def _look(self) -> None:
        frames = sys._current_frames()  # noqa: SLF001 - the documented way
        for thread in threading.enumerate():
            native, frame = thread.native_id, frames.get(thread.ident or 0)
            if native is None or frame is None or thread is self._thread:
                continue
            used = cpu_nanoseconds(native)
            spent = used - self._used.get(native, used)
            self._used[native] = used
            if spent > 0:
                self.stacks[f"{thread.name};{stack_of(frame)}"] += spent


def cpu_nanoseconds(native: int) -> int:
    """Of one thread of this process; 0 once it has ended."""
    try:
        return int(Path(f"/proc/self/task/{native}/schedstat").read_text().split()[0])
    except OSError:
        return 0


def stack_of(frame: FrameType | None) -> str:
    """Outermost first, ``file:function`` separated by semicolons."""
    names: list[str] = []
    while frame is not None:
        names.append(f"{_short(frame.f_code.co_filename)}:{frame.f_code.co_name}")
        frame = frame.f_back
    return ";".join(reversed(names))


def _short(file: str) -> str:
    path = Path(file)
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) and ".venv" not in path.parts else path.name


def by_module(stacks: Counter[str]) -> Counter[str]:
    """Each stack's weight goes to its innermost module of ours."""
    found: Counter[str] = Counter()
    for stack, weight in stacks.items():
        ours = [name for name in stack.split(";") if name.startswith(OURS)]
        found[ours[-1].partition(":")[0] if ours else "libraries alone"] += weight
    return found


def sample(jobs: int, directory: Path) -> Counter[str]:
    """Nanoseconds by stack."""
    if not Path("/proc/self/schedstat").exists():
        raise Unavailable("this kernel does not tell a thread's processor time.", mend="Use a Linux with schedstats.")
    sampler = Sampler()
    with Bell() as bell, Embedded(settings_of(directory / "flame.db")) as it:
        run = bell.next_run()
        inputs = [TEN.input(run, number, it.engine.clock.monotonic()) for number in range(jobs)]
        os.environ |= bell.environment
        sampler.start()
        submit_many(it.engine, [Submission(workflow_of(TEN), one) for one in inputs])
        heard = 0
        while heard < jobs:
            heard += len(bell.wait(60.0))
            if heard < jobs and it.engine.db.run(lambda session: session.value(FAILED), readonly=True):
                raise Unavailable("a job failed.", mend="Run it with `orchestrator run` to see why.")
        sampler.stop()
    return sampler.stacks


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.flame", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--jobs", type=int, default=300, help="sequences of ten steps (default 300, at most 1,000)")
    parser.add_argument("--out", type=Path, default=Path("stacks.txt"), metavar="FILE", help="default stacks.txt")
    given = parser.parse_args(arguments)
    if not 0 < given.jobs <= 1000:
        parser.error(f"--jobs {given.jobs}: between 1 and 1,000.")
    try:
        with tempfile.TemporaryDirectory(prefix="orchestrator-flame-") as directory:
            stacks = sample(given.jobs, Path(directory))
    except OrchestratorError as error:
        print(f"error[{error.code}]: {error}", file=sys.stderr)
        return error.exit_code
    given.out.write_text("".join(f"{stack} {weight // 1000}\n" for stack, weight in stacks.most_common()))
    total = stacks.total() or 1
    print(f"{total / 1e6 / given.jobs / TEN.steps:.3g} ms of processor time a step\n\n| module | share |\n|---|---|")
    for module, weight in by_module(stacks).most_common(SHOWN):
        print(f"| `{module}` | {weight / total:.1%} |")
    print(f"\nEvery stack, in microseconds: {given.out}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
