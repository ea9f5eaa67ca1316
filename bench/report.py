"""Figures as a table for people and as JSON for programs; ``RESULTS.md`` is rendered from ``results.json`` alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.figures import Metric, Spread, Target, ratios, reached
from bench.runner import Series
from bench.workloads.workload import Workload

HERE = Path(__file__).parent


def summary(workload: Workload, series: Series, taken: Mapping[str, Any]) -> dict[str, Any]:
    """One workload's entry in ``results.json``."""
    ours = series.get("ours", {})
    return {
        "title": workload.title,
        "note": workload.note,
        "size": dict(workload.quick if taken.get("quick") else workload.size),
        "taken": dict(taken),
        "columns": list(series),
        "metrics": [_metric(metric, series, ours) for metric in workload.metrics if metric.name in ours],
    }


def _metric(metric: Metric, series: Series, ours: Mapping[str, list[float]]) -> dict[str, Any]:
    mine = ours[metric.name]
    values = {name: found[metric.name] for name, found in series.items() if metric.name in found}
    by_column = {name: ratios(mine, other) for name, other in values.items() if name != "ours"}
    return {
        "name": metric.name,
        "unit": metric.unit,
        "better": metric.better,
        "values": {name: [round(value, 6) for value in found] for name, found in values.items()},
        "spread": {name: _spread(found) for name, found in values.items()},
        "ratios": {name: _spread(found) for name, found in by_column.items() if found},
        "targets": [_target(metric, target, values) for target in metric.targets],
    }


def _spread(values: list[float]) -> dict[str, float]:
    spread = Spread.of(values)
    shown = {"median": spread.median, "q1": spread.low, "q3": spread.high, "spread": spread.relative}
    return {name: round(value, 6) for name, value in shown.items()} | {"count": spread.count}


def _target(metric: Metric, target: Target, found: Mapping[str, list[float]]) -> dict[str, Any]:
    values = found.get(target.of, [])
    if target.against is not None:
        values = ratios(values, found[target.against]) if values and target.against in found else []
    return {
        "of": target.of,
        "against": target.against,
        "bound": target.bound,
        "aim": target.aim,
        "reached": None if not values else reached(metric, target, values),
        "aimed": None if not values or target.aim is None else reached(metric, Target(target.aim), values),
    }


def table(entry: Mapping[str, Any]) -> str:
    """One workload as Markdown."""
    if "missing" in entry:
        return f"Not taken: {entry['missing']}."
    columns = entry["columns"]
    others = [name for name in columns if name != "ours"]
    heads = ["", *columns, *(f"ours : {name}" for name in others), "target"]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for metric in entry["metrics"]:
        cells = [f"{metric['name']}, {metric['unit']}"]
        cells += [_cell(metric["spread"].get(name)) for name in columns]
        cells += [_cell(metric["ratios"].get(name), "×") for name in others]
        cells.append("; ".join(_verdict(metric, target) for target in metric["targets"]))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(spread: Mapping[str, float] | None, sign: str = "") -> str:
    if spread is None:
        return "–"
    if spread["count"] == 1:
        return f"{number(spread['median'])}{sign}"
    return f"**{number(spread['median'])}{sign}** ({number(spread['q1'])}–{number(spread['q3'])})"


def number(value: float) -> str:
    """Three significant digits, thousands whole."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _verdict(metric: Mapping[str, Any], target: Mapping[str, Any]) -> str:
    sign = "≥" if metric["better"] == "more" else "≤"
    against = f"× {target['against']}" if target["against"] else f" {metric['unit']}"
    whose = "" if target["of"] == "ours" else f"{target['of']} "
    said = f"{whose}{sign} {target['bound']:g}{against}"
    if target["reached"] is None:
        return f"{said}: not taken"
    verdict = "reached" if target["reached"] else "not reached"
    aim = f", aim {target['aim']:g}×{' reached' if target['aimed'] else ''}" if target["aim"] else ""
    return f"{said}: {verdict}{aim}"


INTRODUCTION = """\
# Measured

Written by `python -m bench` from `results.json`; do not edit. What the figures mean and how to read them stands in
[performance](../docs/performance.md).

Each cell is the **median** over the pairs, with the quartiles in brackets. A ratio is taken within each pair, then the
median of the ratios. A target counts as reached when the worse quartile reaches it. Ours is durable (PostgreSQL with
fsync and synchronous_commit on, Redis as a doorbell, full history of attempts and events), Celery is not.
"""


def page(results: Mapping[str, Any]) -> str:
    """``RESULTS.md``."""
    parts = [INTRODUCTION]
    for name, entry in results["workloads"].items():
        parts.append(f"## {name}: {entry['title']}\n\n{table(entry)}\n\n{_taken(entry)}")
    return "\n".join(parts)


def _taken(entry: Mapping[str, Any]) -> str:
    taken = entry["taken"]
    versions = ", ".join(f"{name} {version}" for name, version in taken["versions"].items())
    settings = ", ".join(f"{name} {value}" for name, value in taken["postgresql_settings"].items() if value)
    note = f"{entry['note']} " if entry["note"] else ""
    sizes = ", ".join(f"{name} {value}" for name, value in entry["size"].items())
    return (
        f"{note}Sizes: {sizes}. Taken {taken['date']} at {taken['commit']}, {taken['pairs']} pairs, on {taken['cores']}"
        f" cores of {taken['cpu']}, {taken['memory_mb']:,} MB, load {taken['load_before']} before; PostgreSQL"
        f" {taken['postgresql']} ({settings}), Redis {taken['redis_server']}, Python {taken['python']}, {versions}.\n"
    )


def write(entries: Mapping[str, Any], directory: Path | None) -> Path:
    """Replaces these workloads in ``results.json`` and renders ``RESULTS.md``; answers the page's path."""
    where = directory or HERE
    where.mkdir(parents=True, exist_ok=True)
    file = where / "results.json"
    results: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"workloads": {}}
    from bench.workloads import WORKLOADS

    merged = {**results["workloads"], **entries}
    results["workloads"] = {one.name: merged[one.name] for one in WORKLOADS if one.name in merged}
    file.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    (where / "RESULTS.md").write_text(page(results))
    return where / "RESULTS.md"
