"""Takes turns: every column of a workload, alternating, so that drift of the machine falls on all alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

from bench.columns.column import Column
from bench.columns.registry import COLUMNS, missing
from bench.lab import Lab
from bench.options import Options
from bench.workloads.workload import Figures, Turn, Workload

Say = Callable[[str], None]
#: By column, by metric: one value a pair.
Series = dict[str, dict[str, list[float]]]


def run_workload(lab: Lab, workload: Workload, options: Options, say: Say) -> Series:
    """Every column's figures, one for each pair. Columns that cannot run here are said and left out."""
    pairs = pairs_of(workload, options)
    with ExitStack() as stack:
        columns = _start(lab, workload, options, stack, say)
        if workload.started:
            for column in columns:
                workload.turns[column.name](Turn(lab, column, workload.quick))  # warm-up: caches, plans, imports
        size = workload.quick if options.quick else workload.size
        prepared = stack.enter_context(workload.prepare(lab, size)) if workload.prepare else None
        series: Series = {column.name: {} for column in columns}
        for pair in range(pairs):
            for column in columns if pair % 2 == 0 else reversed(columns):
                figures = workload.turns[column.name](Turn(lab, column, size, prepared))
                _note(series[column.name], figures)
                say(f"  {workload.name} {pair + 1}/{pairs} {column.name}: {_shown(workload, figures)}")
    return series


def estimate(workloads: Iterable[Workload], options: Options) -> str:
    """How long they will take, roughly: nobody should start an hour's run unawares."""
    seconds = sum(one.prepare_seconds + one.seconds * pairs_of(one, options) for one in workloads)
    if options.quick:
        return "small sizes, some seconds each"
    return f"about {math.ceil(seconds / 60)} min on two cores"


def pairs_of(workload: Workload, options: Options) -> int:
    """As many as were asked for, or as the workload takes at most."""
    return min(options.pairs, workload.pairs or options.pairs)


def _start(lab: Lab, workload: Workload, options: Options, stack: ExitStack, say: Say) -> list[Column]:
    columns: list[Column] = []
    for name, build in COLUMNS.items():
        if name not in workload.turns or (options.columns and name not in options.columns):
            continue
        if (why := missing(name)) is not None:
            say(f"  {name} is left out: {why}")
            continue
        column = build(lab)
        stack.callback(column.stop)
        if workload.started:
            column.start(workload.fleets.get(name, workload.fleet))
        columns.append(column)
    return columns


def _note(series: dict[str, list[float]], figures: Figures) -> None:
    for metric, value in figures.items():
        series.setdefault(metric, []).append(value)


def _shown(workload: Workload, figures: Figures) -> str:
    units: dict[str, Any] = {metric.name: metric.unit for metric in workload.metrics}
    return ", ".join(f"{name} {value:.4g} {units[name]}" for name, value in figures.items() if name in units)
