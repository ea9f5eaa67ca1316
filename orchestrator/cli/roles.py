"""The production roles without agents: ``api`` and ``scheduler``. Stateless; run as many as you like."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Annotated

import typer

from orchestrator.cli.ending import say


def api(
    host: Annotated[str | None, typer.Option(help="Address to listen on; ORCHESTRATOR_HOST.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 picks a free one; ORCHESTRATOR_PORT.")] = None,
) -> None:
    """Serve the HTTP API until SIGTERM. Prints its URL on stdout when it answers."""
    from orchestrator.api.app import create_app
    from orchestrator.api.auth import check_bind
    from orchestrator.api.server import ApiServer, listen
    from orchestrator.bootstrap import build_engine, close_engine, refuse_memory_broker
    from orchestrator.cli.stopping import address, stop_signal
    from orchestrator.settings import Settings
    from orchestrator.telemetry.logs import configure_from
    from orchestrator.telemetry.metrics import Meters

    settings = Settings.load(host=host, port=port)
    refuse_memory_broker(settings, "api")
    stop = stop_signal()
    configure_from(settings)
    meters = Meters()
    with ExitStack() as stack:
        engine = build_engine(settings, "api", meters=meters)
        stack.callback(close_engine, engine)
        check_bind(engine, settings, settings.host)
        server = ApiServer(create_app(engine, settings, meters=meters), listen(settings.host, settings.port))
        server.start()
        stack.callback(server.stop)
        print(address(settings.host, server.port), flush=True)
        stop.wait()
    say("api stopped")


def scheduler() -> None:
    """Repair what is lost, late or silent. Until SIGTERM; several at once are safe."""
    from orchestrator.bootstrap import build_engine, build_reconciler, close_engine, refuse_memory_broker
    from orchestrator.cli.stopping import stop_signal
    from orchestrator.settings import Settings
    from orchestrator.telemetry.global_ import GlobalMetrics
    from orchestrator.telemetry.logs import configure_from
    from orchestrator.telemetry.metrics import Meters
    from orchestrator.telemetry.serve import serve_metrics

    settings = Settings.load()
    refuse_memory_broker(settings, "scheduler")
    stop = stop_signal()
    configure_from(settings)
    meters = Meters()
    with ExitStack() as stack:
        engine = build_engine(settings, "scheduler", meters=meters)
        stack.callback(close_engine, engine)
        if settings.metrics_port:
            pages = {"/metrics": meters.exposition, "/metrics/global": GlobalMetrics(engine).text}
            stack.callback(serve_metrics(pages, settings.host, settings.metrics_port).close)
        reconciler = build_reconciler(settings, engine, meters)
        reconciler.start()
        stack.callback(reconciler.close)
        say("scheduler ready")
        stop.wait()
    say("scheduler stopped")
