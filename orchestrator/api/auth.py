"""Who is asking: bearer keys that name a tenant and a role; submit < operate < admin.

A key is stored as its hash. A look-up is remembered for ``REMEMBER`` seconds, so a revoked key works at most that long.
Without keys (``dev``, or ORCHESTRATOR_INSECURE_NO_AUTH on a loopback address) everybody on this machine is admin, but
no web page is: a browser sends what any page asks of it.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from fastapi import Depends, Query
from starlette.requests import Request

from orchestrator.api.threads import Threads
from orchestrator.clock import Clock
from orchestrator.domain.errors import ConfigError, Forbidden, InvalidInput, Unauthorized
from orchestrator.engine.context import Engine
from orchestrator.settings import Settings, is_loopback
from orchestrator.store import desk
from orchestrator.store.desk import Caller

Role = Literal["submit", "operate", "admin"]
RANK: dict[str, int] = {"submit": 0, "operate": 1, "admin": 2}
#: Seconds a found key, and a key that was not found, is remembered.
REMEMBER, REMEMBER_UNKNOWN = 5.0, 1.0
_MOST = 10_000
ANYONE = Caller("none", "anyone on this machine", "default", "admin")
#: What an admin writes to read over all tenants.
ALL = "*"


class Door:
    """``open``: nobody needs a key."""

    def __init__(self, engine: Engine, threads: Threads, *, open: bool) -> None:
        self._engine = engine
        self._threads = threads
        self.open = open
        self._known = _Known(engine.clock)

    async def caller(self, request: Request) -> Caller:
        """Raises ``Unauthorized``, ``Forbidden`` (a web page at an open door), ``Unavailable``."""
        if self.open:
            _refuse_pages(request)
            return ANYONE
        kind, _, secret = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not secret.strip():
            raise Unauthorized(
                "no API key.", mend="Send Authorization: Bearer KEY; `orchestrator keys create` makes one."
            )
        found = await self._look_up(secret.strip())
        if found is None:
            raise Unauthorized("this API key is unknown or revoked.", mend="`orchestrator keys create` makes one.")
        return found

    async def _look_up(self, secret: str) -> Caller | None:
        name = desk.hash_secret(secret)
        known, found = self._known.get(name)
        if not known:
            found = await self._threads.run(
                self._engine.db.run, lambda session: desk.caller_of(session, secret), readonly=True
            )
            self._known.put(name, found)
        return found


class _Known:
    """Callers by the hash of their key, each for a few seconds."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._callers: dict[str, tuple[float, Caller | None]] = {}

    def get(self, name: str) -> tuple[bool, Caller | None]:
        with self._lock:
            until, caller = self._callers.get(name, (0.0, None))
            return until > self._clock.monotonic(), caller

    def put(self, name: str, caller: Caller | None) -> None:
        seconds = REMEMBER if caller is not None else REMEMBER_UNKNOWN
        with self._lock:
            if len(self._callers) >= _MOST:
                self._callers.clear()
            self._callers[name] = (self._clock.monotonic() + seconds, caller)


def _refuse_pages(request: Request) -> None:
    """An open door is for programs here: neither for pages from elsewhere nor for names that now point to loopback."""
    headers = request.headers
    host = urlsplit(f"//{headers.get('host', '')}").hostname or ""
    origin = headers.get("origin")
    foreign = origin is not None and not is_loopback(urlsplit(origin).hostname or "")
    if not is_loopback(host) or foreign or headers.get("sec-fetch-site") == "cross-site":
        raise Forbidden("without API keys only programs on this machine are served, no web pages.")


@dataclass(frozen=True, slots=True)
class Who:
    """The caller, and the tenant the request is about; None: all of them."""

    caller: Caller
    tenant: str | None

    @property
    def one_tenant(self) -> str:
        """The tenant to write to."""
        if self.tenant is None:
            raise InvalidInput(f"a job belongs to one tenant, not to {ALL!r}.", mend="Name it: ?tenant=NAME.")
        return self.tenant


_TENANT = Query(pattern=r"^(\*|[A-Za-z0-9][A-Za-z0-9._-]{0,62})$", description="Admins only: whose; `*` for all.")


def allow(role: Role) -> Any:
    """A dependency: the caller has at least ``role``. ``caller`` was found before the body was read (``body.py``)."""

    def who(request: Request, tenant: Annotated[str | None, _TENANT] = None) -> Who:
        caller: Caller = request.state.caller
        if RANK[caller.role] < RANK[role]:
            raise Forbidden(f"this key has the role {caller.role}; it takes {role}.", mend="Use another key.")
        if tenant is None or tenant == caller.tenant:
            return Who(caller, caller.tenant)
        if caller.role != "admin":
            raise Forbidden("only an admin's key reaches other tenants.", mend="Leave `tenant` out.")
        return Who(caller, None if tenant == ALL else tenant)

    return Depends(who)


def check_bind(engine: Engine, settings: Settings, host: str, *, dev: bool = False) -> None:
    """Raises ``ConfigError`` (exit 78) when the API would listen on ``host`` and nobody could use it.

    Without a key in SQL it starts only on a loopback address, for ``dev`` or with ORCHESTRATOR_INSECURE_NO_AUTH.
    """
    if is_open(settings, host, dev=dev):
        return
    keys = engine.db.run(desk.keys, readonly=True)
    if not any(key["revoked_at"] is None for key in keys):
        raise ConfigError(
            f"the API would listen on {host} and there is no API key.",
            mend="Run: orchestrator keys create (or, on a loopback address, set ORCHESTRATOR_INSECURE_NO_AUTH=1).",
        )


def is_open(settings: Settings, host: str, *, dev: bool) -> bool:
    """Whether ``host`` is served without keys: never beyond this machine."""
    return (dev or settings.insecure_no_auth) and is_loopback(host)
