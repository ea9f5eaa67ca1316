"""The fault proxy does to a connection what its commands say, and heals."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest

from orchestrator.clock import Clock
from tests.support.fault_proxy import FaultProxy
from tests.support.servers import RedisServer


@pytest.fixture
def proxy(redis_server: RedisServer) -> Iterator[FaultProxy]:
    with FaultProxy(redis_server.start().port) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: FaultProxy) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", proxy.port), 5) as client:
        yield client


def ping(client: socket.socket) -> bytes:
    client.sendall(b"PING\r\n")
    return client.recv(100)


def test_it_passes_bytes_and_rewrites_urls(proxy: FaultProxy, client: socket.socket, redis_server: RedisServer) -> None:
    assert ping(client) == b"+PONG\r\n"
    assert proxy.through(redis_server.url) == f"redis://127.0.0.1:{proxy.port}/0"
    assert proxy.accepted == 1


def test_latency_delays_each_direction(proxy: FaultProxy, client: socket.socket) -> None:
    clock = Clock()
    proxy.latency(0.1)
    began = clock.monotonic()
    assert ping(client) == b"+PONG\r\n"
    assert clock.monotonic() - began >= 0.2


def test_a_cut_resets_what_is_open_and_lets_new_ones_pass(proxy: FaultProxy, client: socket.socket) -> None:
    assert ping(client)
    proxy.cut()
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    with socket.create_connection(("127.0.0.1", proxy.port), 5) as again:
        assert ping(again) == b"+PONG\r\n"


def test_refusing_lasts_until_resume(proxy: FaultProxy, client: socket.socket) -> None:
    proxy.refuse()
    # Reset as soon as it is made: before `connect` returns, or after.
    with (
        suppress(ConnectionResetError),
        socket.create_connection(("127.0.0.1", proxy.port), 5) as refused,
    ):
        assert ended(refused)
    proxy.resume()
    with socket.create_connection(("127.0.0.1", proxy.port), 5) as again:
        assert ping(again) == b"+PONG\r\n"


def test_a_black_hole_is_silent_and_what_was_sent_arrives_later(proxy: FaultProxy, client: socket.socket) -> None:
    assert ping(client)
    proxy.black_hole()
    client.settimeout(0.2)
    with pytest.raises(TimeoutError):
        ping(client)
    with socket.create_connection(("127.0.0.1", proxy.port), 0.2) as fresh, pytest.raises(TimeoutError):
        ping(fresh)
    proxy.resume()
    client.settimeout(5)
    assert client.recv(100) == b"+PONG\r\n"


def test_a_cut_reaches_into_a_black_hole(proxy: FaultProxy, client: socket.socket) -> None:
    assert ping(client)
    proxy.black_hole()
    client.sendall(b"PING\r\n")
    proxy.cut()
    with pytest.raises(ConnectionResetError):
        client.recv(1)


def ended(connection: socket.socket) -> bool:
    """Whether the other side closed or reset it."""
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True
