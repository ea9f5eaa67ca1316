"""What is shipped for deployment keeps its promises: parsed here, because no container runs in the tests."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.settings import PREFIX, Settings

REPOSITORY = Path(__file__).parents[2]
DOCKERFILE = (REPOSITORY / "deploy/Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
SCRAPES = REPOSITORY / "deploy/prometheus/prometheus.yml"
#: Commands of the `orchestrator` program that are long-running roles, or run once before them.
ROLES = ("api", "scheduler", "worker", "migrate")
ONE_SHOT = "migrate"

each_service = pytest.mark.parametrize("name", SERVICES)
each_role = pytest.mark.parametrize("name", ROLES)


def instructions(word: str) -> list[str]:
    text = DOCKERFILE.replace("\\\n", " ")
    return [line.split(maxsplit=1)[1] for line in text.splitlines() if line.startswith(f"{word} ")]


def test_the_stack_has_every_part() -> None:
    assert SERVICES.keys() == {"postgres", "redis", "prometheus", *ROLES}


@each_service
def test_each_service_is_checked_limited_and_not_root(name: str) -> None:
    service = SERVICES[name]
    assert str(service["user"]).partition(":")[0] not in {"", "0", "root"}
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory"}
    if name == ONE_SHOT:
        assert service["restart"] == "no"
    else:
        assert service["restart"] == "unless-stopped"
        assert service["healthcheck"]["test"][0] == "CMD"
        assert service["healthcheck"].keys() >= {"interval", "timeout", "retries"}


@each_service
def test_each_image_has_a_version(name: str) -> None:
    image, _, tag = SERVICES[name]["image"].partition(":")
    assert re.match(r"v?\d", tag), f"{image}: name a version, not {tag or 'nothing'}"


@each_role
def test_each_role_is_a_command_of_the_image_and_waits_for_what_it_needs(name: str) -> None:
    assert SERVICES[name]["command"] == [name]
    waits = {other: rule["condition"] for other, rule in SERVICES[name]["depends_on"].items()}
    assert waits["postgres"] == "service_healthy"
    if name != ONE_SHOT:
        assert waits[ONE_SHOT] == "service_completed_successfully"


@each_role
def test_each_role_is_given_settings_that_exist(name: str) -> None:
    given = {variable for variable in SERVICES[name]["environment"] if variable.startswith(PREFIX)}
    assert given <= {f"{PREFIX}{field.upper()}" for field in Settings.model_fields}
    assert {f"{PREFIX}DATABASE_URL", f"{PREFIX}BROKER_URL"} <= given
    assert f"{PREFIX}INSECURE_NO_AUTH" not in given


def test_no_port_is_open_to_the_network_and_no_password_is_written_down() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert SERVICES["postgres"]["environment"]["POSTGRES_PASSWORD"].startswith("${POSTGRES_PASSWORD:?")


def test_redis_evicts_nothing() -> None:
    command = SERVICES["redis"]["command"]
    assert command[command.index("--maxmemory-policy") + 1] == "noeviction"


def test_what_is_mounted_exists() -> None:
    sources = [volume.partition(":")[0] for service in SERVICES.values() for volume in service.get("volumes", ())]
    missing = [source for source in sources if source.startswith("./") and not (REPOSITORY / source).exists()]
    assert missing == []
    assert {source for source in sources if not source.startswith("./")} == COMPOSE["volumes"].keys()


def test_the_image_is_small_pinned_and_not_root() -> None:
    bases = instructions("FROM")
    assert len(bases) == 2
    assert all(re.match(r"python:3\.12-slim\S*( AS \w+)?$", base) for base in bases)
    assert re.match(r"[1-9]\d*:[1-9]\d*$", instructions("USER")[-1])
    assert instructions("ENTRYPOINT") == ['["orchestrator"]']


def test_the_image_copies_only_what_the_build_context_lets_in() -> None:
    allowed = {line[1:] for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {source for line in instructions("COPY") if "--from" not in line for source in line.split()[:-1]}
    assert copied == allowed
    assert all((REPOSITORY / source).exists() for source in copied)


def test_prometheus_scrapes_every_role_and_the_global_series_once() -> None:
    jobs = {job["job_name"]: job for job in yaml.safe_load(SCRAPES.read_text())["scrape_configs"]}
    assert jobs["orchestrator-global"]["metrics_path"] == "/metrics/global"
    assert jobs["orchestrator-global"]["static_configs"] == [{"targets": ["api:8080"]}]
    assert [job.get("metrics_path") for job in jobs.values()].count("/metrics/global") == 1
    metrics_port = int(SERVICES["worker"]["environment"][f"{PREFIX}METRICS_PORT"])
    for role, port in {"api": 8080, "worker": metrics_port, "scheduler": metrics_port}.items():
        (found,) = jobs[f"orchestrator-{role}"]["dns_sd_configs"]
        assert (found["names"], found["port"]) == ([role], port)


def test_prometheus_accepts_its_configuration() -> None:
    if (promtool := shutil.which("promtool")) is None:
        pytest.skip("NOT TESTED HERE: promtool is not installed (Debian: prometheus)")
    done = subprocess.run([promtool, "check", "config", SCRAPES], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
