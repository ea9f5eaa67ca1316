"""``submit`` and ``jobs``: the job desk from a shell."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from threading import Event
from typing import Annotated, Any

import typer

from orchestrator.cli.desk import Desk, Row
from orchestrator.cli.ending import FAILED, INTERRUPTED, say
from orchestrator.cli.inputs import Document, Pairs, read_file, read_input, read_json
from orchestrator.cli.printing import Json, facts, json_text, put, table, when
from orchestrator.cli.stopping import interruptible
from orchestrator.cli.which_desk import open_desk
from orchestrator.domain.errors import UsageError
from orchestrator.domain.states import JOB_TERMINAL, JobState

jobs = typer.Typer(no_args_is_help=True, help="List, show and cancel jobs.")

JobId = Annotated[str, typer.Argument(metavar="JOB", help="The job's id.")]
Limit = Annotated[int, typer.Option(min=0, help="How many at most; 0 is all.")]

POLL_SECONDS = 0.25
ENDED = frozenset(state.value for state in JOB_TERMINAL)
_LIST = ["id", "workflow", "state", "created_at", "finished_at", "steps", "cost_usd"]
_JOB = (
    "id workflow version state run tenant priority tags created_at started_at finished_at deadline_at steps cost_usd"
    " input_tokens output_tokens webhook failure output"
).split()
_STEP = ["path", "state", "agent", "attempt", "width", "started_at", "finished_at", "failure"]


def submit(
    workflow: Annotated[str, typer.Argument(metavar="WORKFLOW", help="NAME, NAME@VERSION, or a workflow FILE.")],
    pairs: Pairs = None,
    document: Document = None,
    key: Annotated[
        str | None, typer.Option("--key", "-k", help="Idempotency key: the same key is the same job.")
    ] = None,
    priority: Annotated[int, typer.Option(help="Higher goes first.")] = 0,
    tag: Annotated[list[str] | None, typer.Option("--tag", metavar="KEY=VALUE", help="Repeat for more.")] = None,
    deadline: Annotated[
        str | None, typer.Option(metavar="DURATION", help="As 30s, 10m or 48h; the workflow's own.")
    ] = None,
    webhook: Annotated[str | None, typer.Option(metavar="URL", help="Is told of the job's end.")] = None,
    webhook_event: Annotated[
        list[str] | None, typer.Option(metavar="TYPE", help="Of these events instead, as step.failed; repeat for more.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the end; exit 1 unless it succeeded.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds to wait at most; 0 is without end.")] = 0,
    as_json: Json = False,
) -> None:
    """Hand in a job. Prints its id once it is committed."""
    from orchestrator.settings import Settings

    settings = Settings.load()
    value = read_input(pairs, document, limit=settings.max_body_bytes)
    chosen = workflow_or_file(workflow, settings.max_body_bytes)
    tags, seconds = read_tags(tag), read_deadline(deadline)
    with open_desk(settings) as desk:
        job = desk.submit(
            chosen,
            value,
            key=key,
            priority=priority,
            tags=tags,
            deadline=seconds,
            webhook=read_webhook(webhook, webhook_event),
        )
        if secret := (job.get("webhook") or {}).get("secret"):
            say(f"The webhook's secret, which is not shown again: {secret}")
        if not wait:
            put(job, as_json, lambda row: str(row["id"]))
            return
        with interruptible() as interrupted:
            say(f"job {job['id']}: waiting for its end")
            ended = wait_for(desk, job["id"], timeout, interrupted)
    put(ended, as_json, lambda row: json_text(row["output"]) if row["state"] == "succeeded" else "")
    end_as(ended)


def wait_for(desk: Desk, job_id: str, timeout: float, interrupted: Event) -> Row:
    """The job once it has ended; exit 1 when ``timeout`` seconds (0: none) are over before, 130 when interrupted."""
    from orchestrator.clock import Clock

    clock = Clock()
    until = clock.monotonic() + timeout
    while (job := desk.job(job_id))["state"] not in ENDED:
        if timeout and clock.monotonic() > until:
            say(f"job {job_id} is {job['state']} after {timeout:g} s and goes on. Ask: orchestrator jobs show {job_id}")
            raise typer.Exit(FAILED)
        if interrupted.wait(POLL_SECONDS):
            raise typer.Exit(INTERRUPTED)
    return job


def end_as(job: Row) -> None:
    """Exit 1, with the reason, unless the job succeeded."""
    if job["state"] == "succeeded":
        return
    failure = job.get("failure") or {}
    reason = f": {failure.get('class')}: {failure.get('message')}" if failure else ""
    say(f"job {job['id']} {job['state']}{reason}")
    if job["state"] == "failed":
        say(f"Its dead letter: orchestrator dead-letters list --job {job['id']}")
    raise typer.Exit(FAILED)


def workflow_or_file(text: str, limit: int) -> Any:
    """A name as it is; what looks like a file is read and parsed."""
    path = Path(text)
    if path.suffix not in {".yaml", ".yml", ".json"} and "/" not in text:
        return text
    from orchestrator.domain.parse import parse_workflow

    return parse_workflow(read_file(path, "the workflow", limit), file=text, known_agents={})


def read_tags(pairs: list[str] | None) -> dict[str, str]:
    tags = {}
    for pair in pairs or ():
        key, sign, value = pair.partition("=")
        if not sign or not key:
            raise UsageError(f"--tag {pair!r} is not KEY=VALUE.")
        tags[key] = value
    return tags


def read_webhook(url: str | None, events: list[str] | None) -> Row | None:
    if url is None and events:
        raise UsageError("--webhook-event says what a webhook is told.", mend="Name it: --webhook URL.")
    return None if url is None else {"url": url, **({"events": events} if events else {})}


def read_deadline(text: str | None) -> float | None:
    if text is None:
        return None
    from orchestrator.domain.workflow import parse_duration

    try:
        return float(str(parse_duration(text)))
    except ValueError as error:
        raise UsageError(f"--deadline {text!r} is {error}.") from None


@jobs.command("list")
def list_(
    state: Annotated[str | None, typer.Option(help="Only jobs in this state.")] = None,
    workflow: Annotated[str | None, typer.Option(help="Only jobs of this workflow.")] = None,
    tag: Annotated[str | None, typer.Option(metavar="KEY=VALUE", help="Only jobs with this tag.")] = None,
    limit: Limit = 50,
    as_json: Json = False,
) -> None:
    """List jobs, newest first."""
    if state is not None and state not in [known.value for known in JobState]:
        raise UsageError(f"--state {state!r} is no state of a job.", mend=f"One of: {', '.join(JobState)}.")
    wanted = next(iter(read_tags([tag]).items())) if tag is not None else None
    with open_desk() as desk:
        found = first(desk.jobs(state=state, workflow=workflow, tag=wanted), limit)
    put(found, as_json, lambda rows: table(rows, _LIST))


@jobs.command()
def show(job: JobId, as_json: Json = False) -> None:
    """Show a job with its output."""
    with open_desk() as desk:
        put(desk.job(job), as_json, lambda row: facts(row, _JOB))


@jobs.command()
def steps(job: JobId, limit: Limit = 0, as_json: Json = False) -> None:
    """List a job's steps by path."""
    with open_desk() as desk:
        found = first(desk.steps(job), limit)
    put(found, as_json, lambda rows: table([_with_reason(row) for row in rows], _STEP))


