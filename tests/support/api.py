"""A real engine with a broker that is a list, a hand that does the steps, and the API on a real port over it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from orchestrator.api.app import create_app
from orchestrator.api.server import ApiServer, listen
from orchestrator.clock import Clock
from orchestrator.domain.ids import Incarnation, JobId, StepRef
from orchestrator.domain.json_values import dumps
from orchestrator.domain.outcome import Failure, FailureClass, Stored
from orchestrator.domain.result import GaveUp, Result, Succeeded
from orchestrator.domain.workflow import Workflow
from orchestrator.engine import submit
from orchestrator.engine.context import Engine
from orchestrator.engine.feed import Feed
from orchestrator.engine.settle import Settle, claim, settle
from orchestrator.settings import Settings
from orchestrator.store import desk, migrations, steps
from orchestrator.store.database import Database
from orchestrator.store.desk import Caller
from orchestrator.testing import ListDispatcher

#: Two agents, one after the other; ``do`` answers for them.
TWO_STEPS: dict[str, Any] = {
    "name": "two-steps",
    "input_schema": {"properties": {"n": {"type": "integer"}}},
    "agents": {"echo": {"kind": "scripted"}},
    "steps": [{"id": "first", "agent": "echo"}, {"id": "second", "agent": "echo"}],
}


def make_engine(url: str) -> Engine:
    """An engine on a migrated database."""
    db = Database(url)
    migrations.upgrade(db)
    clock = Clock()
    engine = Engine(db, clock, Incarnation(f"test-{clock.new_id()}"))
    engine.feed = Feed(db, ListDispatcher(), clock)
    return engine


def do(engine: Engine, job_id: str, path: str, output: Any = None, *, fail: str | None = None) -> None:
    """Claims the ready step at ``path`` and settles it, as a worker would."""
    with engine.db.connect(readonly=True) as session:
        row = steps.load(session, JobId(job_id), [path])[0]  # type: ignore[list-item]
    ref = StepRef(row.job_id, row.path, row.epoch, row.queue)
    mine = claim(engine, [ref])[ref]
    result: Result = Succeeded(Stored(dumps(output)))
    if fail is not None:
        result = GaveUp(Failure(FailureClass.PERMANENT, fail))
    assert settle(engine, [Settle(row.job_id, row.path, row.ref, mine.row.fence, result)])[0].won


def finish(engine: Engine, job_id: str, output: Any = None) -> None:
    """Does both steps of ``TWO_STEPS``."""
    do(engine, job_id, "first", {"first": True})
    do(engine, job_id, "second", output)


def add_key(engine: Engine, role: str, tenant: str = "default") -> str:
    """A new API key."""
    secret = engine.clock.new_secret()
    caller = Caller(engine.clock.new_id(), f"{role} of {tenant}", tenant, role)
    engine.db.run(lambda session: desk.add_key(session, caller, secret))
    return secret


def register(engine: Engine, definition: dict[str, Any] = TWO_STEPS) -> str:
    return submit.register(engine, Workflow.model_validate(definition))


@dataclass(frozen=True, slots=True)
class Api:
    """A running API. ``keys``: one for each role, in tenant ``default``."""

    engine: Engine
    url: str
    keys: dict[str, str]
    server: ApiServer


@contextmanager
def serving(engine: Engine, *, dev: bool = False, **settings: Any) -> Iterator[Api]:
    """The API over ``engine`` on a free loopback port."""
    made = Settings.load(env_file=None, **{"database_url": engine.db.url.render_as_string(False), **settings})
    listening = listen("127.0.0.1", 0)
    server = ApiServer(create_app(engine, made, dev=dev), listening)
    server.start()
    try:
        keys = {role: add_key(engine, role) for role in ("submit", "operate", "admin")}
        yield Api(engine, f"http://127.0.0.1:{server.port}", keys, server)
    finally:
        server.stop()


def sse_frames(text: str) -> list[dict[str, str]]:
    """The frames of an event stream that carry data, field by field."""
    blocks = [block for block in text.split("\n\n") if "data:" in block]
    return [dict(line.split(": ", 1) for line in block.split("\n")) for block in blocks]
