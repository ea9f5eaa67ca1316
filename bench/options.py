"""The command line of ``python -m bench``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.columns.registry import COLUMNS
from bench.workloads import WORKLOADS

#: Fewer pairs than this are shown, not written: a figure needs a spread.
ENOUGH = 5
DEFAULT_PAIRS = 7


@dataclass(frozen=True, slots=True)
class Options:
    pairs: int
    only: tuple[str, ...]
    columns: tuple[str, ...]
    quick: bool
    out: Path | None
    logs: Path | None
    list: bool

    @property
    def written(self) -> bool:
        """Whether this run's figures are worth keeping."""
        return self.out is not None or (not self.quick and self.pairs >= ENOUGH)


def parse(arguments: Sequence[str]) -> Options:
    """Exits 2 with what to write instead."""
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Ours and stock Celery (and others) on the same work, alternating, in one run.",
        epilog=f"Figures of {ENOUGH} pairs or more are written to bench/RESULTS.md and bench/results.json;"
        " a run with --only replaces only those workloads there.",
    )
    parser.add_argument("--pairs", type=int, help=f"turns of each column (default {DEFAULT_PAIRS}; 1 with --quick)")
    parser.add_argument("--only", metavar="NAME,…", type=_names, default=(), help="workloads; see --list")
    parser.add_argument("--columns", metavar="NAME,…", type=_names, default=(), help=f"of {', '.join(COLUMNS)}")
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that it works, measures nothing")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write RESULTS.md and results.json there")
    parser.add_argument("--logs", type=Path, metavar="DIR", help="keep the logs of every process there")
    parser.add_argument("--list", action="store_true", help="name the workloads and end")
    given = parser.parse_args(arguments)
    pairs = given.pairs if given.pairs is not None else (1 if given.quick else DEFAULT_PAIRS)
    if pairs < 1:
        parser.error(f"--pairs {pairs}: at least one pair is needed, {ENOUGH} for figures that are kept.")
    for option, place in (("--out", given.out), ("--logs", given.logs)):
        if place is not None and place.exists() and not place.is_dir():
            parser.error(f"{option} {place}: that is a file; name a directory, which is made where there is none.")
    _check(parser, "--only", given.only, [workload.name for workload in WORKLOADS])
    _check(parser, "--columns", given.columns, list(COLUMNS))
    if given.columns and "ours" not in given.columns:
        parser.error("--columns: name ours too; every ratio is ours to another.")
    return Options(pairs, given.only, given.columns, given.quick, given.out, given.logs, given.list)


def _names(text: str) -> tuple[str, ...]:
    names = tuple(word.strip() for word in text.split(",") if word.strip())
    if not names:
        raise argparse.ArgumentTypeError("it names nothing; leave it out for all.")
    return names


def _check(parser: argparse.ArgumentParser, option: str, given: Sequence[str], known: Sequence[str]) -> None:
    unknown = [name for name in given if name not in known]
    if unknown:
        parser.error(f"{option}: {', '.join(unknown)} is not known. Choose from: {', '.join(known)}.")
