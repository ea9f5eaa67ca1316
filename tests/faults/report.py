"""The fault report: what each row of the matrix came to in this run, written by the run itself."""

from __future__ import annotations

import platform
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

#: The name of a finding among a test's properties.
FINDING = "fault"

FILE = Path(__file__).parents[2] / "docs" / "fault-report.md"

#: The rows this run can fill, with the fault and what counts as passing.
ROWS = {
    "K1": ("SIGKILL at every crash point × 3 shapes", "every job ends right; work goes on within 2 s"),
    "K2": ("error reported after the commit, at every commit × 3 shapes", "every job ends right"),
    "K3": ("exception at every crash point × 3 shapes", "every job ends right"),
    "K-SQLite": ("the same, embedded on SQLite: killed, started again", "resumed, no settled step called again"),
    "P13": ("a worker dies: seen by its parent, unseen, or silent", "≤ 2 s, ≤ 4 s, ≤ lease + 2 s"),
    "K4": ("workers killed at random under load", "0 lost, no settled step called again, repeats ≤ calls in flight"),
    "K5": ("all workers dead for a while", "the backlog drains, oldest first"),
    "K6": ("scheduler killed; one of two stopped and continued", "timers fire once, fail-over ≤ 15 s"),
    "Z1": ("worker stopped past its lease, then continued", "its late write is refused and counted"),
    "L1": ("a call ten times longer than the lease", "run once"),
    "R1": ("FLUSHALL at random; every message dropped", "all jobs end; work goes on within 30 s"),
    "R2": ("broker killed, restarted empty, down for a while", "jobs accepted meanwhile, then drained"),
    "R3": ("connections to the broker reset, then silent", "consuming again within 15 s"),
    "C1": ("jobs that fail at each of their steps, workers killed meanwhile", "the outside world nets to zero"),
    "D1": ("PostgreSQL killed and restarted under load", "0 lost, no call repeated"),
    "Fail-over": ("the primary killed under load, its synchronous standby promoted", "0 lost, no settled step again"),
    "Clocks": ("processes whose clocks are an hour fast or slow", "leases, timers, deadlines, takeovers hold"),
    "D3": ("the database's disk full, then freed", "no 202 without a row, goes on by itself"),
    "D4": (
        "a slow database, a hot row locked, every connection taken",
        "503, no pile-up past the pool, goes on by itself",
    ),
    "D7": ("the schema changed under load", "no failed job, no wait for a lock > 1 s, who does not fit says so"),
    "A1-A4": (
        "agents that hang, drip, cut, reset, answer rubbish or floods",
        "classified; deadlines hold ± 1 s",
    ),
    "M1": ("each message 1 to 5 times, shuffled, delayed", "every step settles once"),
    "M2": ("messages for what is unknown, finished, or of an old epoch", "no effect"),
    "M3": ("broken envelopes on a live worker's queue", "no worker dies; all in quarantine"),
    "M4": ("a step that takes its process down every time", "5 losses alone, dead letter, neighbours succeed"),
    "O3": ("a join of thousands", "time linear in size"),
    "U2": ("50 people decide, cancel and replay the same jobs at once", "only legal moves, each question one answer"),
    "U1": ("bulk replay, its scheduler killed half way, two started", "each letter replayed once, at the asked rate"),
    "Limits": ("an agent's concurrency and rate over two workers", "never exceeded"),
    "Breaker": ("an agent that is away, two workers, one killed", "left alone; nothing is given up"),
    "Feed": ("10,000 × 1 ms steps with the publishing cap", "≥ 90% of the uncapped rate"),
    "Fair": ("two tenants, 10:1 in load, 1:1 in weight", "1:1 ± 10%"),
    "A14": ("hundreds of jobs waiting for a retry", "hold no slot"),
    "M5": ("7 independent steps of 1 s on 7 slots", "< 2 s"),
    "C3": ("from one step's commit to the next one's start", "p95 < 50 ms"),
    "Commits": ("transactions of a one-step job", "≤ 2"),
    "Idle": ("statements of an idle process", "≤ 5 a second"),
    "M11": ("a queue that is full", "others run on"),
}


COLUMNS = (
    "row",
    "fault",
    "passes when",
    "jobs",
    "lost",
    "calls repeated",
    "settled steps called again",
    "work went on after (median, worst)",
    "figure",
    "seeds",
    "tests",
    "result",
)


@dataclass(slots=True)
class Finding:
    """What one test adds to its row."""

    row: str
    jobs: int = 0
    lost: int = 0
    #: Calls beyond those of a run without faults, and calls of steps whose checkpoint was there.
    repeated: int = 0
    doubled: int = 0
    #: Seconds until work went on.
    recovery: list[float] = field(default_factory=list)
    seed: int | None = None
    figure: str = ""


def write(findings: Iterable[tuple[dict[str, Any], bool]], failed: Sequence[str], file: Path = FILE) -> None:
    """``findings``: each ``Finding`` as a dict, and whether its test passed; ``failed``: every test that did not."""
    rows: dict[str, list[tuple[Finding, bool]]] = defaultdict(list)
    for values, passed in findings:
        finding = Finding(**values)
        rows[finding.row].append((finding, passed))
    lines = [
        "# Fault report",
        "",
        "Written by `make test-faults`; do not edit. What each row means stands in `tests/faults/`.",
        f"Python {platform.python_version()}, {platform.system()} {platform.machine()}.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        "|" + "---|" * len(COLUMNS),
    ]
    lines += [_line(row, rows[row]) for row in ROWS if row in rows]
    missing = [row for row in ROWS if row not in rows]
    if missing:
        lines += ["", f"Not run: {', '.join(missing)}."]
    if failed:
        lines += ["", "Failed:", *(f"- `{test}`" for test in failed)]
    file.write_text("\n".join(lines) + "\n")


def _line(row: str, found: list[tuple[Finding, bool]]) -> str:
    title, bar = ROWS[row]
    findings = [finding for finding, _ in found]
    recovery = sorted(second for finding in findings for second in finding.recovery)
    times = f"{median(recovery):.2f} s, {recovery[-1]:.2f} s" if recovery else ""
    seeds = ", ".join(str(finding.seed) for finding in findings if finding.seed is not None)
    figures = "; ".join(finding.figure for finding in findings if finding.figure)
    passed = sum(ok for _, ok in found)
    sums = [sum(getattr(one, name) for one in findings) for name in ("jobs", "lost", "repeated", "doubled")]
    result = "pass" if passed == len(found) else f"**{len(found) - passed} failed**"
    cells = [row, title, bar, *map(str, sums), times, figures, seeds, str(len(found)), result]
    return f"| {' | '.join(cells)} |"
