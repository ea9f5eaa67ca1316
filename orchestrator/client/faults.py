"""From an answer that is none to the error it stands for; and whether, and when, to try again. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.domain.errors import (
    ConfigError,
    DefinitionError,
    OrchestratorError,
    Problem,
    SubmitInProgress,
    Unavailable,
    UsageError,
)
from orchestrator.domain.json_values import NotJson, loads

#: How often a call is sent at most.
TRIES = 4
#: Seconds between two tries, at most.
MAX_DELAY = 10.0
_PROXY = frozenset({429, 502, 503, 504})


#: Codes whose answers list what is wrong in a definition, place by place.
_NAMED = frozenset({"invalid_definition", "refused_by_policy", "left_to_default"})


def error_of(status: int, headers: Mapping[str, str], raw: bytes) -> OrchestratorError:
    """The class is found by the problem's ``code``: what the server raised is what the caller catches."""
    try:
        body = loads(raw)
    except NotJson:
        body = None
    retry_after = _seconds(headers.get("retry-after"))
    if not isinstance(body, dict) or not isinstance(body.get("code"), str):
        text = f"the server answered {status} without a problem document."
        kind = Unavailable if status in _PROXY else OrchestratorError
        return kind(text, mend="Is something else listening at this address?", retry_after=retry_after)
    code, detail = body["code"], str(body.get("detail", body["code"]))
    if isinstance(body.get("problems"), list) and code in _NAMED:
        return _definition_error(code, body["problems"])
    return _class_of(code, status)(detail, retry_after=retry_after)


def _definition_error(code: str, problems: list[Any]) -> DefinitionError:
    known = Problem.__dataclass_fields__
    found = [Problem(**{k: v for k, v in p.items() if k in known}) for p in problems if isinstance(p, dict)]
    if code == DefinitionError.code:
        return DefinitionError(found)
    kind: type[DefinitionError] = type(code.title().replace("_", ""), (DefinitionError,), {"code": code})
    return kind(found)


def _class_of(code: str, status: int) -> type[OrchestratorError]:
    """A code of a newer server becomes a class of its own below the nearest known one."""
    found = _by_code(OrchestratorError).get(code)
    if found is not None:
        return found
    base = Unavailable if status in _PROXY else UsageError if status < 500 else OrchestratorError
    return type("ServerError", (base,), {"code": code, "status": status})


def _by_code(top: type[OrchestratorError]) -> dict[str, type[OrchestratorError]]:
    """The classes of the one tree in ``domain/errors``; of two with a code the upper one."""
    known: dict[str, type[OrchestratorError]] = {}
    for kind in top.__subclasses__():
        if kind.__module__ == OrchestratorError.__module__:
            known = {**_by_code(kind), **known, kind.code: kind}
    return known


def unreachable(url: str, reason: Exception) -> Unavailable:
    why = str(reason) or type(reason).__name__
    return Unavailable(f"{url} does not answer: {why}.", mend="Is the API running, and is this its address?")


def no_url() -> ConfigError:
    return ConfigError("this client has no url.", mend='Make it with Client("http://…"), or pass connection=.')


def delay(error: OrchestratorError, tries: int, uniform: float, *, repeatable: bool, unsent: bool) -> float | None:
    """Seconds to wait before the next try; None: do not try again. ``unsent``: the request never left this machine."""
    if tries >= TRIES or not (repeatable or unsent):
        return None
    if not isinstance(error, (Unavailable, SubmitInProgress)):
        return None
    asked = error.context.get("retry_after")
    if asked is not None:
        return float(asked) if asked <= MAX_DELAY else None
    return float(min(MAX_DELAY, 0.1 * 2**tries) * (0.5 + uniform / 2))


def _seconds(text: str | None) -> float | None:
    """Retry-After in seconds; a date is not worth its parsing here."""
    return float(text) if text is not None and text.isascii() and text.isdigit() else None
