"""Is the broker there, and does it still hold what it held? One question a second, over a connection of its own."""

from __future__ import annotations

import threading
from typing import Any, Final

from orchestrator.canvas.publisher import let_go, open_for_write
from orchestrator.clock import Clock
from orchestrator.domain.errors import Unavailable

EPOCH_KEY: Final = "orchestrator:epoch"


class BrokerProbe:
    """Safe to use from several threads."""

    def __init__(self, app: Any, clock: Clock) -> None:
        self._app = app
        self._clock = clock
        self._lock = threading.Lock()
        self._connection: Any = None

    def epoch(self) -> str | None:
        """Redis: a random key, made when missing; in-process: the broker's own; RabbitMQ: None, once it has answered.

        Raises ``Unavailable`` within a few seconds.
        """
        with self._lock:
            try:
                return self._ask()
            except Exception as error:
                self._drop()
                raise Unavailable(
                    f"The broker does not answer: {error}.", mend="Check ORCHESTRATOR_BROKER_URL and the broker."
                ) from error

    def close(self) -> None:
        with self._lock:
            self._drop()

    def _ask(self) -> str | None:
        if self._connection is None:
            self._connection = open_for_write(self._app)
        channel = self._connection.default_channel
        match self._connection.transport.driver_type:
            case "redis":
                return self._redis_epoch(channel)
            case "memory":
                return str(channel.broker.epoch)
            case _:
                channel.basic_qos(0, 1, False)  # the cheapest question that has an answer
                return None

    def _redis_epoch(self, channel: Any) -> str:
        with channel.conn_or_acquire() as client:
            found = client.get(EPOCH_KEY)
            if found is None:
                client.set(EPOCH_KEY, self._clock.new_id(), nx=True)  # another process may be quicker
                found = client.get(EPOCH_KEY)
            return bytes(found or b"").decode()

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            let_go(connection)
