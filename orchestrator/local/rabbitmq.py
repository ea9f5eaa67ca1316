"""A RabbitMQ of our own, with an epmd of its own."""

from __future__ import annotations

import re
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from orchestrator.clock import Clock
from orchestrator.local.find import find_rabbitmq
from orchestrator.local.process import ANSWER_SECONDS, ChildServer, free_port


class ErlangNames(ChildServer):
    """epmd, Erlang's directory of nodes. Our own: the machine's would outlive us and mix our node with others."""

    title = "epmd"

    @property
    def url(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    def _prepare(self) -> None:
        """It needs no files."""

    def _command(self) -> Sequence[str | Path]:
        return ["epmd", "-port", str(self.port), "-address", "127.0.0.1"]

    def _answers(self) -> bool:
        with socket.create_connection(("127.0.0.1", self.port), ANSWER_SECONDS):
            return True


class RabbitServer(ChildServer):
    """A single node without plugins: own node name, cookie, epmd, files and password. Starts in 4 to 10 s."""

    title = "RabbitMQ"
    death_signal = signal.SIGKILL  # its epmd dies in the same instant; a gentle end would hang
    user: ClassVar[str] = "orchestrator"

    def __init__(self, *, directory: Path | None = None, port: int | None = None, clock: Clock | None = None) -> None:
        super().__init__(directory=directory, port=port, clock=clock)
        self._script = find_rabbitmq()
        self._names: ErlangNames | None = None
        self._peer_port = 0

    @property
    def url(self) -> str:
        """The default virtual host, ``/``."""
        return self.vhost_url("%2F")

    def vhost_url(self, name: str) -> str:
        return f"amqp://{self.user}:{self._password()}@127.0.0.1:{self.port}/{name}"

    def create_vhost(self, name: str | None = None) -> str:
        """A fresh virtual host; its URL. About a second."""
        name = name or f"v{self._clock.new_id()}"
        self.control("add_vhost", name)
        self.control("set_permissions", "-p", name, self.user, ".*", ".*", ".*")
        return self.vhost_url(name)

    def delete_vhost(self, url: str) -> None:
        """Deletes it with its queues, and closes its connections."""
        self.control("delete_vhost", url.rpartition("/")[2])

    def control(self, *words: str) -> str:
        """``rabbitmqctl WORDS``; what it printed."""
        tool = self._script.parent / "rabbitmqctl"
        return self.run_tool([tool if tool.exists() else "rabbitmqctl", "--quiet", "-n", self._node(), *words])

    def stop(self) -> None:
        names, self._names = self._names, None
        super().stop()
        if names is not None:
            names.stop()

    def _node(self) -> str:
        return f"orchestrator-{self.port}@localhost"

    def _password(self) -> str:
        found = re.search(r"^default_pass = (.+)$", (self.directory / "rabbitmq.conf").read_text(), re.MULTILINE)
        return found[1] if found else ""

    def _prepare(self) -> None:
        self._names = self._names or ErlangNames(directory=self.directory / "epmd", clock=self._clock)
        self._names.start()
        self._peer_port = self._peer_port or free_port(self._clock)
        (self.directory / "enabled_plugins").write_text("[].\n")
        config = self.directory / "rabbitmq.conf"
        password = self._password() if config.exists() else self._clock.new_secret()
        config.touch(mode=0o600)
        config.write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.port}\n"
            f"default_user = {self.user}\n"
            f"default_pass = {password}\n"
            "log.file = false\nlog.console = true\nlog.console.level = warning\n"
        )

    def _environment(self) -> dict[str, str]:
        return {
            **super()._environment(),
            "ERL_EPMD_PORT": str(self._names.port if self._names else 0),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": self._node(),
            "RABBITMQ_DIST_PORT": str(self._peer_port),
            "RABBITMQ_MNESIA_BASE": str(self.directory / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.directory / "log"),
            "RABBITMQ_CONFIG_FILE": str(self.directory / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.directory / "none.config"),
            "RABBITMQ_CONF_ENV_FILE": str(self.directory / "none.sh"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.directory / "enabled_plugins"),
            # With input "allowed" the script becomes the server by exec, so that we own the server and not a shell;
            # -noinput takes the console away again. Busy waiting costs idle CPU that tests need elsewhere.
            "RABBITMQ_ALLOW_INPUT": "1",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-noinput +sbwt none -kernel inet_dist_use_interface {127,0,0,1}",
        }

    def _command(self) -> Sequence[str | Path]:
        return [self._script]

    def _answers(self) -> bool:
        """The protocol header is met by the first frame of a handshake, which has type 1 (method)."""
        with socket.create_connection(("127.0.0.1", self.port), ANSWER_SECONDS) as connection:
            connection.sendall(b"AMQP\x00\x00\x09\x01")
            return connection.recv(1) == b"\x01"