def _with_reason(step: Row) -> Row:
    failure = step.get("failure")
    return {**step, "failure": f"{failure['class']}: {failure['message']}" if failure else None}


@jobs.command()
def events(
    job: JobId,
    after: Annotated[int, typer.Option(min=0, help="Only events after this number.")] = 0,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")] = False,
    as_json: Json = False,
) -> None:
    """Print a job's history; with --json one event a line."""
    from orchestrator.clock import Clock

    clock = Clock()
    with open_desk() as desk:
        while True:
            found, ended = desk.events(job, after)
            for event in found:
                after = event["number"]
                print(event_line(event, as_json), flush=True)
            if ended or not (found or follow):
                return
            if not found:
                clock.sleep(POLL_SECONDS)


def event_line(event: Row, as_json: bool) -> str:
    if as_json:
        return json.dumps(event, ensure_ascii=False)
    parts = [str(event["number"]).rjust(5), when(event["at"]), event["type"].ljust(20), event["path"] or ""]
    return "  ".join(parts).rstrip()


@jobs.command()
def cancel(job: JobId, as_json: Json = False) -> None:
    """Ask a job to stop; again is no error."""
    with open_desk() as desk:
        put(desk.cancel(job), as_json, lambda row: f"{row['id']} {row['state']}")


@jobs.command("resume-webhook")
def resume_webhook(job: JobId, as_json: Json = False) -> None:
    """Send again what a job's webhook is owed. For one that was stopped or fails."""
    with open_desk() as desk:
        put(desk.resume_webhook(job), as_json, lambda row: f"{row['id']} webhook {row['webhook']['state']}")


