"""Settings: what is read, what is refused and how it is said, what is shown."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from orchestrator.domain.errors import ConfigError
from orchestrator.settings import PREFIX, Settings, redact


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither the caller's variables nor a .env of the repository may decide a test."""
    for name in [name for name in os.environ if name.upper().startswith(PREFIX)]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def refusal(**overrides: object) -> str:
    with pytest.raises(ConfigError) as caught:
        Settings.load(**overrides)
    assert caught.value.exit_code == 78
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_defaults_are_for_one_machine_and_nothing_open() -> None:
    settings = Settings.load()
    assert settings.database_url.get_secret_value() == "sqlite:///.orchestrator/orchestrator.db"
    assert settings.broker_url.get_secret_value() == "memory://"
    assert (settings.host, settings.port) == ("127.0.0.1", 8080)
    assert (settings.lease_seconds, settings.lease_renew_seconds, settings.heartbeat_seconds) == (15, 5, 1)
    assert settings.agent_packages == settings.egress == ()
    assert not settings.insecure_no_auth


def test_every_setting_is_documented_and_its_default_is_valid() -> None:
    undocumented = [name for name, field in Settings.model_fields.items() if not field.description]
    assert undocumented == []
    settings = Settings.load()
    assert settings.replace() == settings


def test_environment_wins_over_the_file_and_overrides_win_over_both(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("OTHER=1\nORCHESTRATOR_PORT=1111\nORCHESTRATOR_MAX_WIDTH=7\nORCHESTRATOR_MAX_STEPS=3\n")
    monkeypatch.setenv("ORCHESTRATOR_PORT", "2222")
    monkeypatch.setenv("ORCHESTRATOR_MAX_STEPS", "4")
    settings = Settings.load(max_steps=5, host=None)
    assert (settings.max_width, settings.port, settings.max_steps, settings.host) == (7, 2222, 5, "127.0.0.1")


@pytest.mark.parametrize("written", ["a.b, c ", '["a.b", "c"]'])
def test_lists_are_written_with_commas_or_as_json(monkeypatch: pytest.MonkeyPatch, written: str) -> None:
    monkeypatch.setenv("ORCHESTRATOR_AGENT_PACKAGES", written)
    assert Settings.load().agent_packages == ("a.b", "c")


def test_mappings_are_json_or_one_variable_an_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_TENANT_WEIGHTS", '{"acme": 2}')
    monkeypatch.setenv("ORCHESTRATOR_TENANT_WEIGHTS__GLOBEX", "0.5")
    assert Settings.load().tenant_weights == {"acme": 2, "globex": 0.5}


@pytest.mark.parametrize("written", ["postgres://u:p@h/db", "postgresql://u:p@h/db", "postgresql+psycopg://u:p@h/db"])
def test_any_name_of_postgresql_means_our_driver(written: str) -> None:
    assert Settings.load(database_url=written).database_url.get_secret_value() == "postgresql+psycopg://u:p@h/db"


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_PORT", "")
    assert Settings.load().port == 8080


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("PORT", "abc", ["ORCHESTRATOR_PORT is 'abc'", "integer"]),
        ("PORT", "70000", ["ORCHESTRATOR_PORT", "65535"]),
        ("LEASE_SECONDS", "-1", ["ORCHESTRATOR_LEASE_SECONDS is '-1'", "greater than 0"]),
        ("LEASE_SECONDS", "4", ["ORCHESTRATOR_LEASE_RENEW_SECONDS must be less than ORCHESTRATOR_LEASE_SECONDS"]),
        ("LOG_FORMAT", "xml", ["ORCHESTRATOR_LOG_FORMAT is 'xml'", "'json' or 'console'"]),
        ("BROKER_URL", "kafka://k", ["ORCHESTRATOR_BROKER_URL: must begin with redis://"]),
        ("DATABASE_URL", "mysql://u:hunter2@h", ["ORCHESTRATOR_DATABASE_URL: must begin with postgresql+psycopg://"]),
        ("EGRESS", "example.com", ["'example.com' is not a URL prefix"]),
        ("AGENT_PACKAGES", "[oops", ["ORCHESTRATOR_AGENT_PACKAGES"]),
        ("TENANT_WEIGHTS", "{oops", ["ORCHESTRATOR_TENANT_WEIGHTS is not a JSON object"]),
        ("TENANT_WEIGHTS__ACME", "0", ["ORCHESTRATOR_TENANT_WEIGHTS__ACME is '0'", "greater than 0"]),
        ("LEASE_SECOND", "4", ["ORCHESTRATOR_LEASE_SECOND is not a setting. Did you mean ORCHESTRATOR_LEASE_SECONDS?"]),
        ("PORT__X", "4", ["ORCHESTRATOR_PORT__X is not a setting"]),
        ("DATABASE_URL_FILE", "/nowhere/x", ["ORCHESTRATOR_DATABASE_URL_FILE names '/nowhere/x'", "cannot be read"]),
    ],
)
def test_a_broken_variable_is_one_clear_line(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, words: list[str]
) -> None:
    monkeypatch.setenv(PREFIX + variable, value)
    message = refusal()
    assert all(word in message for word in words), message
    assert "hunter2" not in message
    assert "orchestrator config show" in message or "cannot be read" in message


