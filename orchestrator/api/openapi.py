"""The published description of the API (OpenAPI 3.1), made to say what errors really look like."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from orchestrator.api import problems

_PUBLIC = frozenset({"/livez", "/readyz", "/metrics", "/metrics/global"})


def describe(app: FastAPI, *, keys: bool) -> dict[str, Any]:
    """Made once per process. ``keys``: whether callers need one."""
    if app.openapi_schema is None:
        app.openapi_schema = _described(app, keys=keys)
    return app.openapi_schema


def _described(app: FastAPI, *, keys: bool) -> dict[str, Any]:
    schema = get_openapi(
        title=app.title,
        version=app.version,
        openapi_version="3.1.0",
        description=app.description,
        routes=app.routes,
        webhooks=app.webhooks.routes,
    )
    if keys:
        schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            if keys and path not in _PUBLIC:
                operation["security"] = [{"key": []}]
            for status, answer in operation["responses"].items():
                if status in ("4XX", "5XX"):
                    answer["content"] = {problems.MEDIA_TYPE: answer["content"]["application/json"]}
    return schema
