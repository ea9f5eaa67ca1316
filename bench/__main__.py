"""``python -m bench``. Exit codes: 0 done, 2 usage, 69 a server is missing, 130 interrupted."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

from bench import report
from bench.lab import Lab
from bench.machine import describe
from bench.options import Options, parse
from bench.runner import estimate, pairs_of, run_workload
from bench.workloads import WORKLOADS
from bench.workloads.workload import Workload
from orchestrator.domain.errors import OrchestratorError

INTERRUPTED = 130


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    if options.list:
        for workload in WORKLOADS:
            print(f"{workload.name:14} {workload.title} [{', '.join(workload.turns)}]")
        say(f"All of them; pairs: {options.pairs}; {estimate(WORKLOADS, options)}.")
        return 0
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell starts its background jobs deaf to the first
        signal.signal(number, _interrupt)
    try:
        run(options)
    except OrchestratorError as error:
        say(f"error[{error.code}]: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        say("interrupted: every process was stopped. Workloads finished before are kept; run the rest with --only.")
        return INTERRUPTED
    return 0


def run(options: Options) -> None:
    """Every chosen workload; each is printed, and written, when it is done."""
    chosen = [one for one in WORKLOADS if not options.only or one.name in options.only]
    say(f"Workloads: {len(chosen)}; pairs: {options.pairs}; {estimate(chosen, options)}.")
    with Lab(options.logs) as lab:
        taken: dict[str, Any] = {**describe(lab), "quick": options.quick, "pairs": options.pairs}
        for workload in chosen:
            say(f"{workload.name}: {workload.title}")
            entry = _entry(lab, workload, options, taken)
            print(f"\n## {workload.name}: {workload.title}\n\n{report.table(entry)}\n", flush=True)
            if options.written:
                say(f"written to {report.write({workload.name: entry}, options.out)}")
    if not options.written:
        say("Shown only: figures are kept from 5 pairs on, without --quick, or where --out DIR says.")


def _entry(lab: Lab, workload: Workload, options: Options, taken: dict[str, Any]) -> dict[str, Any]:
    """What is kept of one workload; of one that cannot run here, why."""
    why = workload.missing()
    if why is not None:
        say(f"  left out: {why}")
        return report.summary(workload, {}, taken) | {"missing": why}
    started = lab.clock.monotonic()
    series = run_workload(lab, workload, options, say)
    taken = {**taken, "pairs": pairs_of(workload, options), "seconds": round(lab.clock.monotonic() - started)}
    return report.summary(workload, series, taken)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
