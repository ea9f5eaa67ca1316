"""What SQL knows, for Prometheus: the same from every process, so it is scraped once.

Counters are sums of the rollups written in the settle's own transaction: they never fall after a restart or after
retention. Gauges are counted from the tables. One reading serves everybody for a second.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from orchestrator.domain.errors import Unavailable
from orchestrator.domain.states import JobState
from orchestrator.engine.context import Engine
from orchestrator.store import breakers, desk, feed, history, jobs, waits, workers
from orchestrator.store.session import Session
from orchestrator.telemetry.metrics import PREFIX

#: Seconds one reading is served.
FRESH = 1.0
#: Counters kept in ``rollups``: what each counts, and its labels.
COUNTERS = {
    "jobs_submitted_total": ("Jobs accepted.", ("workflow",)),
    "jobs_finished_total": ("Jobs that ended.", ("workflow", "state")),
    "steps_finished_total": ("Steps that ended.", ("agent", "outcome")),
    "attempts_total": ("Attempts, by how they failed (none: they did not).", ("agent", "failure")),
    "jobs_removed_total": ("Old jobs removed by retention.", ("workflow",)),
    "dead_letters_total": ("Jobs parked.", ("workflow", "reason")),
    "dead_letters_replayed_total": ("Parked jobs sent back to work.", ("workflow",)),
    "agent_tokens_total": ("Tokens used.", ("agent", "model", "direction")),
    "agent_cost_usd_total": ("US dollars spent.", ("agent", "model")),
}

Labels = dict[str, str]


@dataclass(frozen=True, slots=True)
class Reading:
    """One snapshot, as numbers."""

    totals: list[tuple[str, Labels, float]]
    jobs: dict[tuple[str, str], int]
    queues: list[dict[str, object]]
    slots: dict[str, int]
    letters: dict[str, int]
    #: By name: 1 if it is open or half-open, in any tenant.
    breakers: dict[str, int]
    #: Open questions to people.
    waits: int = 0


def read(session: Session) -> Reading:
    slots: dict[str, int] = defaultdict(int)
    for row in workers.live(session):
        for queue in row["queues"]:
            slots[queue] += 0 if row["draining"] else max(0, row["slots"] - row["lost_slots"])
    return Reading(
        history.totals(session),
        jobs.counts(session),
        feed.gauges(session),
        dict(slots),
        desk.open_letters(session),
        breakers.open_by_name(session),
        waits.count_open(session),
    )


class BrokerProbe:
    """Whether the broker can be reached, asked at most once in ``FRESH`` seconds, whoever wants to know."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._up = True
        self._until = float("-inf")

    def up(self) -> bool:
        """Waits at most the dispatcher's own time-out."""
        with self._lock:
            if self._engine.clock.monotonic() >= self._until:
                try:
                    self._engine.feed.dispatcher.broker_epoch()
                    self._up = True
                except Unavailable:
                    self._up = False
                self._until = self._engine.clock.monotonic() + FRESH
            return self._up


class GlobalMetrics(Collector):
    """``text`` is the page; safe from any thread. Raises ``Unavailable`` when the database does not answer."""

    def __init__(self, engine: Engine, broker_up: Callable[[], bool] | None = None) -> None:
        self._engine = engine
        self._broker_up = broker_up if broker_up is not None else BrokerProbe(engine).up
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._lock = threading.Lock()
        self._page = b""
        self._until = float("-inf")

    def text(self) -> bytes:
        """All global series as Prometheus text, at most ``FRESH`` seconds old."""
        with self._lock:
            if self._engine.clock.monotonic() >= self._until:
                self._page = generate_latest(self._registry)
                self._until = self._engine.clock.monotonic() + FRESH
            return self._page

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        reading = self._engine.db.run(read, readonly=True)
        yield from _counters(reading.totals)
        yield from _gauges(reading)
        yield GaugeMetricFamily(f"{PREFIX}_broker_up", "Whether the broker answers.", 1.0 if self._broker_up() else 0.0)


def global_metrics(engine: Engine) -> bytes:
    """The page, read now. A server keeps a ``GlobalMetrics``, which reads at most once a second."""
    return GlobalMetrics(engine).text()


def _counters(totals: list[tuple[str, Labels, float]]) -> Iterator[Metric]:
    series: dict[str, list[tuple[Labels, float]]] = {name: [] for name in COUNTERS}
    for name, labels, value in totals:
        series.setdefault(name, []).append((labels, value))
    for name, values in sorted(series.items()):
        text, known = COUNTERS.get(name, (name.replace("_", " ").capitalize() + ".", ()))
        names = list(known) or sorted({label for labels, _ in values for label in labels})
        family = CounterMetricFamily(f"{PREFIX}_{name.removesuffix('_total')}", text, labels=names)
        for key, value in _merged(names, values):
            family.add_metric(key, value)
        yield family


def _merged(names: list[str], values: list[tuple[Labels, float]]) -> Iterator[tuple[list[str], float]]:
    """Older rows may lack a label that newer ones have: the same series must not be said twice."""
    sums: dict[tuple[str, ...], float] = defaultdict(float)
    for labels, value in values:
        sums[tuple(labels.get(name, "") for name in names)] += value
    for key, total in sorted(sums.items()):
        yield list(key), total


def _gauges(reading: Reading) -> Iterator[Metric]:
    states = {state.value: 0 for state in JobState}
    for (state, _), number in reading.jobs.items():
        states[state] = states.get(state, 0) + number
    yield _gauge("jobs", "Jobs by state.", "state", states)
    queues = {str(row["queue"]): row for row in reading.queues}
    names = sorted({*queues, *reading.slots})
    for series, column, text in (
        ("queue_ready_steps", "ready", "Steps ready to run."),
        ("queue_running_steps", "running", "Steps running."),
        ("queue_oldest_ready_seconds", "oldest", "Age of the oldest ready step."),
    ):
        found = {name: queues.get(name, {}).get(column) or 0 for name in names}
        yield _gauge(series, text, "queue", {name: float(str(value)) for name, value in found.items()})
    slots = {name: reading.slots.get(name, 0) for name in names}
    yield _gauge("worker_slots", "Slots of live workers.", "queue", slots)
    yield _gauge("dead_letters_open", "Parked jobs that wait for a decision.", "workflow", reading.letters)
    yield _gauge("breaker_open", "Whether its breaker is not closed.", "agent", reading.breakers)
    yield GaugeMetricFamily(f"{PREFIX}_approvals_waiting", "Questions that wait for people.", float(reading.waits))


def _gauge(name: str, help: str, label: str, values: dict[str, int] | dict[str, float]) -> Metric:
    family = GaugeMetricFamily(f"{PREFIX}_{name}", help, labels=[label])
    for key, value in sorted(values.items()):
        family.add_metric([key], float(value))
    return family
