"""The listening server: uvicorn, with the ends of a process seen to."""

from __future__ import annotations

import errno
import socket
import threading

import uvicorn
from fastapi import FastAPI

from orchestrator.api.house import House
from orchestrator.domain.errors import ConfigError

#: Seconds open requests get to finish once the server is told to stop.
GRACE = 10


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 picks a free one. Raises ``ConfigError`` (exit 78) for an address it cannot take."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named, for asyncio sets TCP_NODELAY only then: without it every answer waits 40 ms for an ACK.
    taken = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind((host, port))
        taken.listen(1024)
    except OSError as error:
        taken.close()
        why = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be taken: {error.strerror or error}"
        raise ConfigError(
            f"the address {host}:{port} {why}.", mend="Set ORCHESTRATOR_PORT (or --port) to a free port."
        ) from None
    return taken


class ApiServer(uvicorn.Server):
    """Serves ``app`` on a socket from ``listen``: ``run_here`` in this thread until SIGTERM or SIGINT, or ``start`` in
    a thread of its own until ``stop``. Told to stop, it ends event streams, lets requests finish, then returns."""

    def __init__(self, app: FastAPI, listening: socket.socket) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                server_header=False,
                lifespan="on",
                timeout_graceful_shutdown=GRACE,
                timeout_keep_alive=30,
            )
        )
        self._listening = listening
        self._app = app
        self._ready = threading.Event()
        self._thread: threading.Thread | None = None
        self.port: int = listening.getsockname()[1]

    def run_here(self) -> None:
        self.run(sockets=[self._listening])

    def start(self, seconds: float = 10.0) -> None:
        """Returns once it answers."""
        self._thread = threading.Thread(target=self.run_here, name="orchestrator-api", daemon=True)
        self._thread.start()
        if not self._ready.wait(seconds) or not self.started:
            raise ConfigError("the API did not start; the log says why.")

    def stop(self) -> None:
        self.should_exit = True
        if self._thread is not None:
            self._thread.join(timeout=GRACE + 5)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        house: House = self._app.state.house
        await house.watch.close()  # else open streams would keep the server up for all of its grace
        await super().shutdown(sockets)
