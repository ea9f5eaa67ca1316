"""Builds the adapters and hands them over: the one place where settings become objects."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from orchestrator.canvas.dead_messages import DeadMessages
from orchestrator.canvas.dispatch import KombuDispatcher
from orchestrator.clock import Clock
from orchestrator.domain.errors import ConfigError
from orchestrator.domain.ids import Incarnation, StepRef
from orchestrator.domain.webhook import Patience
from orchestrator.engine import signs
from orchestrator.engine.context import Caps, Engine
from orchestrator.engine.deliver import Courier, Manners
from orchestrator.engine.feed import Feed
from orchestrator.engine.policy import Policy
from orchestrator.engine.reconcile import Reconciler, Rhythm
from orchestrator.engine.reroute import reroute
from orchestrator.engine.retention import Policy as RetentionPolicy
from orchestrator.engine.retention import Retention
from orchestrator.ports import Dispatcher, Sender
from orchestrator.settings import Settings
from orchestrator.store import life, migrations
from orchestrator.store.database import Database
from orchestrator.store.payloads import PayloadSizes

if TYPE_CHECKING:
    from orchestrator.telemetry.metrics import Meters

#: A worker's parent names its child's life, so that it can bury it.
INCARNATION = "ORCHESTRATOR_INCARNATION"
#: Told of steps that were not published, or perhaps not.
OnLost = Callable[[Sequence[StepRef]], None]


def open_database(settings: Settings, *, application: str = "orchestrator", by_key: bool = False) -> Database:
    """Connects lazily: nothing is sent yet. ``by_key``: as ``Database`` has it."""
    return Database(
        settings.database_url.get_secret_value(),
        pool_size=settings.db_pool_size,
        sqlite_synchronous="FULL" if settings.sqlite_profile == "durable" else "NORMAL",
        connect_timeout=settings.db_connect_timeout,
        statement_timeout=settings.statement_timeout,
        lock_timeout=settings.lock_timeout,
        application=application,
        by_key=by_key,
    )


def new_incarnation(role: str, clock: Clock) -> Incarnation:
    """One life of a process; the host and pid in it are for people, never for identity."""
    given = os.environ.get(INCARNATION)
    return Incarnation(given or f"{role}-{socket.gethostname()}-{os.getpid()}-{clock.new_id()[-12:]}")


def build_app(settings: Settings, queues: Sequence[str] | None = None, concurrency: int | None = None) -> Any:
    """The Celery application that publishes and, in a worker, consumes."""
    # Celery, kombu and the broker's driver are loaded here: who neither publishes nor consumes never pays for them.
    from orchestrator.canvas.app import make_app

    return make_app(
        settings.broker_url.get_secret_value(),
        queues=tuple(queues or settings.worker_queues),
        concurrency=concurrency or settings.worker_concurrency,
        soft_shutdown_seconds=settings.drain_seconds,
    )


def build_engine(
    settings: Settings,
    role: str,
    *,
    app: Any = None,
    dispatcher: Callable[[OnLost], Dispatcher] | None = None,
    db: Database | None = None,
    process: Incarnation | None = None,
    meters: Meters | None = None,
    check_schema: bool = True,
) -> Engine:
    """The engine of a process of ``role``, its feed running. Close with ``close_engine``.

    ``dispatcher`` makes what publishes, from what it tells of losses; by default Celery, through ``app``.
    Raises ``SchemaOutdated`` and ``Unavailable``.
    """
    clock = Clock()
    db = db or open_database(settings, application=f"orchestrator-{role}", by_key=role in ("worker", "scheduler"))
    if check_schema:
        migrations.check(db)
    engine = Engine(
        db,
        clock,
        process or new_incarnation(role, clock),
        settings.lease_seconds,
        PayloadSizes(settings.inline_bytes, settings.compress_bytes),
        Caps(
            settings.max_width,
            settings.max_steps,
            settings.max_body_bytes,
            settings.max_output_bytes,
            settings.job_deadline,
        ),
    )
    feed: list[Feed] = []

    def lost(refs: Sequence[StepRef]) -> None:
        feed[0].lost(refs)

    on_broker = meters.broker if meters is not None else (lambda _up: None)
    publisher = dispatcher(lost) if dispatcher else KombuDispatcher(app or build_app(settings), lost, on_broker)
    feed.append(Feed(db, publisher, clock, settings.tenant_weights))
    engine.feed = feed[0]
    engine.feed.on_held = partial(reroute, engine)
    engine.feed.start()
    return engine


def close_engine(engine: Engine) -> None:
    engine.feed.close()
    engine.db.close()


def build_reconciler(
    settings: Settings, engine: Engine, meters: Meters | None = None, *, trusted: bool = False
) -> Reconciler:
    """``trusted``: this is somebody's own machine (``run``, ``dev``): webhooks may go anywhere."""
    rhythm = Rhythm(tick=settings.tick_seconds, marker=settings.marker_seconds)
    counted: dict[str, Any] = {}
    if meters is not None:
        counted = {
            "redispatched": meters.redispatched,
            "on_broker": meters.broker,
            "expired": meters.lease_expired,
        }
    courier = build_courier(settings, engine, meters, trusted=trusted)
    retention = None
    if settings.retention is not None:
        retention = Retention(engine, RetentionPolicy(settings.retention, settings.retention_export))
    return Reconciler(
        engine,
        rhythm,
        lambda who: life.is_dead(engine.db, who),
        courier=courier,
        **counted,
        retention=retention,
        dead_messages=_dead_messages(settings, engine, meters),
    )


def build_courier(settings: Settings, engine: Engine, meters: Meters | None, *, trusted: bool) -> Courier:
    """Connects to nothing before something is due."""

    def sender() -> Sender:
        from orchestrator.telemetry.webhooks import HttpSender

        return HttpSender(engine.clock, settings.webhook_concurrency)

    manners = Manners(
        settings.webhook_timeout,
        settings.webhook_concurrency,
        settings.webhook_host_concurrency,
        Policy(egress=None if trusted else settings.egress),
        Patience(settings.webhook_retry_first, settings.webhook_retry_longest, settings.webhook_give_up),
    )
    return Courier(engine, sender, manners, meters.webhook_tried if meters is not None else lambda _outcome: None)


def _dead_messages(settings: Settings, engine: Engine, meters: Meters | None) -> Callable[[], int]:
    """Takes into quarantine what RabbitMQ's delivery limit gave up on; other brokers have none."""
    if not settings.broker_url.get_secret_value().startswith("amqp"):
        return lambda: 0

    def keep(queue: str, reason: str, raw: bytes) -> None:
        signs.quarantine(engine, queue, reason, raw)
        if meters is not None:
            meters.quarantined()

    return DeadMessages(build_app(settings), keep, engine.clock).drain


def run_scheduler(settings: Settings, stop: threading.Event, meters: Meters | None = None) -> None:
    """The scheduler's body: repairs every gap until ``stop`` is set."""
    refuse_memory_broker(settings, "scheduler")
    engine = build_engine(settings, "scheduler", meters=meters)
    reconciler = build_reconciler(settings, engine, meters)
    reconciler.start()
    try:
        stop.wait()
    finally:
        reconciler.close()
        close_engine(engine)


def refuse_memory_broker(settings: Settings, role: str) -> None:
    """Raises ``ConfigError``: messages in one process's memory never reach another."""
    if settings.broker_url.get_secret_value().startswith("memory:"):
        raise ConfigError(
            f"ORCHESTRATOR_BROKER_URL is memory://, which is for run and dev only; {role} is a process of its own.",
            mend="Set it to redis://… or amqp://….",
        )
