"""``worker``: a small parent and its pool process. The parent knows when its child is dead, and says so at once."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from orchestrator.settings import Settings

Queues = Annotated[
    str | None, typer.Option("--queues", "-Q", metavar="A,B", help="Queues to consume; ORCHESTRATOR_WORKER_QUEUES.")
]
Slots = Annotated[
    int | None, typer.Option("--concurrency", "-c", min=1, help="Steps at once; ORCHESTRATOR_WORKER_CONCURRENCY.")
]


def worker(
    queues: Queues = None,
    concurrency: Slots = None,
    child: Annotated[str | None, typer.Option("--child", hidden=True, help="The incarnation to live under.")] = None,
) -> None:
    """Execute steps until SIGTERM. Then finish what is begun, within ORCHESTRATOR_DRAIN_SECONDS."""
    from orchestrator.bootstrap import refuse_memory_broker
    from orchestrator.settings import Settings

    settings = Settings.load(worker_queues=queues, worker_concurrency=concurrency)
    refuse_memory_broker(settings, "worker")
    if child is not None:
        raise typer.Exit(live(settings, child))
    from orchestrator.cli.parent import Parent

    raise typer.Exit(Parent(settings).run())


def live(settings: Settings, incarnation: str) -> int:
    """The pool process's life: Celery's own worker, as ``celery -A workers.app worker`` starts it."""
    from orchestrator import bootstrap
    from orchestrator.canvas.runtime import attach_runtime
    from orchestrator.store import migrations
    from orchestrator.telemetry.logs import configure_from
    from orchestrator.telemetry.serve import serve_metrics
    from workers.app import worker_app
    from workers.runtime import WorkerRuntime

    os.environ[bootstrap.INCARNATION] = incarnation
    configure_from(settings)
    db = bootstrap.open_database(settings)
    try:  # Celery would log a traceback and try to live on
        migrations.check(db)
    finally:
        db.close()
    app = worker_app(settings)

    def runtime() -> Any:
        made = WorkerRuntime.build(settings, app)
        if settings.metrics_port:
            serve_metrics({"/metrics": made.meters.exposition}, settings.host, settings.metrics_port)
        return made

    attach_runtime(app, runtime)
    celery = app.Worker(
        hostname=f"{incarnation}@{socket.gethostname()}", loglevel=settings.log_level.upper(), quiet=True
    )
    celery.start()
    return int(celery.exitcode or 0)
