"""The metrics page of a role that has no HTTP API: a thread of the standard library's server."""

from __future__ import annotations

import errno
import logging
import socket
import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client.exposition import CONTENT_TYPE_LATEST

from orchestrator.domain.errors import ConfigError, OrchestratorError

log = logging.getLogger("orchestrator.metrics")

Page = Callable[[], bytes]


class MetricsServer:
    """Serves until ``close``. ``port`` is the real one, also when 0 was asked for."""

    def __init__(self, server: ThreadingHTTPServer) -> None:
        self._server = server
        self.port: int = server.server_address[1]
        self._thread = threading.Thread(target=server.serve_forever, name="orchestrator-metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)


def serve_metrics(pages: Mapping[str, Page], host: str, port: int) -> MetricsServer:
    """Answers GET of each path in ``pages`` (as ``/metrics``) with its text; ``/livez`` with ok.

    A page that raises is a 503 with the reason. Raises ``ConfigError`` (exit 78) when the address cannot be taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    handler = type("Handler", (_Handler,), {"pages": {"/livez": lambda: b"ok\n", **pages}})
    kind = type("Server", (_Server,), {"address_family": family})
    try:
        return MetricsServer(kind((host, port), handler))
    except OSError as error:
        why = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be taken: {error.strerror or error}"
        raise ConfigError(
            f"the metrics address {host}:{port} {why}.",
            mend="Set ORCHESTRATOR_METRICS_PORT to a free port, or 0 for none.",
        ) from None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # Two processes on one port would hide each other's series from the scraper.
    allow_reuse_port = False


class _Handler(BaseHTTPRequestHandler):
    pages: Mapping[str, Page]
    timeout = 10  # seconds: a client that says nothing must not keep a thread

    def do_GET(self) -> None:
        page = self.pages.get(self.path.partition("?")[0])
        if page is None:
            self._answer(HTTPStatus.NOT_FOUND, b"not found\n", "text/plain")
            return
        try:
            self._answer(HTTPStatus.OK, page(), CONTENT_TYPE_LATEST)
        except OrchestratorError as error:
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, f"{error}\n".encode(), "text/plain; charset=utf-8")

    def _answer(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        log.debug("metrics.request", extra={"line": format % args})
