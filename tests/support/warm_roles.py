"""What a child of the warm parent does: each role is the body of the real command, in a process with its own settings.

A child tells what it logs (and that it is ready) as JSON lines on its wire; a test arms crash points by the same wire.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import signal
import socket
import threading
import time
from typing import Any

from orchestrator import crashpoints
from orchestrator.clock import Clock
from tests.support import warm_postman

#: Imported before the first fork, beside what these import.
NEEDED = (
    "celery.apps.worker",
    "kombu.transport.redis",
    "orchestrator.cli.worker",
    "orchestrator.engine.dead_letters",
    "orchestrator.telemetry.serve",
    "psycopg",
    "sqlalchemy.dialects.postgresql.psycopg",
    "sqlalchemy.dialects.sqlite.pysqlite",
    "tests.support.ledger",
    "workers.embedded",
    "workers.pool",
    "workers.tasks",
)
#: What a log record always has: the rest was said by whoever logged it.
_USUAL = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime"}


class Wire(logging.Handler):
    """The child's end: says events, hears ``{"arm": text}``."""

    def __init__(self, end: socket.socket) -> None:
        super().__init__(logging.INFO)
        self._end = end
        self._sending = threading.Lock()

    def say(self, event: str, **more: Any) -> None:
        line = json.dumps({"event": event, **more}, default=str).encode() + b"\n"
        with self._sending:
            self._end.sendall(line)

    def emit(self, record: logging.LogRecord) -> None:
        more = {name: value for name, value in record.__dict__.items() if name not in _USUAL}
        if record.exc_info is not None:
            more["error"] = repr(record.exc_info[1])
        try:
            self.say(record.getMessage(), **{**more, "level": record.levelname})
        except OSError:  # the test has gone: nobody listens
            self.handleError(record)

    def listen(self) -> None:
        threading.Thread(target=self._hear, name="test-wire", daemon=True).start()

    def _hear(self) -> None:
        for line in self._end.makefile("rb"):
            crashpoints.arm(json.loads(line)["arm"])
            self.say("armed")


def load() -> None:
    """Imports all that any role needs; starts nothing."""
    for name in NEEDED:
        importlib.import_module(name)


def live(order: dict[str, Any], end: socket.socket) -> int:
    """The child's exit code."""
    for name in [name for name in os.environ if name.startswith("ORCHESTRATOR_")]:
        del os.environ[name]
    os.environ.update(order["environment"])
    crashpoints.arm(order["arm"])
    if postman := order["arguments"].get("postman"):
        warm_postman.take_over(**postman)
    wire = Wire(end)
    if skew := order["arguments"].get("skew"):
        set_clock_wrong(skew)
        wire.say("clock", now=Clock().now())
    for name in ("orchestrator", "workers"):
        logging.getLogger(name).addHandler(wire)
    wire.listen()
    roles = (worker, scheduler, submit, replay, decide, embedded)
    return {role.__name__: role for role in roles}[order["role"]](wire, order["arguments"])


def set_clock_wrong(seconds: float) -> None:
    """Python's wall clock in this process, as on a host nobody synchronises; the machine's own stays right."""

    def wrong() -> float:
        return time.clock_gettime(time.CLOCK_REALTIME) + seconds

    vars(time).update(time=wrong, time_ns=lambda: int(wrong() * 1e9))


def _settings() -> Any:
    from orchestrator.settings import Settings
    from orchestrator.telemetry.logs import configure_from

    settings = Settings.load(env_file=None)
    configure_from(settings)
    return settings


def worker(wire: Wire, arguments: dict[str, Any]) -> int:
    """What ``orchestrator worker``'s child does, or ``celery -A workers.app worker``."""
    from celery import signals

    from orchestrator.cli.worker import live as live_as_worker

    def ready(**_: Any) -> None:
        wire.say("ready")

    signals.worker_ready.connect(ready, weak=False)
    return live_as_worker(_settings(), arguments["incarnation"])


def scheduler(wire: Wire, arguments: dict[str, Any]) -> int:
    from orchestrator import bootstrap

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    settings = _settings()
    os.environ[bootstrap.INCARNATION] = arguments["incarnation"]
    wire.say("ready")
    bootstrap.run_scheduler(settings, stop)
    return 0


