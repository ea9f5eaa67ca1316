"""Every setting: its name, default and unit. Read from ``ORCHESTRATOR_*`` variables and ``.env``.

``ORCHESTRATOR_LEASE_SECONDS=10`` sets ``lease_seconds``. The environment wins over ``.env``, arguments of ``load`` win
over both; an empty variable counts as unset. A list is written with commas or as JSON, a mapping as JSON or a variable
for each entry (``ORCHESTRATOR_TENANT_WEIGHTS__ACME=2``, names in lower case). A secret may stand in a file, named by
``ORCHESTRATOR_<NAME>_FILE``. A broken or unknown variable is a ``ConfigError`` of one line, exit 78.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from dotenv import dotenv_values
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict, SettingsError

from orchestrator.domain.errors import ConfigError

PREFIX = "ORCHESTRATOR_"
#: Variables with our prefix that are no settings: one arms a test's crash (``crashpoints.py``), one is a key that only
#: ``chat`` agents read (``workers/agents/chat.py``), one a parent's name for its child's life (``bootstrap.py``).
READ_ELSEWHERE = frozenset({"ORCHESTRATOR_CRASHPOINT", "ORCHESTRATOR_CHAT_API_KEY", "ORCHESTRATOR_INCARNATION"})
MEND = "`orchestrator config show` lists every setting."
_KIB, _MIB, _HOUR, _DAY = 1024, 1024 * 1024, 3600.0, 86_400.0
#: A client may repeat a submit with its key so long and meet the same job (P2).
SHORTEST_RETENTION = 7 * _DAY
_DATABASES = ("postgresql+psycopg", "sqlite")
_BROKERS = ("redis", "rediss", "amqp", "amqps", "memory")


def split_list(value: object) -> object:
    """``a, b`` or ``["a", "b"]`` as text; anything else passes."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        return json.loads(value)
    return [word.strip() for word in value.split(",") if word.strip()]


def check_scheme(value: object, known: tuple[str, ...]) -> object:
    text = value.get_secret_value() if isinstance(value, SecretStr) else value
    if isinstance(text, str) and text.partition("://")[0] not in known:
        raise ValueError(f"must begin with {', '.join(f'{scheme}://' for scheme in known)}")
    return value


def read_database_url(value: object) -> object:
    """The names other tools use for PostgreSQL mean our driver, psycopg 3."""
    text = value.get_secret_value() if isinstance(value, SecretStr) else value
    if isinstance(text, str):
        text = re.sub(r"^(postgres|postgresql)://", "postgresql+psycopg://", text)
    return check_scheme(text, _DATABASES)


def check_prefixes(value: tuple[str, ...]) -> tuple[str, ...]:
    for prefix in value:
        if not re.match(r"https?://.", prefix):
            raise ValueError(f"{prefix!r} is not a URL prefix: write it with http:// or https://")
    return value


def read_keep(value: object) -> object:
    """``30d`` as seconds; ``off`` as None."""
    from orchestrator.domain.workflow import parse_duration

    return None if value in ("off", None) else parse_duration(value)


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(split_list)]
Prefixes = Annotated[tuple[str, ...], NoDecode, BeforeValidator(split_list), AfterValidator(check_prefixes)]
DatabaseUrl = Annotated[SecretStr, BeforeValidator(read_database_url)]
BrokerUrl = Annotated[SecretStr, BeforeValidator(lambda value: check_scheme(value, _BROKERS))]
Keep = Annotated[PositiveFloat | None, BeforeValidator(read_keep)]
Port = Annotated[int, Field(ge=0, le=65535)]


