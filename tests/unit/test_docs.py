"""What the pages say is so: links lead somewhere, examples parse, commands, settings and series exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import typer
import yaml

from orchestrator.cli.app import app
from orchestrator.domain import diagram, errors
from orchestrator.domain.ids import JobId
from orchestrator.domain.parse import parse_workflow
from orchestrator.domain.planner import compile_plan, first_rows
from orchestrator.domain.states import JobState, StepState
from orchestrator.settings import PREFIX, READ_ELSEWHERE, Settings
from orchestrator.telemetry import global_
from orchestrator.telemetry.metrics import Meters

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"
PAGES = sorted(
    page
    for root in (DOCS, REPOSITORY / "examples", REPOSITORY / "deploy")
    for page in root.rglob("*.md")
    if not any(part.startswith(".") for part in page.parts)
)
PAGES += [REPOSITORY / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")]
#: Directories of one machine; a page may name the system's own (/usr/bin), never somebody's.
MACHINE = re.compile(r"(?<![\w.~:/-])/(?:home|root|Users|work|tmp|private|mnt|srv)/\S*|[A-Z]:\\\\?\w")
#: Pages no index needs to name: they have one of their own, or are written by the code.
UNLISTED = ("docs/errors/",)

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPOSITORY).as_posix())


def prose(text: str) -> str:
    """Without blocks of code and code in lines."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))


def blocks(text: str, language: str = "") -> Iterator[str]:
    return (match[1] for match in re.finditer(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE))


def anchors(page: Path) -> set[str]:
    """The names under which a page's headings can be linked, as GitHub makes them."""
    headings = re.findall(
        r"^#+ (.+)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE), re.M
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def links(text: str) -> list[str]:
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", prose(text)) if not re.match(r"[a-z]+:", link)]


def broken(page: Path, link: str) -> bool:
    name, _, anchor = unquote(link).partition("#")
    target = (page.parent / name).resolve() if name else page
    if not target.exists() or REPOSITORY not in (target, *target.parents):
        return True
    return bool(anchor) and anchor not in anchors(target)


def commands(text: str) -> list[str]:
    """The lines of plain blocks that call our command, without their comments."""
    lines = (line.strip() for block in blocks(text, "(?:sh|bash|shell|console)?") for line in block.splitlines())
    return [re.sub(r"\s+#.*", "", line) for line in lines if re.match(r"orchestrator [a-z]", line)]


def unknown(line: str) -> str | None:
    """What of a command line our command does not know."""
    command: Any = typer.main.get_command(app)
    words = line.split()[1:]
    while hasattr(command, "commands"):
        if not words or words[0] not in command.commands:
            return f"no command {' '.join(words[:1])!r}"
        command = command.commands[words.pop(0)]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    wrong = [
        word for word in words if re.match(r"--?[a-z]", word) and word.partition("=")[0] not in {*known, "--debug"}
    ]
    return f"no option {wrong[0]!r}" if wrong else None


def series() -> set[str]:
    """Every name a scrape may show."""
    own = {sample.name for metric in Meters().registry.collect() for sample in metric.samples}
    own |= {
        f"{metric.name}{end}"
        for metric in Meters().registry.collect()
        for end in ("", "_total", "_bucket", "_count", "_sum")
    }
    reading = global_.Reading([], {}, [], {}, {}, {})
    gauges = {metric.name for metric in global_._gauges(reading)}
    return own | gauges | {f"{global_.PREFIX}_{name}" for name in global_.COUNTERS} | {f"{global_.PREFIX}_broker_up"}


def codes() -> set[str]:
    """The code of every error a person may meet: those of the tree, and of classes that extend it elsewhere."""
    sources = (path.read_text() for path in (REPOSITORY / "orchestrator").rglob("*.py"))
    elsewhere = {
        code for text in sources for code in re.findall(r'^    code(?:: [^=]+)? = "(\w+)"$', text, re.MULTILINE)
    }
    tree = {kind.code for kind in vars(errors).values() if isinstance(kind, type) and hasattr(kind, "code")}
    assert tree <= elsewhere
    return elsewhere


@each_page
def test_relative_links_lead_somewhere(page: Path) -> None:
    assert [link for link in links(page.read_text()) if broken(page, link)] == []


@each_page
def test_no_page_names_a_place_of_one_machine(page: Path) -> None:
    assert MACHINE.findall(page.read_text()) == []


@each_page
def test_workflows_are_workflows(page: Path) -> None:
    for block in blocks(page.read_text(), "ya?ml"):
        value: Any = yaml.load(block, yaml.BaseLoader)
        if isinstance(value, dict) and {"name", "steps"} <= value.keys():
            parse_workflow(block, file=page.name, known_agents={})


@each_page
def test_commands_exist_with_their_options(page: Path) -> None:
    assert [f"{line}: {fault}" for line in commands(page.read_text()) if (fault := unknown(line))] == []


@each_page
def test_settings_exist(page: Path) -> None:
    names = set(re.findall(rf"\b({PREFIX}[A-Z][A-Z_]*[A-Z])\b", page.read_text()))
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields} | READ_ELSEWHERE
    known |= {f"{PREFIX}{name.upper()}_FILE" for name in Settings.secrets()}
    assert {name for name in names if name.partition("__")[0] not in known} == set()


