"""Registered workflows: their names, and their versions, which never change. They are shared by all tenants."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from orchestrator.api.auth import allow
from orchestrator.api.body import Json, Route, media_type, read
from orchestrator.api.house import House, house_of
from orchestrator.api.problems import UnsupportedMediaType
from orchestrator.api.routes.jobs import definition
from orchestrator.api.schemas import Registered, WorkflowList, WorkflowView
from orchestrator.domain.errors import DefinitionError, NotFound, Problem
from orchestrator.domain.failure_paths import left_to_default
from orchestrator.domain.json_values import NotJson, loads
from orchestrator.domain.parse import parse_workflow
from orchestrator.domain.workflow import Workflow
from orchestrator.engine import submit
from orchestrator.engine.policy import enforce
from orchestrator.store import workflows
from orchestrator.store.session import Session

router = APIRouter(prefix="/v1/workflows", tags=["workflows"], route_class=Route)

_YAML = frozenset({"application/yaml", "application/x-yaml", "text/yaml"})
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"type": "object"}},
            "application/yaml": {"schema": {"type": "string"}},
        },
    }
}


@router.get("", response_model=WorkflowList, dependencies=[allow("submit")])
async def list_workflows(request: Request) -> Response:
    """Each name with its newest version."""
    house = house_of(request)
    rows = await house.threads.run(house.engine.db.run, workflows.names, readonly=True)
    names: dict[str, list[str]] = {}
    for row in rows:
        names.setdefault(str(row["name"]), []).append(str(row["version"]))
    summary = [{"name": name, "version": found[0], "versions": len(found)} for name, found in names.items()]
    return Json({"workflows": summary})


@router.get("/{name}", response_model=WorkflowView, dependencies=[allow("submit")])
async def show_workflow(request: Request, name: str, version: str | None = None) -> Response:
    """The newest version (or the named one) with its definition, and the list of versions."""
    house = house_of(request)

    def work(session: Session) -> dict[str, Any]:
        rows = [row for row in workflows.names(session) if row["name"] == name]
        wanted = [str(row["version"]) for row in rows if version is None or str(row["version"]).startswith(version)]
        text = workflows.definition(session, wanted[0]) if wanted else None
        if text is None:
            raise NotFound(f"no workflow {name!r}{f' in version {version}' if version else ''} is registered.")
        versions = [{key: row[key] for key in ("version", "listed_at", "created_at")} for row in rows]
        return {"name": name, "version": wanted[0], "definition": loads(text), "versions": versions}

    return Json(await house.threads.run(house.engine.db.run, work, readonly=True))


@router.put("/{name}", response_model=Registered, openapi_extra=_BODY, dependencies=[allow("admin")])
async def register_workflow(request: Request, name: str, strict: bool = False) -> Response:
    """Makes a definition (JSON, or YAML as it stands in a file) the newest version of its name.

    An unchanged definition keeps its version. All tenants share names, so this takes an admin's key. `strict` refuses
    steps that leave it to the default what happens when they fail; else they are named in `warnings`.
    """
    house = house_of(request)
    kind = media_type(request)
    if kind != "application/json" and kind not in _YAML:
        raise UnsupportedMediaType(
            f"the body is {kind or 'of no type'}.", mend="Send Content-Type: application/json or application/yaml."
        )
    raw = await read(request, house.settings.max_body_bytes)

    def work() -> dict[str, Any]:
        workflow = _workflow(house, raw, is_yaml=kind in _YAML)
        if workflow.name != name:
            raise DefinitionError([Problem(f"the definition is named {workflow.name!r}, the address {name!r}", "name")])
        version = submit.register(house.engine, workflow, strict=strict)
        return {"name": name, "version": version, "warnings": list(map(str, left_to_default(workflow)))}

    return Json(await house.threads.run(work))


def _workflow(house: House, raw: bytes, *, is_yaml: bool) -> Workflow:
    if not is_yaml:
        value = loads(raw)
        if not isinstance(value, dict):
            raise DefinitionError([Problem("a workflow is a map with name and steps")])
        return definition(house, value)
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise NotJson("the file is not UTF-8; save it so") from None
    workflow = parse_workflow(text)
    enforce(workflow, house.policy)
    return workflow