class Settings(BaseSettings):
    """Read with ``Settings.load()``, which also checks names and secret files. Cannot be changed; see ``replace``."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        env_file=".env",
        env_file_encoding="utf-8",
        env_ignore_empty=True,
        extra="ignore",  # a .env holds other programs' variables too; ours are checked by ``load``
        frozen=True,
        use_attribute_docstrings=True,
        validate_default=False,
    )

    # Where things are

    database_url: DatabaseUrl = SecretStr("sqlite:///.orchestrator/orchestrator.db")
    """The truth: ``postgresql+psycopg://…`` (15 or newer), or ``sqlite:///path`` for one machine. Secret."""
    broker_url: BrokerUrl = SecretStr("memory://")
    """The doorbell: ``redis(s)://``, ``amqp(s)://``, or ``memory://`` for run and dev only. Secret."""
    url: str | None = None
    """The API that shell commands talk to, as ``http://host:port``; unset, they use the database directly."""
    api_key: SecretStr | None = None
    """The key that shell commands and clients send. Secret."""

    # The API and the metrics page

    host: str = "127.0.0.1"
    """The address to listen on."""
    port: Port = 8080
    """The API's TCP port; 0 picks a free one."""
    metrics_port: Port = 0
    """TCP port of a worker's or scheduler's ``/metrics``; 0 serves none. The API serves its own on ``port``."""
    insecure_no_auth: bool = False
    """True lets anyone on a loopback address use the API without a key; refused on any other address."""
    max_body_bytes: PositiveInt = 4 * _MIB
    """Largest request body; above it 413."""

    # Leases and the beat of the house

    lease_seconds: float = Field(default=15.0, gt=0, le=15)
    """How long the right to finish an attempt lasts unrenewed: the longest takeover of a silent worker, less 2 s."""
    lease_renew_seconds: PositiveFloat = 5.0
    """Seconds between renewals; less than ``lease_seconds``."""
    heartbeat_seconds: PositiveFloat = 1.0
    """Seconds between two signs of life of a process; less than ``lease_seconds``."""
    tick_seconds: PositiveFloat = 1.0
    """Seconds between two rounds of the scheduler: timers, expired leases, work nobody was told of."""
    marker_seconds: PositiveFloat = 1.5
    """Seconds between two markers sent down a queue to find lost messages."""

    # Workers

    worker_concurrency: PositiveInt = 20
    """Steps one worker process runs at once."""
    worker_queues: Names = ("default",)
    """Queues a worker consumes."""
    drain_seconds: PositiveFloat = 20.0
    """Seconds a worker that was told to stop lets its live calls end; what is left is handed to others."""
    deaf_seconds: PositiveFloat = 90.0
    """Seconds without a word from the broker after which a worker takes no more, lets its live calls end, and exits."""
    in_place_steps: int = Field(default=50, ge=0)
    """Successors a worker runs at once before it publishes again; 0 always publishes."""
    in_place_seconds: float = Field(default=1.0, ge=0)
    """The same bound as time, in seconds."""
    agent_packages: Names = ()
    """Python packages a ``python`` agent's target may come from; none by default."""
    egress: Prefixes = ()
    """URL prefixes agents and webhooks may call, as ``https://api.example.com/``; none by default."""
    chat_base_url: str | None = None
    """The endpoint of ``chat`` agents that name none, as ``https://api.example.com/v1``."""
    chat_model: str | None = None
    """The model of ``chat`` agents that name none."""

    # Jobs

    job_deadline: PositiveFloat = 24 * _HOUR
    """Seconds a job may take when it sets no deadline; waiting for people extends it."""
    max_width: PositiveInt = 10_000
    """Branches of one fan-out."""
    max_steps: PositiveInt = 50_000
    """Steps of one job."""
    max_output_bytes: PositiveInt = 10 * _MIB
    """Largest output of one step, as JSON; above it the step is ``invalid_output``."""
    tenant_weights: dict[str, PositiveFloat] = Field(default_factory=dict)
    """Shares of the queues by tenant, as ``{"acme": 2}``; a tenant without an entry weighs 1."""

    # Webhooks

    webhook_timeout: PositiveFloat = 10.0
    """Seconds one delivery may take, from connecting to the answer's status."""
    webhook_retry_first: PositiveFloat = 5.0
    """Seconds to the second try; each further pause is twice as long, with jitter."""
    webhook_retry_longest: PositiveFloat = 4 * _HOUR
    """Seconds between two tries at most, also when the receiver asks for more."""
    webhook_give_up: PositiveFloat = 24 * _HOUR
    """Seconds a receiver may fail in a row before its webhook is stopped."""
    webhook_concurrency: PositiveInt = 64
    """Deliveries of one scheduler at once."""
    webhook_host_concurrency: PositiveInt = 8
    """The same to one host, so that a slow one does not hold up the others."""

    # What is kept

    inline_bytes: int = Field(default=4 * _KIB, ge=0)
    """Outputs up to this size stand in their step's row, larger ones in ``payloads``."""
    compress_bytes: int = Field(default=64 * _KIB, ge=0)
    """Payloads above this size are compressed."""
    retention: Keep = 30 * _DAY
    """How long an ended job is kept, as ``30d``; ``off`` keeps all. At least 7d, for as long its key means this job."""
    retention_short: bool = False
    """True allows a ``retention`` below 7d: for tests and development."""
    retention_export: Path | None = None
    """A directory: each job is written there as a line of JSON before it is removed; none by default."""
    sqlite_profile: Literal["fast", "durable"] = "fast"
    """``fast`` survives a kill (synchronous NORMAL), ``durable`` a power cut too (FULL)."""
    db_pool_size: PositiveInt = 10
    """Connections to PostgreSQL per process."""
    db_connect_timeout: PositiveFloat = 5.0
    """Seconds to wait for a connection, new or from the pool."""
    statement_timeout: PositiveFloat = 30.0
    """Seconds one SQL statement may take."""
    lock_timeout: PositiveFloat = 5.0
    """Seconds a statement waits for a row that another transaction has locked (PostgreSQL)."""

    # Logs

    log_format: Literal["json", "console"] = "json"
    """One JSON object a line for machines, or coloured text for people."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severity that is logged."""

    @classmethod
    def load(cls, *, env_file: Path | str | None = ".env", **overrides: Any) -> Self:
        """The environment, ``env_file`` and ``overrides`` (None is no override) in one. Raises ``ConfigError``."""
        given = {name: value for name, value in overrides.items() if value is not None}
        variables = read_variables(env_file)
        check_names(cls.model_fields, variables, given)
        try:
            return cls(_env_file=env_file, **{**read_secret_files(cls.secrets(), variables), **given})
        except ValidationError as error:
            raise ConfigError(" ".join(explain(cls, found) for found in error.errors()), mend=MEND) from None
        except SettingsError as error:
            name = PREFIX + (re.findall(r'"(\w+)"', str(error)) or ["?"])[0].upper()
            raise ConfigError(f'{name} is not a JSON object such as {{"acme": 2}}.', mend=MEND) from None

    @classmethod
    def secrets(cls) -> frozenset[str]:
        """Fields that are never shown, and that may stand in a file."""
        return frozenset(name for name, field in cls.model_fields.items() if "SecretStr" in str(field.annotation))

    def replace(self, **changes: Any) -> Self:
        """A copy with ``changes``, checked like the rest."""
        try:
            return type(self).model_validate({**dict(self), **changes})
        except ValidationError as error:
            raise ConfigError(" ".join(explain(type(self), found) for found in error.errors()), mend=MEND) from None

    def redacted(self) -> dict[str, Any]:
        """All settings as JSON values, without passwords or keys."""
        shown = self.model_dump(mode="json")
        for name in self.secrets():
            value = getattr(self, name)
            shown[name] = redact(value.get_secret_value()) if value is not None else None
        return shown

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        for name in ("lease_renew_seconds", "heartbeat_seconds"):
            if getattr(self, name) >= self.lease_seconds:
                raise ValueError(
                    f"{PREFIX}{name.upper()} must be less than {PREFIX}LEASE_SECONDS ({self.lease_seconds:g})"
                )
        if self.retention is not None and self.retention < SHORTEST_RETENTION and not self.retention_short:
            raise ValueError(
                f"{PREFIX}RETENTION must be at least 7d, or off; {PREFIX}RETENTION_SHORT=1 allows less, for tests"
            )
        if self.insecure_no_auth and not is_loopback(self.host):
            raise ValueError(
                f"{PREFIX}INSECURE_NO_AUTH is for loopback addresses, not for {self.host!r}: create API keys"
            )
        return self


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def redact(secret: str) -> str:
    """A URL without its password and the values of its query; anything else as ``***``."""
    match = re.match(r"^([a-z0-9+]+://)(?:([^:@/]*)(?::.*)?@)?([^?]*)(\?.*)?$", secret, re.IGNORECASE)
    if match is None:
        return "***"
    scheme, user, rest, query = match.groups()
    login = f"{user}:***@" if user is not None else ""
    return f"{scheme}{login}{rest}" + (re.sub(r"=[^&]*", "=***", query) if query else "")


