"""Log lines: JSON for machines, text for people, and in both only fields that are known.

The standard library's formatter is all that is needed: every library logs through it already,
and the fields below are the only ones that leave, so a context or a token can not slip in.
"""

import json
import logging
import sys
import threading
import time
import traceback
from datetime import UTC, datetime
from typing import TextIO

FIELDS = (
    "tenant", "experiment", "version", "outcomes", "jobs", "count", "method", "code",
    "duration_ms", "suppressed",
)  # fmt: skip
"""What a line may tell beside its event, in this order; see ``docs/reference/operations.md``."""

PAUSE = 1.0
"""Seconds in which the same line is written once."""
MOST_KEYS = 1_000


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Give the line of a record."""
        told: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        told |= _fields(record)
        if record.exc_info and record.exc_info[1] is not None:
            told["exception"] = shown(record.exc_info[1])
        return json.dumps(told, default=str)


class TextFormatter(logging.Formatter):
    """One line for people: time, level, logger, event, and fields as name=value."""

    def format(self, record: logging.LogRecord) -> str:
        """Give the line of a record."""
        parts = [_time(record), record.levelname, record.name, _in_a_line(record.getMessage())]
        parts += [f"{name}={value}" for name, value in _fields(record).items()]
        line = " ".join(parts)
        if record.exc_info and record.exc_info[1] is not None:
            line += "\n" + "\n".join(f"  {part}" for part in shown(record.exc_info[1]))
        return line


class Limiter(logging.Filter):
    """Lets the same line through once a moment, and says how many it kept back."""

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[tuple[object, ...], tuple[float, int]] = {}
        self._lock = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is written."""
        told = tuple(getattr(record, name, None) for name in ("experiment", "method", "code"))
        key = (record.name, record.msg, *told)
        now = time.monotonic()
        with self._lock:
            at, kept_back = self._last.get(key, (-PAUSE, 0))
            if now - at < PAUSE:
                self._last[key] = (at, kept_back + 1)
                return False
            if len(self._last) >= MOST_KEYS:
                self._last.clear()
            self._last[key] = (now, 0)
        if kept_back:
            record.suppressed = kept_back
        return True


def shown(error: BaseException) -> list[str]:
    """Show where an unexpected error came from; not its text, which may quote a value."""
    lines: list[str] = []
    one: BaseException | None = error
    while one is not None and len(lines) < 100:
        lines.append(type(one).__qualname__)
        frames = traceback.extract_tb(one.__traceback__)
        lines += [f"{f.filename}:{f.lineno} in {f.name}" for f in frames]
        one = one.__cause__ or one.__context__
    return lines


def configure(level: str, form: str, stream: TextIO | None = None) -> None:
    """Send the log to standard error.

    Parameters
    ----------
    level
        Least severe level that is written, such as ``info``.
    form
        ``json``, ``text``, or ``auto``: text on a terminal and JSON otherwise.
    """
    stream = stream or sys.stderr
    if form == "auto":
        form = "text" if stream.isatty() else "json"
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    handler.addFilter(Limiter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("alembic").setLevel(logging.WARNING)


def _time(record: logging.LogRecord) -> str:
    instant = datetime.fromtimestamp(record.created, UTC)
    return instant.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _fields(record: logging.LogRecord) -> dict[str, object]:
    found = {name: getattr(record, name, None) for name in FIELDS}
    return {name: value for name, value in found.items() if value is not None}


def _in_a_line(text: str) -> str:
    return " ".join(text.split())
