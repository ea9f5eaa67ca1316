"""Stock Celery: ``bench/celery_app.py`` on the same Redis. It keeps no record, so a job is done when it rings."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from bench.children import Child, cpu_seconds
from bench.columns.column import Fleet
from bench.lab import STOCK_BROKER, STOCK_RESULTS, Lab
from bench.shapes import Shape

SECONDS_TO_START = 60.0
#: Messages in one publish batch.
BATCH = 200


class Stock:
    name = "celery"

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self.workers: list[Child] = []
        self.environment = {
            "BENCH_BROKER": lab.redis.database_url(STOCK_BROKER),
            "BENCH_RESULTS": lab.redis.database_url(STOCK_RESULTS),
        }
        os.environ |= self.environment  # read when the app is first imported, here and in its workers
        from bench import celery_app

        self.module = celery_app

    def start(self, fleet: Fleet) -> None:
        if fleet.redeliver_after is not None:
            self.environment["BENCH_REDELIVER"] = str(fleet.redeliver_after)
        commands = 1 if fleet.pool == "prefork" else fleet.workers
        slots = fleet.workers if fleet.pool == "prefork" else fleet.slots
        for _ in range(commands if fleet.workers else 0):
            self.add_worker(fleet.pool, slots)
        if self.workers:
            self._await_ready()

    def add_worker(self, pool: str, slots: int) -> Child:
        words = ["celery", "-A", "bench.celery_app", "worker", "--pool", pool, "--concurrency", str(slots)]
        words += ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "WARNING"]
        words += ["-n", f"bench-{len(self.workers)}@%h"]
        # Blocking calls: what a process holds beyond its threads is out of the other one's reach.
        prefetch = "1" if pool == "threads" else "64"
        child = self._lab.child("celery", *words, environment={**self.environment, "BENCH_PREFETCH": prefetch})
        self.workers.append(child)
        return child

    def _await_ready(self) -> None:
        """It consumes once as many connections block on its queue as there are commands."""
        client = self.module.app.connection_for_read().default_channel.client

        def ready() -> bool:
            blocked = [
                one for one in client.client_list() if one.get("cmd") == "brpop" and one["db"] == str(STOCK_BROKER)
            ]
            return len(blocked) >= len(self.workers)

        self._lab.await_true("starting Celery's workers", ready, self.workers, SECONDS_TO_START)

    def stop(self) -> None:
        for child in self.workers:
            child.stop()
        self.workers.clear()
        connection = self.module.app.connection_for_write()
        connection.default_channel.client.flushdb()
        connection.release()
        self.environment.pop("BENCH_REDELIVER", None)
        self._let_results_go()

    def _let_results_go(self) -> None:
        """Celery stays subscribed to the results of a chord's header: it complains when the interpreter exits, and
        fails over them should that connection, which nobody reads, be reset before.
        """
        consumer = self.module.app.backend.result_consumer
        consumer.stop()
        consumer._pubsub = None  # noqa: SLF001 - else it subscribes on the closed one
        consumer.subscribed_to.clear()
        for mapping in self.module.app.backend._pending_results:  # noqa: SLF001 - there is no other way to them
            for waiters in list(mapping.values()):
                for one in list(waiters.values()):
                    one.backend = None

    def submit(self, shape: Shape, inputs: Sequence[dict[str, Any]]) -> None:
        pool = self.module.app.producer_pool
        # One gains nothing from a batch; many at once are sent in kombu's.
        with pool.acquire(block=True) as producer, producer.batch(BATCH) if len(inputs) > 1 else nullcontext():
            for one in inputs:
                self.module.canvas(shape, one).apply_async(producer=producer)

    def settled(self) -> bool:
        return True

    def check(self) -> None:
        """Its failures are in its log."""

    def cpu(self) -> float:
        return cpu_seconds([pid for child in self.workers for pid in child.family()])