@each_page
def test_series_exist(page: Path) -> None:
    named = set(re.findall(r"\borchestrator_[a-z_]+[a-z]\b", page.read_text()))
    assert named - series() == set()


def test_every_page_can_be_found_from_the_index() -> None:
    """A decision from the index of decisions, any other page from docs/index.md."""
    listed = {
        (index.parent / unquote(link).partition("#")[0]).resolve()
        for index in (DOCS / "index.md", DOCS / "decisions/index.md")
        for link in links(index.read_text())
    }
    names = {page: page.relative_to(REPOSITORY).as_posix() for page in DOCS.rglob("*.md")}
    lost = [name for page, name in names.items() if page not in listed and not name.startswith(UNLISTED)]
    assert sorted(lost) == ["docs/index.md"]


def test_every_error_code_has_its_page() -> None:
    assert {code for code in codes() if not (DOCS / f"errors/{code}.md").is_file()} == set()


def test_the_diagrams_are_those_of_the_tables() -> None:
    assert (DOCS / "states.md").read_text() == diagram.page(), (
        "run: python -m orchestrator.domain.diagram > docs/states.md"
    )


def test_the_diagrams_begin_where_rows_begin() -> None:
    text = """
        {name: t, agents: {a: {kind: scripted}}, steps: [
          {id: first, parallel: {x: [{id: y, agent: a}], z: {agent: a}}}, {id: second, agent: a}]}
    """
    rows = first_rows(compile_plan(parse_workflow(text), "v"), JobId("j"), "default", 0)
    assert {row.state for row in rows} == set(diagram.STEP_STARTS)
    assert diagram.JOB_STARTS == (JobState.QUEUED,)


def test_a_diagram_has_every_move_and_names_what_nothing_reaches() -> None:
    moves = {(JobState.QUEUED, JobState.RUNNING): "first claim", (JobState.RUNNING, JobState.FAILED): "it gave up"}
    assert diagram.diagram([JobState.QUEUED], moves, {JobState.FAILED, JobState.SUCCEEDED}).splitlines() == [
        "stateDiagram-v2",
        "    [*] --> queued",
        "    queued --> running: first claim",
        "    running --> failed: it gave up",
        "    failed --> [*]",
    ]
    assert JobState.SUCCEEDED in diagram.unused(JobState, [JobState.QUEUED], moves)
    assert diagram.unused([StepState.READY], [StepState.READY], {}) == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("/home/somebody/x.db", True),
        ("C:\\Users\\x", True),
        ("in /tmp/x", True),
        ("https://example.com/home/x", False),
        ("./examples/work/x", False),
        ("/v1/jobs", False),
        ("/usr/bin/python3", False),
    ],
)
def test_the_check_sees_places_of_one_machine(text: str, says: bool) -> None:
    assert bool(MACHINE.search(text)) is says


def test_the_checks_see_what_is_wrong() -> None:
    page = DOCS / "index.md"
    assert links("[a](x.md) `[b](y.md)` [c](https://example.com)\n```\n[d](z.md)\n```\n") == ["x.md"]
    assert broken(page, "nowhere.md")
    assert broken(page, "how-it-works.md#nothing-of-that-name")
    assert broken(page, "../../outside.md")
    assert not broken(page, "how-it-works.md#who-repairs-what")
    assert commands("```\norchestrator run x  # why\n```\n```python\norchestrator run\n```\n") == ["orchestrator run x"]
    assert unknown("orchestrator ran FILE") == "no command 'ran'"
    assert unknown("orchestrator jobs show J --jason") == "no option '--jason'"
    assert unknown("orchestrator run FILE --input a=b --json") is None
