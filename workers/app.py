"""``celery -A workers.app worker``: the app as the environment's settings describe it, built when it is asked for."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Any

from celery import Celery

from orchestrator.canvas.app import make_app
from orchestrator.canvas.runtime import Runtime, attach_runtime
from orchestrator.domain.errors import ConfigError
from orchestrator.settings import Settings


def __getattr__(name: str) -> Any:
    """``app``, for Celery's ``-A``; a broken setting is one line and exit 78."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return _app()
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(error.exit_code) from None


@cache
def _app() -> Celery:
    settings = Settings.load()
    app = worker_app(settings)
    app.set_default()  # Celery's own commands and prefork children look for it there
    if wants_prefork(sys.argv):
        app.conf.worker_pool = "prefork"
    return app


def worker_app(settings: Settings) -> Celery:
    """The app of a worker process. Raises ``ConfigError`` for a broker that other processes cannot reach."""
    url = settings.broker_url.get_secret_value()
    if url.startswith("memory:"):
        raise ConfigError(
            "ORCHESTRATOR_BROKER_URL is memory://, which only `orchestrator run` and `orchestrator dev` can use.",
            mend="Set it to a redis:// or amqp:// URL.",
        )
    app = make_app(
        url,
        queues=settings.worker_queues,
        concurrency=settings.worker_concurrency,
        soft_shutdown_seconds=settings.drain_seconds,
    )

    def runtime() -> Runtime:
        from workers.runtime import WorkerRuntime

        return WorkerRuntime.build(settings, app)

    attach_runtime(app, runtime)
    return app


def wants_prefork(arguments: Sequence[str]) -> bool:
    """Did the command line ask for ``prefork`` by name? Celery cannot tell that from its default."""
    words = list(arguments)
    pairs = pairwise(words)
    return any(pair in {("-P", "prefork"), ("--pool", "prefork")} for pair in pairs) or bool(
        {"--pool=prefork", "-Pprefork"} & set(words)
    )
