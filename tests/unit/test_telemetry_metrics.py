"""What a process counts, and the page it serves."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from orchestrator.domain.errors import ConfigError, Unavailable
from orchestrator.telemetry.metrics import Meters
from orchestrator.telemetry.serve import serve_metrics

REPOSITORY = Path(__file__).parents[2]


def everything() -> Meters:
    meters = Meters()
    meters.job_finished("review", 2.0)
    meters.step_finished("echo", 0.3)
    meters.step_waited("default", -0.1)
    meters.handoff(0.01)
    meters.request_answered("/v1/jobs", "GET", 200, 0.01)
    meters.batch_written(7)
    meters.lease_expired(2)
    meters.redispatched("lost", 5)
    meters.fenced()
    meters.quarantined()
    meters.webhook_tried("failed")
    meters.broker(True)
    return meters


def samples(page: bytes) -> dict[str, float]:
    families = text_string_to_metric_families(page.decode())
    return {f"{s.name}{sorted(s.labels.items())}": s.value for family in families for s in family.samples}


def test_every_method_moves_its_series() -> None:
    found = samples(everything().exposition())
    assert found["orchestrator_leases_expired_total[]"] == 2
    assert found["orchestrator_steps_redispatched_total[('reason', 'lost')]"] == 5
    assert found["orchestrator_fenced_writes_total[]"] == 1
    assert found["orchestrator_quarantined_messages_total[]"] == 1
    assert found["orchestrator_webhook_deliveries_total[('outcome', 'failed')]"] == 1
    assert found["orchestrator_broker_connected[]"] == 1
    assert found["orchestrator_step_duration_seconds_sum[('agent', 'echo')]"] == 0.3
    assert found["orchestrator_job_duration_seconds_count[('workflow', 'review')]"] == 1
    assert found["orchestrator_step_wait_seconds_sum[('queue', 'default')]"] == 0
    assert found["orchestrator_handoff_seconds_count[]"] == 1
    assert found["orchestrator_writer_batch_size_sum[]"] == 7
    labels = "[('method', 'GET'), ('route', '/v1/jobs'), ('status', '200')]"
    assert found[f"orchestrator_http_request_duration_seconds_count{labels}"] == 1


def test_two_processes_in_one_share_nothing() -> None:
    everything()
    assert samples(Meters().exposition())["orchestrator_fenced_writes_total[]"] == 0


def test_every_series_is_documented() -> None:
    page = (REPOSITORY / "docs/reference/metrics.md").read_text()
    families = text_string_to_metric_families(everything().exposition().decode())
    names = {f.name + ("_total" if f.type == "counter" else "") for f in families if not f.name.endswith("_created")}
    assert sorted(name for name in names if f"`{name}" not in page) == []


def fetch(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_a_role_without_an_api_serves_its_pages() -> None:
    def away() -> bytes:
        raise Unavailable("the database does not answer.")

    server = serve_metrics({"/metrics": everything().exposition, "/metrics/global": away}, "127.0.0.1", 0)
    try:
        status, text = fetch(server.port, "/metrics?x=1")
        assert status == 200
        assert "orchestrator_fenced_writes_total 1.0" in text
        assert fetch(server.port, "/livez") == (200, "ok\n")
        assert fetch(server.port, "/metrics/global") == (503, "the database does not answer.\n")
        assert fetch(server.port, "/")[0] == 404
    finally:
        server.close()


def test_a_busy_port_is_one_clear_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{port} is in use") as raised:
            serve_metrics({}, "127.0.0.1", port)
    assert raised.value.exit_code == 78


def test_an_address_that_is_not_ours_is_one_too() -> None:
    with pytest.raises(ConfigError, match="cannot be taken"):
        serve_metrics({}, "192.0.2.1", 0)
