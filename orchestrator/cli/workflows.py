"""``workflows``: register definitions and see them; ``compile`` and ``schema``: look at one without running it."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, assert_never

import typer

from orchestrator.cli.ending import say
from orchestrator.cli.inputs import read_file
from orchestrator.cli.printing import Json, json_text, put, table
from orchestrator.cli.which_desk import open_desk
from orchestrator.domain.errors import UsageError

workflows = typer.Typer(no_args_is_help=True, help="Register and list workflows.")

File = Annotated[Path, typer.Argument(metavar="FILE", help="A workflow file, YAML or JSON.")]

#: A workflow file larger than this is a mistake, in bytes.
MAX_FILE = 4 * 1024 * 1024


def read_workflow(path: Path) -> Any:
    """The checked workflow. Raises ``UsageError`` or ``DefinitionError`` with file, line and path."""
    from orchestrator.domain.parse import parse_workflow

    return parse_workflow(read_file(path, "the workflow", MAX_FILE), file=str(path), known_agents={})


@workflows.command()
def apply(
    files: Annotated[
        list[Path], typer.Option("--file", "-f", metavar="FILE", help="A workflow file; repeat for more.")
    ],
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse steps that leave to the default what happens when they fail.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Register workflow files. Each is the newest version of its name; all are checked before the first is written."""
    read = [read_workflow(path) for path in files]
    for path, workflow in zip(files, read, strict=True):
        _failure_paths(path, workflow, strict=strict)
    with open_desk() as desk:
        applied = [desk.apply(workflow, strict=strict) for workflow in read]
    put(applied, as_json, lambda rows: "\n".join(f"{row['name']}@{row['version']}" for row in rows))


def _failure_paths(path: Path, workflow: Any, *, strict: bool) -> None:
    """Names what is left to the default; raises ``LeftToDefault`` when that is refused."""
    from orchestrator.domain.failure_paths import LeftToDefault, left_to_default

    problems = left_to_default(workflow)
    if problems and strict:
        raise LeftToDefault(problems, file=str(path))
    for problem in problems:
        say(f"warning: {path}: {problem}")


@workflows.command("list")
def list_(as_json: Json = False) -> None:
    """List registered workflows, each with its newest version."""
    with open_desk() as desk:
        put(desk.workflows(), as_json, lambda rows: table(rows, ["name", "version", "versions"]))


@workflows.command()
def show(
    name: Annotated[str, typer.Argument(metavar="NAME[@VERSION]")],
    as_json: Json = False,
) -> None:
    """Print a registered definition."""
    with open_desk() as desk:
        found = desk.workflow(name)
    put(found if as_json else found["definition"], True)


class Target(StrEnum):
    """What a plan is compiled to."""

    #: Stage by stage, as workers execute it: what follows a stage stands in SQL.
    DURABLE = "durable"
    #: One Celery canvas of the whole plan.
    CANVAS = "canvas"


def compile_(
    file: File,
    show: Annotated[bool, typer.Option("--show", help="Print the Celery signatures of each stage.")] = False,
    target: Annotated[Target, typer.Option(help="durable: stage by stage. canvas: the whole plan.")] = Target.DURABLE,
    as_json: Json = False,
) -> None:
    """Check a workflow file. Prints its stages in Celery's terms."""
    from orchestrator.cli.stages import stages, summary, whole

    workflow = read_workflow(file)
    match target:
        case Target.DURABLE:
            found = stages(workflow)
            put(found, as_json, lambda _: summary(found, signatures=show))
        case Target.CANVAS:
            put(whole(workflow), as_json)
        case _:
            assert_never(target)


def schema(
    what: Annotated[str, typer.Argument(metavar="WHAT", help="workflow, events or webhook.")] = "workflow",
) -> None:
    """Print the JSON Schema of workflow files. Or of events (pages, SSE), or of webhook messages."""
    from orchestrator.domain.event_schema import event_schema, message_schema
    from orchestrator.domain.parse import workflow_json_schema

    known = {"workflow": workflow_json_schema, "events": event_schema, "webhook": message_schema}
    if what not in known:
        raise UsageError(f"there is no schema of {what!r}.", mend=f"One of: {', '.join(known)}.")
    print(json_text(known[what]()))
