"""One broker connection that publishes batches. Every failure closes it; the next use opens another.

Used by one thread. A batch is all or unknown: after an error any part of it may have arrived, which is harmless.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Protocol

from orchestrator.canvas.messages import DEAD_QUEUE, Outgoing

#: Seconds a broker may take to confirm a batch.
CONFIRM_SECONDS = 5.0


def open_for_write(app: Any) -> Any:
    """A connected kombu connection on which nothing waits longer than ``CONFIRM_SECONDS`` (RabbitMQ has no default)."""
    connection = app.connection_for_write(transport_options={"read_timeout": CONFIRM_SECONDS})
    connection.connect()
    return connection


def let_go(connection: Any) -> None:
    """Closes a connection that may be broken, without waiting for its other end for more than 1 s."""
    for end in (lambda: connection.collect(socket_timeout=1), connection.release):
        with suppress(Exception):
            end()


class NotConfirmed(Exception):
    """RabbitMQ refused a message of the batch, or closed the channel over it."""


class Line(Protocol):
    def connect(self) -> None:
        """Opens the connection now, or raises what the broker's driver raises."""

    def send(self, batch: Sequence[Outgoing]) -> None:
        """Publishes in order; returns when the broker has them."""

    def close(self) -> None: ...


class KombuLine:
    """Redis and in-process: one pipeline for a batch (``Producer.batch``), answered when all are in the list."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._connection: Any = None
        self._producer: Any = None

    def connect(self) -> None:
        if self._producer is None:
            self._connection = open_for_write(self._app)
            self._producer = self._app.amqp.Producer(self._connection.default_channel, auto_declare=False)

    def send(self, batch: Sequence[Outgoing]) -> None:
        with self._producer.batch(max_size=len(batch)):
            for message in batch:
                self._publish(message)

    def _publish(self, message: Outgoing) -> None:
        self._producer.publish(
            message.body,
            exchange="",
            routing_key=message.queue,
            content_type="application/json",
            content_encoding="utf-8",
            headers=message.headers,
            correlation_id=message.id,
        )

    def close(self) -> None:
        connection, self._connection, self._producer = self._connection, None, None
        if connection is not None:
            let_go(connection)


class ConfirmedLine(KombuLine):
    """RabbitMQ: publisher confirms, awaited once for a batch instead of once for a message."""

    def __init__(self, app: Any) -> None:
        super().__init__(app)
        self._declared: set[str] = set()
        self._sent = 0
        self._unconfirmed: set[int] = set()
        self._refused = False

    def connect(self) -> None:
        if self._producer is not None:
            return
        super().connect()
        self._declared, self._sent, self._refused = set(), 0, False
        self._unconfirmed = set()
        channel = self._connection.default_channel
        # Before any message can reach its delivery limit: RabbitMQ drops what it cannot put there.
        self._app.amqp.queues[DEAD_QUEUE](channel).declare()
        channel.confirm_select()
        channel.events["basic_ack"].add(self._confirmed)
        channel.events["basic_nack"].add(self._nacked)

    def send(self, batch: Sequence[Outgoing]) -> None:
        for queue in {message.queue for message in batch} - self._declared:
            # Without the queue, RabbitMQ drops what is sent to it.
            self._app.amqp.queues[queue](self._producer.channel).declare()
            self._declared.add(queue)
        for message in batch:
            self._publish(message)
            self._sent += 1
            self._unconfirmed.add(self._sent)
        while self._unconfirmed and not self._refused:
            if not self._producer.channel.is_open:
                raise NotConfirmed("the channel was closed")
            self._connection.drain_events(timeout=CONFIRM_SECONDS)
        if self._refused:
            raise NotConfirmed("a message was refused")

    def _confirmed(self, tag: int, multiple: bool) -> None:
        if multiple:
            self._unconfirmed = {sent for sent in self._unconfirmed if sent > tag}
        else:
            self._unconfirmed.discard(tag)

    def _nacked(self, *_: Any) -> None:
        self._refused = True


def open_line(app: Any) -> Line:
    """The right line for the app's broker, not yet connected."""
    is_rabbitmq = app.connection_for_write().transport.driver_type == "amqp"
    return ConfirmedLine(app) if is_rabbitmq else KombuLine(app)
