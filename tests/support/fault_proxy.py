"""A TCP proxy that misbehaves on command: latency, cuts, silence.

``with FaultProxy(server.port) as proxy: connect(proxy.through(server.url))``. A command applies to open connections and
to new ones, and holds until ``resume``.
"""

from __future__ import annotations

import re
import socket
import struct
import threading
from contextlib import suppress
from typing import Self

CHUNK = 65536
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class FaultProxy:
    """Forwards 127.0.0.1:``port`` to 127.0.0.1:``target``. Its threads end with ``stop``."""

    def __init__(self, target: int) -> None:
        self.target = target
        #: Seconds by which each chunk is late, in each direction.
        self._latency = 0.0
        self._closing = threading.Event()
        #: Set while bytes pass; clear in a black hole.
        self._passing = threading.Event()
        self._passing.set()
        self._refusing = False
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        #: Those of them that end by a reset, not by an orderly close.
        self._reset: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(None)  # whatever default another library has set for the moment
        self.port: int = self._listener.getsockname()[1]
        #: Connections accepted so far.
        self.accepted = 0

    def __enter__(self) -> Self:
        self._spawn(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def through(self, url: str) -> str:
        """``url`` with the target's port replaced by the proxy's."""
        return re.sub(rf"(127\.0\.0\.1|localhost):{self.target}\b", f"127.0.0.1:{self.port}", url)

    def latency(self, seconds: float) -> None:
        self._latency = seconds

    def cut(self) -> None:
        """Resets every open connection, once. New ones pass."""
        with self._lock:
            self._reset |= (
                self._open
            )  # all before any wakes: a pump passes an orderly end on to a sink that is not here
            for connection in self._open:
                with suppress(OSError):  # the other side may have gone already
                    connection.shutdown(socket.SHUT_RD)  # wakes its pump and sends nothing

    def refuse(self) -> None:
        """Resets every open connection, and each new one as soon as it is made."""
        self._refusing = True
        self.cut()

    def black_hole(self) -> None:
        """Connections stay and new ones are accepted, but no byte passes; what was sent arrives after ``resume``."""
        self._passing.clear()

    def resume(self) -> None:
        """Heals everything."""
        self._latency = 0.0
        self._refusing = False
        self._passing.set()

    def stop(self) -> None:
        self._closing.set()
        self._passing.set()
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            pass  # wakes the thread in accept
        self.cut()
        for thread in self._threads:
            thread.join(5)
        self._listener.close()

    def _spawn(self, work: object, *arguments: socket.socket) -> threading.Thread:
        thread = threading.Thread(target=work, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()
        return thread

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            client.settimeout(None)
            if self._closing.is_set():
                client.close()
                return
            self.accepted += 1
            self._spawn(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        """One connection from beginning to end."""
        self._open_one(client)
        server = None
        try:
            self._wait_to_pass(client)
            if self._refusing:
                raise ConnectionRefusedError
            server = socket.create_connection(("127.0.0.1", self.target), 5)
            server.settimeout(None)
            self._open_one(server)
            back = self._spawn(self._pump, server, client)
            self._pump(client, server)
            back.join()
        except OSError:
            self._reset.add(client)
        finally:
            for end in filter(None, (client, server)):
                self._close_one(end)

    def _open_one(self, connection: socket.socket) -> None:
        with self._lock:
            self._open.add(connection)

    def _close_one(self, connection: socket.socket) -> None:
        with self._lock:
            if connection in self._reset:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self._open.discard(connection)
            self._reset.discard(connection)
            connection.close()

    def _wait_to_pass(self, connection: socket.socket) -> None:
        """Returns outside a black hole; raises OSError when the connection is cut meanwhile."""
        while not self._passing.wait(0.02):
            if connection in self._reset:
                raise ConnectionResetError

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        """Copies until either side ends, then passes the end on."""
        with suppress(OSError):
            while data := source.recv(CHUNK):
                if self._latency:
                    self._closing.wait(self._latency)
                self._wait_to_pass(source)
                sink.sendall(data)
        if sink not in self._reset:
            with suppress(OSError):
                sink.shutdown(socket.SHUT_WR)
