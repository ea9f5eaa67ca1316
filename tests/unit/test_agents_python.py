"""``python`` agents: where they may live, how each exception counts, and what happens to those that overrun."""

import asyncio
import subprocess
import sys
import textwrap
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import structlog

from orchestrator.domain.outcome import Failure, FailureClass, Usage
from orchestrator.ports import AgentFailed, CallContext
from tests.support import sample_agents
from tests.support.agent_calls import agent, answer_of, call_context, failure_of_call, with_calls
from workers.agents import AgentCalls

SAMPLES = "tests.support.sample_agents"


def python(name: str, **more: Any) -> Any:
    return agent(kind="python", target=name if ":" in name else f"{SAMPLES}:{name}", **more)


def output_of(name: str, input: Any = None, context: CallContext | None = None, **more: Any) -> Any:
    return answer_of(python(name, **more), input, context, agent_packages=[SAMPLES]).output


def failure(
    name: str, input: Any = None, packages: list[str] | None = None, **parameters: Any
) -> tuple[Failure, Usage]:
    return failure_of_call(python(name), input, agent_packages=packages or [SAMPLES], **parameters)


# Calling


def test_a_sync_agent_runs_in_a_thread_with_the_callers_context_variables() -> None:
    token = sample_agents.CALLER.set("the runner")
    try:
        assert output_of("echo", [1]) == {"input": [1], "thread": "agent", "caller": "the runner"}
    finally:
        sample_agents.CALLER.reset(token)


def test_an_async_agent_runs_on_the_loop() -> None:
    assert output_of("echo_async", [1]) == {"input": [1], "thread": "MainThread"}


def test_what_a_sync_looking_agent_gives_to_await_is_awaited() -> None:
    assert output_of("echo_awaitable", 2)["input"] == 2
    assert output_of("made", 3) == {"made": 3}


def test_the_context_tells_and_is_told() -> None:
    moved: list[str] = []
    before = Failure(FailureClass.INVALID_OUTPUT, "no clauses")
    context = call_context(attempt=2, key="k-2", timeout=9.0, progress=lambda: moved.append("moved"), previous=before)
    config = {"depth": 2}
    made = python("told", config=config)
    with structlog.testing.capture_logs() as logs:
        answer = answer_of(made, "four", context, agent_packages=[SAMPLES])
    assert answer.output == [
        "job-1", "extract", 2, "k-2", 9.0, {"depth": 2, "changed": True}, "no clauses", False,
    ]  # fmt: skip
    assert answer.usage == Usage(10, 5, 0.75, "m")
    assert moved == ["moved"]
    assert made.config == {"depth": 2}, "the definition is not the agent's to change"
    (line,) = logs
    assert (line["event"], line["job_id"], line["step"], line["attempt"]) == ("sample.told", "job-1", "extract", 2)


# How exceptions count: (class, outcome known, answered, retry after)

COUNTS = {
    "Transient": ("transient", False, False, 3),
    "TransientKnown": ("transient", True, False, None),
    "RateLimited": ("rate_limited", True, False, 2.5),
    "InvalidOutput": ("invalid_output", True, True, None),
    "Refused": ("refused_by_policy", True, False, None),
    "Permanent": ("permanent", True, False, None),
    "PermanentUnknown": ("permanent", False, False, None),
    "Timeout": ("timeout", False, False, None),
    "TimeoutError": ("timeout", False, False, None),
    "ConnectionRefusedError": ("transient", True, False, None),
    "ConnectionResetError": ("transient", False, False, None),
    "BrokenPipeError": ("transient", False, False, None),
    "httpx.ConnectError": ("transient", True, False, None),
    "httpx.ReadTimeout": ("timeout", False, False, None),
    "httpx.ReadError": ("transient", False, False, None),
    "ValueError": ("bug", True, True, None),
    "StopIteration": ("bug", True, True, None),
    "StopAsyncIteration": ("bug", True, True, None),
    "KeyError": ("bug", True, True, None),
    "SystemExit": ("bug", True, True, None),
    "CancelledError": ("bug", True, True, None),
    "MemoryError": ("bug", True, True, None),
    "Unprintable": ("bug", True, True, None),
    "Group": ("rate_limited", True, False, 1),
    "Groups": ("bug", True, True, None),
}


