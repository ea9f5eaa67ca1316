"""The API keeps its own published description, whatever is sent (schemathesis)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from tests.support.api import Api, do, finish, make_engine, register, serving

#: ``negative_data_rejection``: what the description forbids is refused.
CHECKS = [
    not_a_server_error,
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
]


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def api(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """An API with a job of every kind to look at."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('api') / 'orchestrator.db'}"
    else:
        url = request.getfixturevalue("postgres_server").start().create_database()
    engine = make_engine(url)
    register(engine)
    with serving(engine, dev=True) as running:
        yield running
    engine.db.close()


@pytest.fixture
def description(api: Api) -> object:
    return schemathesis.openapi.from_url(f"{api.url}/openapi.json")


@pytest.mark.slow
def test_it_answers_as_it_says(api: Api, description: schemathesis.schemas.BaseSchema) -> None:
    modes = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]
    for found in description.get_all_operations():
        operation = found.ok()
        for mode in modes:
            try:
                strategy = operation.as_strategy(generation_mode=mode)

                @settings(max_examples=10, suppress_health_check=list(HealthCheck), database=None)
                @given(case=strategy)
                def ask(case: schemathesis.Case) -> None:
                    answer = case.call(base_url=api.url, timeout=30)
                    case.validate_response(answer, checks=CHECKS)

                ask()
            except Unsatisfiable:  # nothing there can be wrong
                assert mode is schemathesis.GenerationMode.NEGATIVE


def test_real_answers_fit_too(api: Api, description: schemathesis.schemas.BaseSchema) -> None:
    """Random ids find nothing: these are the answers with something in them."""
    import httpx

    job = httpx.post(f"{api.url}/v1/jobs", json={"workflow": "two-steps", "tags": {"a": "b"}}).json()["id"]
    failed = httpx.post(f"{api.url}/v1/jobs", json={"workflow": "two-steps"}).json()["id"]
    finish(api.engine, job, {"x": 1})
    do(api.engine, failed, "first", fail="no")
    letter = httpx.get(f"{api.url}/v1/dead-letters").json()["dead_letters"][0]["id"]
    for path, names in (
        ("/v1/jobs", {}),
        ("/v1/jobs/{job_id}", {"job_id": job}),
        ("/v1/jobs/{job_id}", {"job_id": failed}),
        ("/v1/jobs/{job_id}/steps", {"job_id": failed}),
        ("/v1/jobs/{job_id}/attempts", {"job_id": failed}),
        ("/v1/jobs/{job_id}/events", {"job_id": job}),
        ("/v1/dead-letters", {}),
        ("/v1/dead-letters/{letter_id}", {"letter_id": letter}),
        ("/v1/workflows", {}),
        ("/v1/workflows/{name}", {"name": "two-steps"}),
        ("/v1/queues", {}),
        ("/v1/workers", {}),
        ("/readyz", {}),
    ):
        answer = httpx.get(api.url + path.format(**names))
        assert answer.status_code == 200
        description[path]["GET"].validate_response(answer)
