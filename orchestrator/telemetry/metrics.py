"""What this process did, for Prometheus: one object with a registry of its own; no global state.

The names and labels are a contract (docs/reference/metrics.md): base units, never a job's id in a label. What SQL can
tell is not counted here but by ``global_.py``.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest

PREFIX = "orchestrator"
#: Seconds. Agent calls last from milliseconds to many minutes.
_LONG = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)
#: Seconds. Ours: what the house adds.
_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Meters:
    """Plain methods for whoever did the work; each is safe from any thread and costs microseconds."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry if registry is not None else CollectorRegistry(auto_describe=True)
        self._jobs = self._histogram("job_duration_seconds", "Submit to end of a job.", ["workflow"], _LONG)
        self._steps = self._histogram("step_duration_seconds", "One attempt of an agent's step.", ["agent"], _LONG)
        self._waits = self._histogram("step_wait_seconds", "Ready to started.", ["queue"], _SHORT)
        self._handoffs = self._histogram(
            "handoff_seconds", "The end of a step to the start of the one that follows it.", [], _SHORT
        )
        self._requests = self._histogram(
            "http_request_duration_seconds",
            "A request to the first byte of its answer.",
            ["route", "method", "status"],
            _SHORT,
        )
        self._batches = self._histogram("writer_batch_size", "Claims and settles in one transaction.", [], _SIZES)
        self._broker = Gauge(
            f"{PREFIX}_broker_connected", "Whether this process last reached the broker.", registry=self.registry
        )
        self._expired = self._counter("leases_expired", "Leases that nobody renewed in time.")
        self._redispatched = self._counter("steps_redispatched", "Steps published again.", ["reason"])
        self._fenced = self._counter("fenced_writes", "Late results refused: another attempt owns the step.")
        self._quarantined = self._counter("quarantined_messages", "Messages that no worker could take.")
        self._webhooks = self._counter("webhook_deliveries", "Tries to deliver a webhook message.", ["outcome"])

    def _histogram(self, name: str, help: str, labels: list[str], buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"{PREFIX}_{name}", help, labels, buckets=buckets, registry=self.registry)

    def _counter(self, name: str, help: str, labels: list[str] | None = None) -> Counter:
        return Counter(f"{PREFIX}_{name}", help, labels or [], registry=self.registry)

    def job_finished(self, workflow: str, seconds: float) -> None:
        self._jobs.labels(workflow).observe(seconds)

    def step_finished(self, agent: str, seconds: float) -> None:
        self._steps.labels(agent).observe(seconds)

    def step_waited(self, queue: str, seconds: float) -> None:
        self._waits.labels(queue).observe(max(0.0, seconds))

    def handoff(self, seconds: float) -> None:
        self._handoffs.observe(max(0.0, seconds))

    def request_answered(self, route: str, method: str, status: int, seconds: float) -> None:
        self._requests.labels(route, method, str(status)).observe(seconds)

    def batch_written(self, size: int) -> None:
        self._batches.observe(size)

    def lease_expired(self, count: int = 1) -> None:
        self._expired.inc(count)

    def redispatched(self, reason: str, count: int = 1) -> None:
        self._redispatched.labels(reason).inc(count)

    def fenced(self) -> None:
        self._fenced.inc()

    def quarantined(self) -> None:
        self._quarantined.inc()

    def webhook_tried(self, outcome: str) -> None:
        """``delivered``, ``failed`` (it is tried again) or ``stopped``."""
        self._webhooks.labels(outcome).inc()

    def broker(self, up: bool) -> None:
        self._broker.set(1.0 if up else 0.0)

    def exposition(self) -> bytes:
        """All series as Prometheus text."""
        return generate_latest(self.registry)
