"""``run``: one workflow to its end in this process, on SQLite; killed and resumed, it repeats no finished step."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from orchestrator.cli.ending import FAILED, say
from orchestrator.cli.inputs import Document, Pairs, read_input
from orchestrator.cli.printing import json_text
from orchestrator.cli.progress import progress_for, quiet_logs
from orchestrator.cli.workflows import read_workflow
from orchestrator.domain.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.domain.ids import JobId
    from orchestrator.domain.workflow import Workflow
    from orchestrator.engine.context import Engine
    from orchestrator.settings import Settings

#: The tag that remembers where a job's agents live, so that --resume needs no FILE.
DIRECTORY = "directory"
POLL_SECONDS = 0.05


def run(
    file: Annotated[Path | None, typer.Argument(metavar="FILE", help="A workflow file, YAML or JSON.")] = None,
    pairs: Pairs = None,
    document: Document = None,
    resume: Annotated[str | None, typer.Option(metavar="JOB", help="Go on with a job that was interrupted.")] = None,
    replay: Annotated[bool, typer.Option("--replay", help="With --resume: send a failed job back to work.")] = False,
    db: Annotated[
        Path | None, typer.Option(help="The SQLite file; .orchestrator/run.db, or the next that is free.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the output as JSON, also where it holds Markdown.")
    ] = False,
) -> None:
    """Run one workflow to its end, here. Its output goes to stdout."""
    from orchestrator.settings import Settings

    settings = Settings.load()
    quiet_logs(settings)
    with stoppable():
        if resume is None:
            job = _run_new(settings, file, pairs, document, db, replay=replay)
        else:
            if pairs or document is not None:
                raise UsageError("a resumed job has its input already.", mend="Leave --input away, or start a new job.")
            job = _run_again(settings, resume, file, db, replay=replay)
    if job["state"] != "succeeded":
        raise typer.Exit(FAILED)
    sys.stdout.write(output_text(job["output"], as_json=as_json) + "\n")


def output_text(output: Any, *, as_json: bool) -> str:
    """The Markdown of an output that holds a ``markdown`` text, unless JSON is asked for; else JSON."""
    if not as_json and isinstance(output, dict) and isinstance(output.get("markdown"), str):
        return str(output["markdown"]).rstrip("\n")
    return json_text(output)


def _run_new(
    settings: Settings,
    file: Path | None,
    pairs: list[str] | None,
    document: str | None,
    db: Path | None,
    *,
    replay: bool,
) -> dict[str, Any]:
    from orchestrator.cli.run_database import for_new_job
    from orchestrator.engine.submit import Submission, submit
    from workers.embedded import Embedded

    if file is None:
        raise UsageError("name the workflow FILE to run.", mend="As in: orchestrator run FILE --input key=value")
    if replay:
        raise UsageError("--replay goes with --resume JOB.")
    workflow: Workflow = read_workflow(file)
    value = read_input(pairs, document, limit=settings.max_body_bytes)
    home = file.resolve().parent
    with for_new_job(db) as path, Embedded(_on(settings, path), search_path=_importing_from(home)) as house:
        accepted = submit(house.engine, Submission(workflow, value, tags={DIRECTORY: str(home)}))
        return _follow(house.engine, accepted.job.id, _again(accepted.job.id, db))


def _run_again(settings: Settings, resume: str, file: Path | None, db: Path | None, *, replay: bool) -> dict[str, Any]:
    from orchestrator.cli.direct import engine_for_shell, who
    from orchestrator.cli.jobs import ENDED
    from orchestrator.cli.run_database import of_job
    from orchestrator.domain.ids import JobId
    from orchestrator.engine import dead_letters, queries
    from workers.embedded import Embedded

    job_id = JobId(resume)
    with of_job(db, job_id) as path:
        with engine_for_shell(_on(settings, path)) as engine:
            job = queries.show_job(engine, job_id)
            letter = _open_letter(engine, job_id)
        if job["state"] in ENDED and not (replay and letter):
            _tell_end(job, letter, _again(job_id, db))
            return job
        home = file.resolve().parent if file is not None else Path(job["tags"].get(DIRECTORY, "."))
        with Embedded(_on(settings, path), search_path=_importing_from(home)) as house:
            if letter and replay:
                dead_letters.replay(house.engine, letter, by=who())
            return _follow(house.engine, job_id, _again(job_id, db), old=True)


def _on(settings: Settings, path: Path) -> Settings:
    from orchestrator.cli.run_database import sqlite_url

    return settings.replace(database_url=sqlite_url(path), broker_url="memory://")


def _importing_from(home: Path) -> list[Path]:
    """Python agents are found beside the workflow file."""
    sys.path.insert(0, str(home))
    return [home]


def _again(job_id: JobId, db: Path | None) -> str:
    return f"orchestrator run --resume {job_id}" + (f" --db {db}" if db is not None else "")


def _follow(engine: Engine, job_id: JobId, again: str, *, old: bool = False) -> dict[str, Any]:
    """Watches the job to its end and talks about it; ``old``: what it did before is not told again."""
    from orchestrator.domain.states import JobState
    from orchestrator.engine import queries
    from orchestrator.store import jobs

    row = engine.db.run(lambda session: jobs.get(session, job_id), readonly=True)
    assert row is not None
    board = _board(engine, row.version)
    said = row.events if old else 0
    started = engine.clock.monotonic()
    say(f"job {job_id}: {'going on' if old else row.workflow}")
    after, ended = 0, False
    try:
        with progress_for(board) as progress:
            while not ended:
                found, ended = queries.list_events(engine, job_id, after=after)
                for event in found:
                    after = event["number"]
                    sentence = board.feed(event)
                    progress.told(sentence if after > said else None)
                now = engine.db.run(lambda session: jobs.get(session, job_id), readonly=True)
                progress.tick(now.cost_usd if now else 0.0, engine.clock.monotonic() - started)
                if now is not None and now.state is JobState.WAITING and not found:
                    break
                if not ended and not found:
                    engine.clock.sleep(POLL_SECONDS)
    except Stopped:
        say("\nStopping: calls in flight get a moment to end and be kept; stop again to end at once.")
        say(f"Go on with: {again}")
        raise
    job = queries.show_job(engine, job_id)
    if not ended:
        _tell_questions(engine, job_id, again)
        return job
    _tell_end(job, _open_letter(engine, job_id), again)
    return job


def _tell_questions(engine: Engine, job_id: JobId, again: str) -> None:
    """Nothing moves before a person has decided, and this process need not wait for that."""
    from orchestrator.engine import decisions

    say(f"job {job_id}: waiting for people")
    for wait in decisions.listing(engine, tenant=None, job=job_id)[0]:
        failure = wait["question"]["failure"]
        say(f"  {wait['path']}: {failure['class']}: {failure['message']}")
        shell = f"ORCHESTRATOR_DATABASE_URL={engine.db.url.render_as_string(hide_password=True)}"
        say(f"  {shell} orchestrator decisions decide {wait['id']} {'|'.join(wait['decisions'])}")
    say(f"Then go on with: {again}")


def _board(engine: Engine, version: str) -> Any:
    from orchestrator.cli.board import Board
    from orchestrator.domain.plan import Kind

    plan = engine.db.run(lambda session: engine.plans.get(session, version), readonly=True)
    nodes = [(name, plan.nodes[ref]) for name, ref in zip(plan.root.names, plan.root.body, strict=True)]
    return Board.of([(name, node.needs, node.kind is Kind.SUPERVISE) for name, node in nodes])


def _open_letter(engine: Engine, job_id: JobId) -> str | None:
    from orchestrator.store import desk

    found = engine.db.run(lambda session: desk.letters(session, tenant=None, job_id=job_id, limit=1), readonly=True)
    return str(found[0]["id"]) if found else None


def _tell_end(job: dict[str, Any], letter: str | None, again: str) -> None:
    took = (job["finished_at"] or 0) - (job["created_at"] or 0)
    tokens = job["input_tokens"] + job["output_tokens"]
    spent = f", {tokens:,} tokens, ${job['cost_usd']:.4f}" if tokens or job["cost_usd"] else ""
    say(f"job {job['id']}: {job['state']} after {took:.1f} s, {job['steps']} steps{spent}")
    failure = job["failure"]
    if failure:
        say(f"  {failure['class']}: {failure['message']}")
    if letter:
        say(f"  dead letter {letter}. Once its cause is mended: {again} --replay")


class Stopped(BaseException):
    """SIGINT or SIGTERM. Passes every ``except Exception`` on its way out."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


@contextmanager
def stoppable() -> Iterator[None]:
    """The first SIGINT or SIGTERM unwinds the block and exits 130 or 143; the second ends the process where it is."""

    def stop(number: int, _: FrameType | None) -> NoReturn:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)
        raise Stopped(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        yield
    except Stopped as stopped:
        raise typer.Exit(stopped.exit_code) from None
