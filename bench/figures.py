"""Medians, quartiles, ratios within pairs, and whether a target is reached."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` (0 to 1) of ``values`` do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * share) - 1)]


@dataclass(frozen=True, slots=True)
class Spread:
    """Of the values of one figure over the pairs."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Quartiles by linear interpolation; of one value, that value."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0], 1)
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high, len(values))

    @property
    def relative(self) -> float:
        """Interquartile range as a share of the median."""
        return (self.high - self.low) / self.median if self.median else 0.0


@dataclass(frozen=True, slots=True)
class Target:
    """``bound`` on the figure of ``of``, or on its ratio to the column ``against``; ``aim`` is what we would like."""

    bound: float
    against: str | None = None
    aim: float | None = None
    of: str = "ours"


@dataclass(frozen=True, slots=True)
class Metric:
    name: str
    unit: str
    better: Literal["more", "less"]
    targets: tuple[Target, ...] = ()


def ratios(ours: Sequence[float], others: Sequence[float]) -> list[float]:
    """Within pairs; a pair where the other has nothing to divide by is left out."""
    return [mine / other for mine, other in zip(ours, others, strict=True) if other]


def reached(metric: Metric, target: Target, values: Sequence[float]) -> bool:
    """Its worse quartile is within the bound: the lower where more is better, else the upper."""
    spread = Spread.of(values)
    return spread.low >= target.bound if metric.better == "more" else spread.high <= target.bound
