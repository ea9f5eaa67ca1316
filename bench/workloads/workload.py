"""What a workload is, and one turn of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from bench.columns.column import Column, Fleet
from bench.figures import Metric
from bench.lab import Lab

Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Turn:
    """One column's turn. ``size`` are the workload's sizes, small ones in warm-up and with ``--quick``."""

    lab: Lab
    column: Column
    size: Mapping[str, int]
    #: What the workload's ``prepare`` made.
    prepared: Any = None


@dataclass(frozen=True, slots=True)
class Workload:
    name: str
    title: str
    metrics: tuple[Metric, ...]
    #: How each column's turn is taken, by the column's name; a column without an entry takes none.
    turns: Mapping[str, Callable[[Turn], Figures]]
    size: Mapping[str, int]
    quick: Mapping[str, int]
    fleet: Fleet = field(default_factory=Fleet)
    #: Fleets by column, where they differ.
    fleets: Mapping[str, Fleet] = field(default_factory=dict)
    #: False: the turn starts and stops its own workers.
    started: bool = True
    #: Turns of each column, where a pair takes minutes; None: as many as --pairs says.
    pairs: int | None = None
    note: str = ""
    #: Made once for all turns of the workload, before the first, and gone after the last.
    prepare: Callable[[Lab, Mapping[str, int]], AbstractContextManager[Any]] | None = None
    #: Why it cannot run here, or None.
    missing: Callable[[], str | None] = lambda: None
    #: About so many seconds a pair takes on two cores, and the preparation before it: for the estimate that is printed.
    seconds: int = 20
    prepare_seconds: int = 15
