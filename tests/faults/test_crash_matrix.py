"""K1-K3: every named crash point, killed, failing, or lying about its commit, in three shapes of job."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.crashpoints import POINTS
from tests.faults.cases import CASES, HOW, KINDS, UNDOING, Case, impossible
from tests.faults.matrix import Matrix
from tests.support.cluster import Cluster
from tests.support.cluster_children import Warm
from tests.support.servers import PostgresServer, RedisServer

pytestmark = pytest.mark.faults

ROWS = {"kill": "K1", "lie": "K2", "raise": "K3"}
#: Installations side by side.
CELLS = 3


@pytest.fixture(scope="module")
def matrix(
    request: pytest.FixtureRequest,
    warm: Warm,
    postgres_server: PostgresServer,
    postgres_template: str,
    redis_server: RedisServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Matrix]:
    """The cases that were selected, already running."""
    chosen = [
        item.callspec.params["case"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.module is request.module and hasattr(item, "callspec")
    ]
    numbers = itertools.count()

    def make() -> Cluster:
        number = next(numbers)
        database = postgres_server.create_database(template=postgres_template)
        broker = redis_server.database_url(number % 16)
        return Cluster(warm, database, broker, tmp_path_factory.mktemp(f"cell{number}"))

    it = Matrix(chosen, make, CELLS)
    it.start()
    yield it
    it.stop()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_job_ends_right(matrix: Matrix, case: Case, report: Callable[..., None]) -> None:
    """W7: every dangerous instant, every way to die there, every shape."""
    outcome = matrix.outcome(case)
    recovery = [] if outcome.recovery is None else [outcome.recovery]
    repeated = outcome.calls - outcome.expected
    report(ROWS[case.kind], jobs=1, repeated=repeated, doubled=outcome.doubled, recovery=recovery)


def test_every_point_has_its_cases() -> None:
    assert {*HOW, *UNDOING} == set(POINTS)
    for point in HOW:
        assert {case.kind for case in CASES if case.point == point} == {
            kind for kind in KINDS if impossible(point, kind) is None
        }


def test_every_point_stands_in_the_code_and_every_one_in_the_code_is_listed() -> None:
    root = Path(__file__).parents[2]
    files = [*root.glob("orchestrator/**/*.py"), *root.glob("workers/**/*.py")]
    found = {name for file in files for name in re.findall(r'crashpoint\("([\w.]+)"\)', file.read_text())}
    assert found == set(POINTS)
