"""Who may run what: whether a definition from outside may be accepted here. Pure: what is written decides.

The worker checks again before it imports or calls anything (``workers/agents``); saying no here is for the caller's
sake, who learns it at once, with the place, instead of from a dead letter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import assert_never
from urllib.parse import SplitResult, unquote, urlsplit

from orchestrator.domain.errors import DefinitionError, Problem
from orchestrator.domain.workflow import ChatAgent, HttpAgent, PythonAgent, ScriptedAgent, Workflow

_PORTS = {"http": 80, "https": 443}
_PATTERN = re.compile(r"(https?)://(\*|(?:\*\.)?[^\s/:?#@*\[\]\\]+|\[[0-9A-Fa-f:.]+\])(?::(\d{1,5}|\*))?(/[^\s?#*]*)?")


class RefusedByPolicy(DefinitionError):
    """A definition that names what it may not run here."""

    code = "refused_by_policy"


@dataclass(frozen=True, slots=True)
class Policy:
    """``packages`` python targets may come from, URL patterns (``egress``) that may be called.

    ``None`` allows any: ``dev`` gives ``packages=None``, because its worker also allows the workflows' own directory,
    and ``egress=None``.
    """

    packages: Sequence[str] | None = ()
    egress: Sequence[str] | None = ()


def enforce(workflow: Workflow, policy: Policy) -> None:
    """Raises ``RefusedByPolicy`` naming every agent of ``workflow`` that may not run here."""
    problems = list(refusals(workflow, policy))
    if problems:
        raise RefusedByPolicy(problems)


def refusals(workflow: Workflow, policy: Policy) -> Iterator[Problem]:
    for name, agent in workflow.agents.items():
        place = f"agents.{name}"
        match agent:
            case PythonAgent(target=target, reconcile=reconcile):
                yield from _refused_targets({f"{place}.target": target, f"{place}.reconcile": reconcile}, policy)
            case HttpAgent(url=url, reconcile_url=reconcile_url):
                yield from _refused_urls({f"{place}.url": url, f"{place}.reconcile_url": reconcile_url}, policy)
            case ChatAgent(base_url=base_url):
                # Without a base_url it calls the operator's own endpoint.
                yield from _refused_urls({f"{place}.base_url": base_url}, policy)
            case ScriptedAgent():
                pass
            case _:
                assert_never(agent)


def _refused_targets(named: dict[str, str | None], policy: Policy) -> Iterator[Problem]:
    for place, target in named.items():
        if target is not None and not _package_allows(policy.packages, target):
            yield Problem(
                f"the target {target!r} is outside ORCHESTRATOR_AGENT_PACKAGES; name its package there", place
            )


def _refused_urls(called: dict[str, str | None], policy: Policy) -> Iterator[Problem]:
    for place, url in called.items():
        if url is not None and not _url_allowed(policy.egress, url):
            yield _refused_url(url, place)


def enforce_address(url: str, policy: Policy, place: str) -> None:
    """Raises ``RefusedByPolicy`` unless ``url`` may be called from here."""
    if not _url_allowed(policy.egress, url):
        raise RefusedByPolicy([_refused_url(url, place)])


def _refused_url(url: str, place: str) -> Problem:
    shown = url.partition("?")[0].rpartition("@")[2]
    return Problem(f"{shown!r} is not an address that ORCHESTRATOR_EGRESS allows; add it there", place)


def _package_allows(packages: Sequence[str] | None, target: str) -> bool:
    if packages is None:
        return True
    module = target.partition(":")[0]
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def _url_allowed(patterns: Sequence[str] | None, url: str) -> bool:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    if parts.scheme not in _PORTS or not parts.hostname or parts.username is not None or port == 0:
        return False
    if re.search(r"[\s\\]", url):
        return False
    return patterns is None or any(_matches(pattern, parts) for pattern in patterns)


def _matches(pattern: str, url: SplitResult) -> bool:
    match = _PATTERN.fullmatch(pattern.strip())
    if match is None:
        return False
    scheme, host, port, path = match.groups()
    if url.scheme != scheme or not _host_matches(_ascii(host).strip("[]"), _ascii(url.hostname or "")):
        return False
    if port != "*" and (url.port or _PORTS[scheme]) != int(port or _PORTS[scheme]):
        return False
    return _path_matches(path or "/", url.path)


def _ascii(host: str) -> str:
    """The host as DNS spells it; one that has no such form stays as it is, and matches nothing but itself."""
    try:
        return host.lower() if host.isascii() else host.encode("idna").decode()
    except UnicodeError:
        return host


def _host_matches(pattern: str, host: str) -> bool:
    if pattern.startswith("*"):
        return host.endswith(pattern[1:]) and len(host) >= len(pattern)
    return host == pattern


def _path_matches(pattern: str, path: str) -> bool:
    if pattern == "/":
        return True
    if _climbs(path):
        return False
    return path == pattern or path.startswith(pattern if pattern.endswith("/") else f"{pattern}/")


def _climbs(path: str) -> bool:
    """Whether some server may read ``path`` as leading upwards: ``..`` plain, quoted (twice), or as ``..;x``."""
    for _ in range(4):
        if "\\" in path or any(segment.partition(";")[0] in (".", "..") for segment in path.split("/")):
            return True
        if (plainer := unquote(path)) == path:
            return False
        path = plainer
    return True
