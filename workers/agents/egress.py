"""Which addresses agents may be called at: an allow-list, checked before any connection is made.

It compares what is written, not what a name resolves to: who controls the DNS of an allowed name controls where its
calls go. Redirects are never followed, so an allowed server cannot send a call elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import unquote

import httpx

from orchestrator.domain.errors import ConfigError
from orchestrator.domain.outcome import FailureClass
from workers.agents.failing import failed

_PATTERN = re.compile(r"(https?)://(\*|(?:\*\.)?[^\s/:?#@*\[\]\\]+|\[[0-9A-Fa-f:.]+\])(?::(\d{1,5}|\*))?(/[^\s?#*]*)?")
_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class _Rule:
    scheme: str
    #: ``*`` (any), ``*.example.com`` (its subdomains, not itself) or one host.
    host: str
    port: int | None  # None: any
    path: str

    def allows(self, url: httpx.URL) -> bool:
        return (
            url.scheme == self.scheme
            and self._host(url.raw_host.decode("ascii"))
            and (self.port is None or self.port == (url.port or _DEFAULT_PORTS[self.scheme]))
            and self._path(url.raw_path.decode("ascii").partition("?")[0])
        )

    def _host(self, host: str) -> bool:
        if self.host.startswith("*"):
            return host.endswith(self.host[1:]) and len(host) > len(self.host) - 1
        return host == self.host

    def _path(self, path: str) -> bool:
        if self.path in ("", "/"):
            return True
        if _climbs(path):
            return False
        return path == self.path or path.startswith(self.path if self.path.endswith("/") else f"{self.path}/")


def _climbs(path: str) -> bool:
    """Whether some server may read ``path`` as leading upwards: ``..`` plain, quoted (twice), or as ``..;x``."""
    for _ in range(4):
        if "\\" in path or any(segment.partition(";")[0] in (".", "..") for segment in path.split("/")):
            return True
        if (plainer := unquote(path)) == path:
            return False
        path = plainer
    return True


def _rule(pattern: str) -> _Rule:
    match = _PATTERN.fullmatch(pattern.strip())
    if match is None or int(match[3] if match[3] and match[3] != "*" else 0) > 65535:
        raise ConfigError(
            f"ORCHESTRATOR_EGRESS: {pattern!r} is not an address pattern.",
            mend="Write scheme://host[:port|:*][/path], as in https://api.example.com/ or http://127.0.0.1:*.",
        )
    scheme, host, port, path = match.groups()
    star = host[:2] if host.startswith("*.") else ""
    if host != "*":
        try:
            host = star + httpx.URL(f"{scheme}://{host[len(star) :]}/").raw_host.decode("ascii")
        except httpx.InvalidURL as error:
            raise ConfigError(f"ORCHESTRATOR_EGRESS: {pattern!r} has no valid host: {error}.") from error
    number = None if port == "*" else int(port) if port else _DEFAULT_PORTS[scheme]
    return _Rule(scheme, host, number, httpx.URL(f"{scheme}://x{path or '/'}").raw_path.decode("ascii"))


class Egress:
    """The allow-list. An empty one allows nothing; ``unrestricted`` (for ``run`` and ``dev``) allows any http(s) URL.

    A pattern is ``scheme://host[:port][/path]``: the host is exact, ``*.example.com`` or ``*``; no port means the
    scheme's own, ``:*`` any; a path allows itself and what lies below it (``/v1`` allows ``/v1/x``, not ``/v10``).
    A pattern that cannot be read raises ``ConfigError``.
    """

    def __init__(self, patterns: Sequence[str] = (), *, unrestricted: bool = False) -> None:
        self._rules = tuple(_rule(pattern) for pattern in patterns)
        self._unrestricted = unrestricted

    def check(self, url: str) -> httpx.URL:
        """``url`` parsed, to be used for the call as it is; raises ``AgentFailed`` (refused_by_policy)."""
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise failed(FailureClass.REFUSED_BY_POLICY, f"The agent's url cannot be read: {error}.") from error
        port_exists = parsed.port is None or 0 < parsed.port <= 65535
        if parsed.scheme not in _DEFAULT_PORTS or not parsed.raw_host or not port_exists:
            raise failed(FailureClass.REFUSED_BY_POLICY, f"{shown(parsed)} is not an http or https URL with a host.")
        if parsed.userinfo:
            raise failed(
                FailureClass.REFUSED_BY_POLICY,
                f"The agent's url for host {parsed.host} carries a user name or password. Send credentials in headers.",
            )
        if not (self._unrestricted or any(rule.allows(parsed) for rule in self._rules)):
            raise failed(
                FailureClass.REFUSED_BY_POLICY,
                f"{shown(parsed)} is not in ORCHESTRATOR_EGRESS, so it was not called. "
                f"To allow it, add {parsed.scheme}://{parsed.netloc.decode('ascii')}/ there and restart the worker.",
            )
        return parsed


def shown(url: httpx.URL) -> str:
    """``url`` as it may be logged and stored: without user, query and fragment, where secrets live."""
    return str(url.copy_with(userinfo=b"", query=None, fragment=None))