@pytest.mark.parametrize("name", ["fails", "fails_async"])
@pytest.mark.parametrize("raised", COUNTS)
def test_every_exception_counts_as_documented_with_what_was_spent(name: str, raised: str) -> None:
    said, usage = failure(name, raised)
    assert (said.kind.value, said.outcome_known, said.answered, said.retry_after) == COUNTS[raised]
    assert usage.input_tokens == 7
    said.message.encode("utf-8")
    assert "\0" not in said.message


def test_a_bug_says_which_exception_and_where() -> None:
    said, _ = failure("fails", "KeyError")
    assert said.message == "KeyError: 'missing'"
    assert said.detail["exception"] == "KeyError"
    assert "in fails" in said.detail["traceback"]


@pytest.mark.parametrize("name", ["takes_nothing", "takes_nothing_async"])
def test_an_agent_with_other_parameters_is_a_bug(name: str) -> None:
    said, _ = failure(name)
    assert said.kind is FailureClass.BUG
    assert "positional arguments" in said.message


def test_a_traceback_is_cut_to_its_end() -> None:
    said, _ = failure("recurses")
    assert said.detail["exception"] == "RecursionError"
    assert len(said.detail["traceback"].encode()) <= 2048
    assert said.detail["traceback"].rstrip().splitlines()[-1].startswith("RecursionError")


# Where agents may live


@pytest.mark.parametrize(
    "target", ["os:getcwd", "subprocess:run", "tests.support:x", "tests.support.sample_agents_too:x", "builtins:print"]
)
def test_a_target_outside_the_packages_is_refused_unimported(target: str) -> None:
    said, _ = failure(target)
    assert said.kind is FailureClass.REFUSED_BY_POLICY
    assert "ORCHESTRATOR_AGENT_PACKAGES" in said.message


def test_refusing_does_not_import() -> None:
    sys.modules.pop("this", None)
    failure("this:s")
    assert "this" not in sys.modules


def test_without_packages_nothing_may_run() -> None:
    said, _ = failure_of_call(python("echo"))
    assert said.kind is FailureClass.REFUSED_BY_POLICY


def test_a_package_allows_what_lies_below_it() -> None:
    assert answer_of(python("echo"), 1, agent_packages=["tests"]).output["input"] == 1


def test_a_borrowed_name_is_not_an_agent() -> None:
    said, _ = failure("getcwd")
    assert said.kind is FailureClass.REFUSED_BY_POLICY
    assert "function of your own" in said.message


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (f"{SAMPLES}:nowhere", "has no 'nowhere'"),
        (f"{SAMPLES}:NOT_CALLABLE", "holds a int, not a callable"),
        (f"{SAMPLES}.deeper:x", "no module 'tests.support.sample_agents.deeper'"),
    ],
)
def test_a_target_that_is_not_there_is_permanent(target: str, words: str) -> None:
    said, _ = failure(target)
    assert said.kind is FailureClass.PERMANENT
    assert words in said.message


@pytest.fixture
def workflow_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def write(directory: Path, name: str, text: str) -> None:
    (directory / name).parent.mkdir(parents=True, exist_ok=True)
    (directory / name).write_text(textwrap.dedent(text))


def from_directory(directory: Path, target: str) -> Any:
    return answer_of(python(target), 1, agent_packages=[], search_path=[directory]).output


