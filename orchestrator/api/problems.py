"""Errors as RFC 9457 problem+json. Every ``OrchestratorError`` knows its code and status; all else is ``internal``."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from orchestrator.domain.errors import (
    DefinitionError,
    InvalidInput,
    Locked,
    NotFound,
    OrchestratorError,
    Unauthorized,
    Unavailable,
    UsageError,
)

log = logging.getLogger("orchestrator.api")

MEDIA_TYPE = "application/problem+json"
#: Seconds a client waits before it tries again, where nobody knows better.
RETRY_AFTER = 1
_BUG = OrchestratorError("something went wrong here; it is in the log.", mend="Report it with the time it happened.")


class UnsupportedMediaType(UsageError):
    code = "unsupported_media_type"
    status = 415


class MethodNotAllowed(UsageError):
    code = "method_not_allowed"
    status = 405


class InvalidRequest(InvalidInput):
    """A request that misses its schema: each problem names the JSON pointer, or the parameter, that is wrong."""

    def __init__(self, problems: Sequence[Mapping[str, Any]]) -> None:
        self.problems = list(problems)
        super().__init__("; ".join(f"{p.get('pointer', p.get('parameter'))}: {p['message']}" for p in problems))


def install(app: FastAPI) -> None:
    """Every error that a route or the router raises becomes a problem."""
    app.add_exception_handler(OrchestratorError, _orchestrator_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)


async def _orchestrator_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, OrchestratorError)
    return respond(error, request.url.path)


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return respond(InvalidRequest([_complaint(found) for found in error.errors()[:20]]), request.url.path)


async def _http_error(request: Request, error: Exception) -> Response:
    """What the framework says itself: no such route, no such method."""
    assert isinstance(error, HTTPException)
    path = request.url.path
    match error.status_code:
        case 404:
            return respond(NotFound(f"there is no {path}.", mend="See /openapi.json."), path)
        case 405:
            return respond(MethodNotAllowed(f"{path} has no {request.method}."), path, headers=error.headers)
        case _:
            return respond(UsageError(str(error.detail)), path, status=error.status_code)


def _complaint(found: Mapping[str, Any]) -> dict[str, Any]:
    where, *rest = found["loc"]
    message = str(found["msg"]).removeprefix("Value error, ")
    if where != "body":
        return {"parameter": ".".join(map(str, rest)), "in": where, "message": message}
    return {"pointer": "".join(f"/{_escaped(part)}" for part in rest), "message": message}


def _escaped(part: object) -> str:
    return str(part).replace("~", "~0").replace("/", "~1")


def bug(path: str) -> Response:
    """The answer to an error nobody foresaw: it tells nothing; the log does."""
    return respond(_BUG, path)


def respond(
    error: OrchestratorError, path: str, *, status: int | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    extra = dict(headers or {})
    if isinstance(error, Unavailable):
        extra["Retry-After"] = str(error.context.get("retry_after", RETRY_AFTER))
    if isinstance(error, Unauthorized):
        extra["WWW-Authenticate"] = "Bearer"
    if error.status >= 500:
        log.warning("api.failed", extra={"code": error.code, "path": path, "error": str(error)})
    # The standard library's writer escapes whatever a message may quote; ours would refuse it.
    body = json.dumps(problem(error, path, status or error.status), default=str)
    return Response(body, status or error.status, extra, media_type=MEDIA_TYPE)


def problem(error: OrchestratorError, path: str, status: int) -> dict[str, Any]:
    body: dict[str, Any] = {
        "type": f"urn:orchestrator:error:{error.code}",
        "title": error.code.replace("_", " ").capitalize(),
        "status": status,
        "detail": _detail(error),
        "code": error.code,
        "instance": quote(path),
    }
    if isinstance(error, DefinitionError):
        body["problems"] = [dataclasses.asdict(found) for found in error.problems]
    elif isinstance(error, InvalidRequest):
        body["problems"] = error.problems
    return body


def _detail(error: OrchestratorError) -> str:
    """What a driver said names hosts and users: that is for the log."""
    if isinstance(error, Unavailable) and not isinstance(error, Locked) and error.__cause__ is not None:
        return "A server that this needs does not answer. Try again in a moment."
    return str(error)
