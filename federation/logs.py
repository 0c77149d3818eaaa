"""One line per event, in one form for every process: when, who, how grave, what happened, and what it belongs to.

    2026-11-21 09:10:28 site1/trainer INFO: took 5.2 s  experiment=demo round=3 site=site1 task=train

The fields at the end are for machines; a value with spaces stands in double quotes. Where a text has more lines (a
traceback), they follow indented, so a line that starts with a date is always a new event, whatever a remote side has
put into its text. With `KWS_LOG=json` in the environment each event is one JSON object on one line instead.

Fields come from three places, the later wins: what is true of the whole process (`configure_logging`), of a stretch
of work (`log_fields`), and of one event (`logger.info(..., extra={"round": 3})`, the standard library's way).
"""

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType

from openfl.utilities import add_log_level

from federation.errors import SettingsError

FIELDS = ("experiment", "round", "site", "task", "caller", "role", "peer")
"""What an event may belong to. `round` and `task` are those that people are shown (`federation.schedule`); `caller`,
`role` and `peer` are of whoever has asked for what happened (`federation.director.who`)."""

FORMAT = "KWS_LOG"
"""The environment variable that names the form of the lines."""

_fields: ContextVar[Mapping[str, object]] = ContextVar("log_fields", default=MappingProxyType({}))


@contextmanager
def log_fields(**fields: object) -> Iterator[None]:
    """Add fields to every event of the block; tasks of asyncio started in it inherit them, new threads do not."""
    token = _fields.set({**_fields.get(), **fields})
    try:
        yield
    finally:
        _fields.reset(token)


class _Lines(logging.Formatter):
    """Events as people read them, with the fields at the end of the first line."""

    def __init__(self, process: str, own: Mapping[str, object]) -> None:
        super().__init__(f"%(asctime)s {process} %(levelname)s: %(message)s", "%Y-%m-%d %H:%M:%S")
        self.process, self.own = process, own

    def fields(self, record: logging.LogRecord) -> dict[str, object]:
        """The fields of one event, in one order."""
        given = {**self.own, **_fields.get(), **record.__dict__}
        return {name: given[name] for name in FIELDS if given.get(name) is not None}

    def format(self, record: logging.LogRecord) -> str:
        """One line, and indented what a text or a traceback has beyond it."""
        first, *more = map(_printable, super().format(record).splitlines())
        fields = "".join(f" {name}={_quoted(str(value))}" for name, value in self.fields(record).items())
        return "\n".join([f"{first} {fields}" if fields else first, *(f"    {line}" for line in more)])


class _Json(_Lines):
    """Events as JSON objects, one a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Time in UTC, process, level and text of the event, then its fields, then the traceback, if any."""
        told = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "process": self.process,
            "level": record.levelname,
            "event": record.getMessage(),
            **self.fields(record),
        }
        if record.exc_info:
            told["traceback"] = self.formatException(record.exc_info)
        return json.dumps(told, default=str)


_FORMS = {"text": _Lines, "json": _Json}


def configure_logging(process: str, **fields: object) -> None:
    """Log to standard error, with these fields in every line; of the engine only its errors.

    Raises:
        SettingsError: the environment names a form that does not exist.
    """
    form = os.environ.get(FORMAT) or "text"
    if form not in _FORMS:
        raise SettingsError(f"environment variable {FORMAT}: {form!r}; allowed: {', '.join(_FORMS)}")
    add_log_level("METRIC", 25)  # the engine logs metrics at a level of its own
    handler = logging.StreamHandler()
    handler.setFormatter(_FORMS[form](process, fields))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.captureWarnings(True)
    quieten_engine()


def quieten_engine() -> None:
    """Silence what the engine logs about its own inner workings; what matters is logged by this package."""
    logging.getLogger("openfl").setLevel(logging.ERROR)
    logging.getLogger("openfl.transport.grpc.director_client").setLevel(logging.CRITICAL)


def _quoted(value: str) -> str:
    plain = value and value.isprintable() and not set(value) & set(' "=')
    return value if plain else json.dumps(value, ensure_ascii=not value.isprintable())


def _printable(line: str) -> str:
    """Without control characters, which could rewrite what a terminal shows."""
    return "".join(sign if sign.isprintable() or sign == "\t" else repr(sign)[1:-1] for sign in line)