def test_a_workflows_directory_may_hold_agents(workflow_directory: Path) -> None:
    write(workflow_directory, "h3_review/__init__.py", "")
    write(workflow_directory, "h3_review/agents.py", "def twice(ctx, input): return 2 * input")
    write(workflow_directory, "h3_single.py", "async def once(ctx, input): return input")
    write(workflow_directory, "h3_bare/agents.py", "def thrice(ctx, input): return 3 * input")
    assert from_directory(workflow_directory, "h3_review.agents:twice") == 2
    assert from_directory(workflow_directory, "h3_single:once") == 1
    assert from_directory(workflow_directory, "h3_bare.agents:thrice") == 3


def test_a_file_named_like_an_installed_module_does_not_open_that_module(workflow_directory: Path) -> None:
    write(workflow_directory, "shutil.py", "def rmtree(ctx, input): return input")
    said, _ = failure_of_call(python("shutil:rmtree"), "x", search_path=[workflow_directory])
    assert said.kind is FailureClass.REFUSED_BY_POLICY


def test_a_module_that_breaks_on_import_is_a_bug_that_says_where(workflow_directory: Path) -> None:
    write(workflow_directory, "h3_broken.py", "import h3_no_such_dependency\n")
    write(workflow_directory, "h3_exits.py", "raise SystemExit(1)\n")
    for target, words in [("h3_broken:f", "h3_no_such_dependency"), ("h3_exits:f", "SystemExit")]:
        said, _ = failure_of_call(python(target), 1, search_path=[workflow_directory])
        assert said.kind is FailureClass.BUG
        assert words in said.message


def test_a_module_that_was_broken_is_tried_again(workflow_directory: Path) -> None:
    write(workflow_directory, "h3_mended.py", "1/0\n")
    failure_of_call(python("h3_mended:f"), 1, search_path=[workflow_directory])
    write(workflow_directory, "h3_mended.py", "def f(ctx, input):\n    return 'mended'\n")
    assert from_directory(workflow_directory, "h3_mended:f") == "mended"


# Light or not


@pytest.mark.parametrize(
    ("name", "expected"), [("echo", True), ("spins", False), ("naps", True), ("echo_async", True), ("missing", False)]
)
def test_an_agent_whose_calls_leave_the_processor_to_others_is_light(name: str, expected: bool) -> None:
    async def use(calls: AgentCalls) -> None:
        assert not calls.light(python(name)), "of what was never called nothing is known"
        for _ in range(3):
            with suppress(AgentFailed):
                await calls.call(python(name), call_context(), 1)
        assert calls.light(python(name)) is expected

    with_calls(use, agent_packages=[SAMPLES])


def test_the_newest_calls_count_most() -> None:
    async def use(calls: AgentCalls) -> None:
        for kind, expected in (("spin", False), ("rest", True), ("spin", False)):
            for _ in range(20):
                await calls.call(python("spins_if_told"), call_context(), kind)
            assert calls.light(python("spins_if_told")) is expected

    with_calls(use, agent_packages=[SAMPLES])


def test_agents_of_other_kinds_wait_for_somebody() -> None:
    async def use(calls: AgentCalls) -> None:
        assert calls.light(agent(kind="scripted"))
        assert calls.light(agent(kind="http", url="https://example.com/"))

    with_calls(use)


# Overrunning