def read_variables(env_file: Path | str | None) -> dict[str, str]:
    """Our variables that have a value, by name in capitals; the environment wins over the file."""
    found: dict[str, str] = {}
    try:
        from_file: Mapping[str, str | None] = dotenv_values(env_file) if env_file else {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{env_file} cannot be read: {error}.") from None
    for source in (from_file, os.environ):
        found |= {name.upper(): value for name, value in source.items() if name.upper().startswith(PREFIX) and value}
    return found


def check_names(fields: Mapping[str, Any], variables: Iterable[str], overrides: Iterable[str]) -> None:
    """Raises ``ConfigError`` for a name that is no setting, with the nearest one that is."""
    secrets = {f"{name}_file" for name in Settings.secrets()}
    for variable in sorted({*variables, *(f"{PREFIX}{name.upper()}" for name in overrides)} - READ_ELSEWHERE):
        name, nested, _ = variable.removeprefix(PREFIX).lower().partition("__")
        mapping = "dict[" in str(fields[name].annotation) if name in fields else False
        if (name in fields and (mapping or not nested)) or (name in secrets and not nested):
            continue
        near = difflib.get_close_matches(name, [*fields, *secrets], n=1)
        hint = f" Did you mean {PREFIX}{near[0].upper()}?" if near else ""
        raise ConfigError(f"{variable} is not a setting.{hint}", mend=MEND)


def read_secret_files(secrets: Iterable[str], variables: Mapping[str, str]) -> dict[str, str]:
    """The contents of the files named by ``…_FILE`` variables, without the line's end."""
    found = {}
    for name in secrets:
        variable = f"{PREFIX}{name.upper()}"
        if (path := variables.get(f"{variable}_FILE")) is None:
            continue
        if variable in variables:
            raise ConfigError(f"{variable} and {variable}_FILE are both set.", mend="Remove one of them.")
        try:
            found[name] = Path(path).read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{variable}_FILE names {path!r}, which cannot be read: {error}.") from None
        if not found[name]:
            raise ConfigError(f"{variable}_FILE names {path!r}, which is empty.", mend="Write the secret into it.")
    return found


def explain(settings: type[Settings], problem: ErrorDetails) -> str:
    """One problem as a sentence; the value is shown unless it is a secret."""
    message = problem["msg"].removeprefix("Value error, ").rstrip(".")
    if not problem["loc"]:
        return f"{message}."
    name = str(problem["loc"][0])
    shown = "" if name in settings.secrets() else f" is {str(problem['input'])!r}"
    place = "__".join(str(part).upper() for part in problem["loc"])
    return f"{PREFIX}{place}{shown}: {message[0].lower()}{message[1:]}."