@jobs.command()
def fork(
    job: JobId,
    from_step: Annotated[str, typer.Argument(metavar="STEP", help="The first step to do: its path.")],
    input: Annotated[
        str | None, typer.Option("--input", metavar="JSON|@FILE", help="The step's input, edited.")
    ] = None,
    agent: Annotated[str | None, typer.Option(help="Another agent of the workflow for the step.")] = None,
    workflow: Annotated[
        str | None, typer.Option(metavar="NAME[@VERSION]", help="Another version of the same workflow.")
    ] = None,
    reuse: Annotated[
        list[str] | None, typer.Option(metavar="STEP", help="Changed with the version, result kept; repeat for more.")
    ] = None,
    key: Annotated[
        str | None, typer.Option("--key", "-k", help="Idempotency key: the same key is the same job.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done again.")] = False,
    note: Annotated[str | None, typer.Option(help="Why, for the record.")] = None,
    as_json: Json = False,
) -> None:
    """Begin a new job in the middle of an old one. Finished steps before it are taken over."""
    from orchestrator.settings import Settings

    settings = Settings.load()
    changes = {name: text for name, text in (("agent", agent), ("workflow", workflow)) if text is not None}
    edited = {} if input is None else {"input": read_json(input, "--input", limit=settings.max_body_bytes)}
    with open_desk(settings) as desk:
        done = desk.fork(
            job, from_step, dry_run=dry_run, key=key, changes={**changes, **edited}, reuse=reuse or [], note=note
        )
    put(done, as_json, lambda row: facts(row, ["version", "again", "kept", "drift"]) if dry_run else str(row["id"]))


@jobs.command()
def invalidate(
    job: JobId,
    step: Annotated[str, typer.Argument(metavar="STEP", help="The step's path.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done again.")] = False,
    repeat_effects: Annotated[
        bool, typer.Option("--repeat-effects", help="Also where steps with an effect act again.")
    ] = False,
    note: Annotated[str | None, typer.Option(help="Why, for the record.")] = None,
    as_json: Json = False,
) -> None:
    """Do a finished step and all that depends on it again. The rest keeps its results."""
    with open_desk() as desk:
        if dry_run:
            put(desk.stale(job, step), as_json, lambda row: facts(row, ["again", "around", "gone", "effects"]))
            return
        done = desk.invalidate(job, step, note=note, repeat_effects=repeat_effects)
    put(done, as_json, lambda row: f"{row['id']} {row['state']}, run {row['run']}")


def first(rows: Iterator[Row], limit: int) -> list[Row]:
    """At most ``limit`` of them, and a word when there are more."""
    if not limit:
        return list(rows)
    found = list(islice(rows, limit + 1))
    if len(found) > limit:
        say(f"There are more: --limit {limit * 10}, or 0 for all.")
    return found[:limit]