async def timed_out(calls: AgentCalls, name: str, gate: sample_agents.Gate, **more: Any) -> None:
    """Call the gated agent, and give up as soon as it has been entered."""
    task = asyncio.create_task(calls.call(python(name), call_context(**more), gate))
    assert await asyncio.to_thread(gate.entered.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def until_none_is_lost(calls: AgentCalls) -> None:
    def wait() -> bool:
        threads = calls._threads
        with threads._changed:
            return threads._changed.wait_for(lambda: threads.lost == 0, timeout=10)

    assert await asyncio.to_thread(wait)
    assert calls.lost_slots == 0


def test_a_thread_that_overruns_is_lost_until_it_returns_and_its_late_result_is_dropped() -> None:
    moved: list[str] = []

    async def use(calls: AgentCalls) -> None:
        gate = sample_agents.Gate()
        await timed_out(calls, "gated", gate, progress=lambda: moved.append("late"))
        assert calls.lost_slots == 1
        answer = await calls.call(python("echo"), call_context(), 1)
        assert answer.output["input"] == 1, "another thread stands in for the lost one"
        gate.may_leave.set()
        assert await asyncio.to_thread(gate.left.wait, 10)
        await until_none_is_lost(calls)

    with_calls(use, agent_packages=[SAMPLES], concurrency=1)
    assert moved == [], "what an abandoned agent reports is ignored"


def test_when_as_many_are_lost_as_there_are_slots_calls_wait() -> None:
    async def use(calls: AgentCalls) -> None:
        gates = [sample_agents.Gate(), sample_agents.Gate()]
        for gate in gates:
            await timed_out(calls, "gated", gate)
        assert calls.lost_slots == 2
        waiting = asyncio.create_task(calls.call(python("echo"), call_context(), 1))
        done, _ = await asyncio.wait([waiting], timeout=0.05)
        assert not done
        gates[0].may_leave.set()
        async with asyncio.timeout(10):
            assert (await waiting).output["input"] == 1
        gates[1].may_leave.set()
        await until_none_is_lost(calls)

    with_calls(use, agent_packages=[SAMPLES], concurrency=1)


def test_a_call_cancelled_while_it_waits_for_a_thread_never_runs() -> None:
    async def use(calls: AgentCalls) -> None:
        first, second = sample_agents.Gate(), sample_agents.Gate()
        running = asyncio.create_task(calls.call(python("gated"), call_context(), first))
        assert await asyncio.to_thread(first.entered.wait, 10)
        queued = asyncio.create_task(calls.call(python("gated"), call_context(), second))
        await asyncio.sleep(0)
        queued.cancel()
        await asyncio.wait([queued])
        assert calls.lost_slots == 0
        first.may_leave.set()
        assert (await running).output == "late"
        assert not second.entered.is_set()

    with_calls(use, agent_packages=[SAMPLES], concurrency=1)


def test_an_agent_can_see_that_nobody_waits_any_more() -> None:
    async def use(calls: AgentCalls) -> None:
        gate = sample_agents.Gate()
        await timed_out(calls, "patient", gate)
        assert await asyncio.to_thread(gate.left.wait, 10)
        await until_none_is_lost(calls)

    with_calls(use, agent_packages=[SAMPLES])


def test_cancelling_an_async_agent_reaches_it_at_once() -> None:
    async def use(calls: AgentCalls) -> None:
        gate = sample_agents.Gate()
        await timed_out(calls, "sleeps", gate)
        assert gate.left.is_set()
        assert calls.lost_slots == 0

    with_calls(use, agent_packages=[SAMPLES])


def test_no_more_threads_than_slots_are_used_and_they_are_reused() -> None:
    async def use(calls: AgentCalls) -> int:
        await asyncio.gather(*(calls.call(python("echo"), call_context(), n) for n in range(200)))
        return sum(thread.name == "agent" for thread in threading.enumerate())

    before = sum(thread.name == "agent" for thread in threading.enumerate())
    assert with_calls(use, agent_packages=[SAMPLES], concurrency=3) - before <= 3


def test_a_hung_agent_does_not_keep_the_process_from_ending() -> None:
    program = f"""
        import asyncio
        from tests.support import sample_agents
        from tests.unit.test_agents_python import python, timed_out, with_calls
        with_calls(lambda calls: timed_out(calls, "gated", sample_agents.Gate()), agent_packages=["{SAMPLES}"])
        print("ended")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], timeout=20, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "ended\n"), done.stderr


def test_a_failure_carries_its_cause_for_the_log() -> None:
    async def use(calls: AgentCalls) -> None:
        with pytest.raises(AgentFailed) as caught:
            await calls.call(python("fails_async"), call_context(), "KeyError")
        assert isinstance(caught.value.__cause__, KeyError)

    with_calls(use, agent_packages=[SAMPLES])
