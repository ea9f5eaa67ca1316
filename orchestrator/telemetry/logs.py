"""Logs: one line an event, its stable name first; structlog's and the standard library's lines look alike.

A sentence may change, an event's name may not. What is bound with ``structlog.contextvars`` (``job``, ``step``,
``worker``) stands on every line of that context. Passwords, keys and tokens are blotted out, whoever logs them.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any, Literal, TextIO

import structlog

from orchestrator.settings import Settings

_SECRET_NAME = re.compile(
    r"(^|_)(password|passwd|secret|token|api_?key|authorization|credentials?)$|_(secret|password)_", re.IGNORECASE
)
_URL_LOGIN = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://[^\s:/@]*):[^\s@/]+@")
_BEARER = re.compile(r"\b(Bearer|Basic) [A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE)
_SHOWN = "***"
#: Chatter of libraries, kept to what needs a person.
_QUIET = {
    "alembic": logging.WARNING,
    "celery.worker.strategy": logging.WARNING,  # a line for each message
    "httpcore": logging.WARNING,
    "httpx": logging.WARNING,
    "kombu.connection": logging.ERROR,  # warns that memory:// names no host
    "uvicorn.access": logging.WARNING,
}


class Blot:
    """A structlog processor that hides secrets: by the field's name, by their shape, and the known ones by value."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._secrets = sorted({secret for secret in secrets if len(secret) >= 4}, key=len, reverse=True)

    def __call__(self, _: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        for name, value in event.items():
            event[name] = _SHOWN if _SECRET_NAME.search(name) and value else self._clean(value)
        return event

    def _clean(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {
                name: _SHOWN if _SECRET_NAME.search(str(name)) and item else self._clean(item)
                for name, item in value.items()
            }
        if isinstance(value, (list, tuple)):
            return [self._clean(item) for item in value]
        return value

    def text(self, text: str) -> str:
        """``text`` without what must not be read."""
        for secret in self._secrets:
            text = text.replace(secret, _SHOWN)
        return _BEARER.sub(rf"\1 {_SHOWN}", _URL_LOGIN.sub(rf"\1:{_SHOWN}@", text))


def configure(
    *,
    form: Literal["json", "console"] = "json",
    level: Literal["debug", "info", "warning", "error"] = "info",
    secrets: Iterable[str] = (),
    stream: TextIO | None = None,
) -> None:
    """Routes every logger of the process to ``stream`` (standard error). Called again, it starts over.

    A line: ``event`` first, then ``level``, ``logger``, ``at`` (RFC 3339, UTC), then the rest.
    """
    out = stream if stream is not None else sys.stderr
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
    ]
    blot = Blot(secrets)
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[*shared[:3], structlog.stdlib.ExtraAdder(), shared[4]],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_ending(form, blot, out)],
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.captureWarnings(capture=True)
    for name, least in _QUIET.items():
        logging.getLogger(name).setLevel(max(least, root.level))
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def configure_from(settings: Settings, *, stream: TextIO | None = None) -> None:
    """``configure`` as the settings say; every secret among them is hidden by its value."""
    configure(form=settings.log_format, level=settings.log_level, secrets=secrets_of(settings), stream=stream)


def secrets_of(settings: Settings) -> list[str]:
    """The keys and passwords in the settings; of a URL only the password."""
    found = []
    for name in sorted(Settings.secrets()):
        value = getattr(settings, name)
        if value is None:
            continue
        text = value.get_secret_value()
        if "://" not in text:
            found.append(text)
        elif (match := re.match(r"[^:]+://[^:/@]*:(.+)@[^@/]*", text)) is not None:
            found.append(match[1])
    return found


def _ending(form: str, blot: Blot, out: TextIO) -> list[Any]:
    if form == "console":
        return [
            structlog.processors.format_exc_info,
            blot,
            structlog.dev.ConsoleRenderer(colors=out.isatty(), event_key="event", timestamp_key="at"),
        ]
    return [
        structlog.processors.format_exc_info,
        blot,
        _event_first,
        structlog.processors.JSONRenderer(ensure_ascii=False, default=str),
    ]


def _event_first(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    head = {name: event.pop(name) for name in ("event", "level", "logger", "at") if name in event}
    return {**head, **event}