def test_an_unknown_name_in_the_file_or_in_the_code_is_refused_too() -> None:
    assert "ORCHESTRATOR_PROT is not a setting" in refusal(prot=1)
    Path(".env").write_text("ORCHESTRATOR_HOTS=0.0.0.0\n")
    assert "Did you mean ORCHESTRATOR_HOST?" in refusal()


def test_variables_that_others_read_are_let_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_CRASHPOINT", "settle.after_commit=kill")
    monkeypatch.setenv("ORCHESTRATOR_CHAT_API_KEY", "s3cret")
    assert "s3cret" not in str(Settings.load().redacted())


def test_secrets_may_stand_in_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("s3cret\n")
    monkeypatch.setenv("ORCHESTRATOR_API_KEY_FILE", str(tmp_path / "key"))
    settings = Settings.load()
    assert settings.api_key is not None
    assert settings.api_key.get_secret_value() == "s3cret"
    monkeypatch.setenv("ORCHESTRATOR_API_KEY", "other")
    assert "are both set" in refusal()
    monkeypatch.delenv("ORCHESTRATOR_API_KEY")
    (tmp_path / "key").write_text("")
    assert "which is empty" in refusal()


def test_no_auth_only_on_a_loopback_address() -> None:
    assert Settings.load(insecure_no_auth=True, host="::1").insecure_no_auth
    assert Settings.load(insecure_no_auth=True, host="localhost").insecure_no_auth
    assert "ORCHESTRATOR_INSECURE_NO_AUTH is for loopback" in refusal(insecure_no_auth=True, host="0.0.0.0")


def test_settings_cannot_be_changed_only_replaced() -> None:
    settings = Settings.load()
    with pytest.raises(ValidationError, match="frozen"):
        settings.port = 1  # type: ignore[misc]
    assert settings.replace(port=1).port == 1
    with pytest.raises(ConfigError, match="ORCHESTRATOR_PORT"):
        settings.replace(port=-1)


def test_what_is_shown_holds_no_secret() -> None:
    settings = Settings.load(
        database_url="postgresql://bob:hunter2@db/x?password=hunter2",
        broker_url="redis://:hunter2@r/0",
        api_key="hunter2",
    )
    shown = settings.redacted()
    assert shown["database_url"] == "postgresql+psycopg://bob:***@db/x?password=***"
    assert shown["broker_url"] == "redis://:***@r/0"
    assert shown["api_key"] == "***"
    assert "hunter2" not in json.dumps(shown) + repr(settings) + str(settings)
    assert shown.keys() == Settings.model_fields.keys()


def test_a_password_that_looks_like_a_url_is_hidden_whole() -> None:
    assert redact("amqp://u:p@ss:w/rd@h:5672/v") == "amqp://u:***@h:5672/v"
    assert redact("not a url") == "***"
    assert redact("sqlite:///a.db") == "sqlite:///a.db"


@pytest.mark.parametrize(
    ("written", "seconds"), [("8d", 691_200.0), ("720h", 2_592_000.0), ("off", None), ("", 2_592_000.0)]
)
def test_retention_is_a_duration_or_off(monkeypatch: pytest.MonkeyPatch, written: str, seconds: float | None) -> None:
    monkeypatch.setenv("ORCHESTRATOR_RETENTION", written)
    assert Settings.load().retention == seconds


def test_a_short_retention_must_be_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    """For so long a repeated key is the same job."""
    monkeypatch.setenv("ORCHESTRATOR_RETENTION", "6d")
    assert "at least 7d" in refusal()
    assert Settings.load(retention_short=True).retention == 6 * 86_400
    monkeypatch.setenv("ORCHESTRATOR_RETENTION", "30")
    assert "ORCHESTRATOR_RETENTION is '30': not a duration" in refusal()