def submit(wire: Wire, arguments: dict[str, Any]) -> int:
    """One submit, as an API process makes it: with a credit in hand if ``primed``, so that it publishes by itself."""
    from orchestrator import bootstrap
    from orchestrator.domain.ids import DEFAULT_QUEUE
    from orchestrator.domain.workflow import Workflow
    from orchestrator.engine.submit import Submission
    from orchestrator.engine.submit import submit as submit_one

    engine = bootstrap.build_engine(_settings(), "submit")
    if arguments["primed"]:
        armed = crashpoints._armed.points
        crashpoints.arm("")
        engine.feed.pump(DEFAULT_QUEUE)
        crashpoints._armed.points = armed
    workflow = Workflow.model_validate(arguments["workflow"])
    try:
        accepted = submit_one(engine, Submission(workflow, arguments["input"], key=arguments["key"]))
        wire.say("submitted", job=accepted.job.id, created=accepted.created)
        if not arguments["primed"]:
            engine.feed.pump(DEFAULT_QUEUE)
    except crashpoints.CrashPointReached as error:
        wire.say("failed", error=str(error))
        return 1
    finally:
        bootstrap.close_engine(engine)
    return 0


def replay(wire: Wire, arguments: dict[str, Any]) -> int:
    from orchestrator import bootstrap
    from orchestrator.engine import dead_letters

    engine = bootstrap.build_engine(_settings(), "replay")
    try:
        dead_letters.replay(engine, arguments["letter"], by="test")
    except crashpoints.CrashPointReached as error:
        wire.say("failed", error=str(error))
        return 1
    finally:
        bootstrap.close_engine(engine)
    return 0


def decide(wire: Wire, arguments: dict[str, Any]) -> int:
    from orchestrator import bootstrap
    from orchestrator.engine import decisions

    engine = bootstrap.build_engine(_settings(), "decide")
    try:
        decisions.decide(engine, arguments["wait"], arguments["word"], by="test")
    except crashpoints.CrashPointReached as error:
        wire.say("failed", error=str(error))
        return 1
    finally:
        bootstrap.close_engine(engine)
    return 0


def embedded(wire: Wire, arguments: dict[str, Any]) -> int:
    """Submits (or finds) one job by its key, decides what it asks, replays what fails of it, and says its end."""
    from orchestrator.domain.workflow import Workflow
    from orchestrator.engine import dead_letters
    from orchestrator.engine.submit import Submission
    from orchestrator.engine.submit import submit as submit_one
    from orchestrator.store import desk
    from workers.embedded import Embedded

    workflow = Workflow.model_validate(arguments["workflow"])
    with Embedded(_settings()) as house:
        wire.say("ready")
        try:
            job = submit_one(house.engine, Submission(workflow, arguments["input"], key=arguments["key"])).job.id
        except crashpoints.CrashPointReached:
            job = submit_one(house.engine, Submission(workflow, arguments["input"], key=arguments["key"])).job.id
        view = _decided(house, job)
        while view["state"] == "failed":
            letters = house.engine.db.run(lambda session: desk.letters(session, tenant="default", state="open"))
            try:
                dead_letters.replay(house.engine, letters[0]["id"], by="test")
            except crashpoints.CrashPointReached:
                continue
            view = _decided(house, job)
        wire.say("ended", job=job, state=view["state"], output=view["output"])
    return 0


def _decided(house: Any, job: Any) -> Any:
    """The job once it has ended; whatever it asks on the way had not happened."""
    from orchestrator.clock import Clock
    from orchestrator.engine import decisions, queries

    clock = Clock()
    until = clock.monotonic() + 60
    while clock.monotonic() < until:
        view = queries.show_job(house.engine, job)
        if view["state"] in ("succeeded", "failed", "cancelled"):
            return view
        for wait in decisions.listing(house.engine, tenant="default", job=job)[0]:
            try:
                decisions.decide(house.engine, wait["id"], "not_happened", by="test")
            except crashpoints.CrashPointReached:
                continue
        clock.sleep(0.02)
    raise AssertionError(f"job {job} has not ended")
