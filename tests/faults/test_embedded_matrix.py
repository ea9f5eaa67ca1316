"""The crash matrix of the embedded engine: one process on SQLite, killed at every point, started again, resumed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from orchestrator.clock import Clock
from orchestrator.store.database import Database
from orchestrator.store.invariants import violations
from tests.faults.cases import CASES, Case
from tests.support.cluster import QUICK
from tests.support.cluster_children import Child, Warm
from tests.support.ledger import Call, Ledger
from tests.support.shapes import Shape, shape

pytestmark = pytest.mark.faults

SEQUENCES = [case for case in CASES if case.shape == "sequence"]
#: At which time a point is reached that is reached elsewhere less often: here one process does everything.
COUNTS = {"publish.before_marking": 1, "publish.before": 1, "publish.after": 1}


class Run:
    """One case: a process armed, and if that was its end, another that resumes."""

    def __init__(self, warm: Warm, case: Case, directory: Path) -> None:
        self.case = case
        self.ledger = Ledger(directory / "ledger.jsonl")
        self.what: Shape = shape("sequence", self.ledger.file, case.how.variant)
        self._warm = warm
        self._directory = directory
        self._url = f"sqlite:///{directory / 'orchestrator.db'}"

    def __call__(self) -> tuple[int, int, float | None]:
        """Calls beyond those of a clean run, calls of steps that had settled, seconds from the kill to the end."""
        count = COUNTS.get(self.case.point, self.case.how.count[0])
        first = self._start(f"{self.case.point}={self.case.kind}@{count}")
        first.wait_event("crashpoint.reached", point=self.case.point, kind=self.case.kind)
        last, died = first, None
        if self.case.kind == "kill":
            assert first.wait_exit() == 137
            died = first.died_at
            last = self._start("")
        ended = last.wait_event("ended", seconds=60)
        assert last.wait_exit() == 0
        assert (ended["state"], ended["output"]) == ("succeeded", self.what.output)
        again = self._called_again()
        assert again == [], "a step that had settled was called again"
        return self._repeated(), len(again), None if died is None else Clock().now() - died

    def _start(self, arm: str) -> Child:
        environment = {f"ORCHESTRATOR_{name}": value for name, value in QUICK.items()}
        environment |= {"ORCHESTRATOR_DATABASE_URL": self._url, "ORCHESTRATOR_AGENT_PACKAGES": "tests"}
        arguments = {"workflow": self.what.workflow, "input": self.what.input, "key": "the-job"}
        return self._warm.fork("embedded", self._directory / "embedded.log", environment, arguments, arm)

    def _repeated(self) -> int:
        counted = self.ledger.check(kills=1)
        expected = self.what.calls + (self.case.how.variant in ("transient", "permanent", "doubt"))
        assert counted["calls"] <= expected + 1
        if not self.case.how.repeats:
            assert counted["repeats"] == 0, "an answer that was not lost was asked for again"
        return max(0, counted["calls"] - expected)

    def _called_again(self) -> list[Call]:
        """Calls of steps that had settled; on the way every invariant is held against the file."""
        db = Database(self._url)
        try:
            assert db.run(violations, readonly=True) == []
            ended = "SELECT job_id, path, finished_at FROM steps WHERE kind = 'agent' AND state = 'succeeded'"
            rows = db.run(lambda session: session.rows(ended), readonly=True)
        finally:
            db.close()
        return self.ledger.called_again({(row["job_id"], row["path"]): row["finished_at"] for row in rows})


@pytest.fixture(scope="module")
def runs(
    request: pytest.FixtureRequest, warm: Warm, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[Case, Future[tuple[int, int, float | None]]]]:
    """The cases that were selected, already running, three at a time."""
    chosen = [
        item.callspec.params["case"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.module is request.module
    ]
    with ThreadPoolExecutor(3) as pool:
        yield {case: pool.submit(Run(warm, case, tmp_path_factory.mktemp(str(case)))) for case in chosen}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", SEQUENCES, ids=str)
def test_the_embedded_job_is_resumed(
    runs: dict[Case, Future[tuple[int, int, float | None]]], case: Case, report: Callable[..., None]
) -> None:
    repeated, doubled, recovery = runs[case].result()
    report("K-SQLite", jobs=1, repeated=repeated, doubled=doubled, recovery=[] if recovery is None else [recovery])
