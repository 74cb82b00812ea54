"""Logs: one line per event, readable in local and JSON everywhere else, the same for every library.

Logging is the process's, not an app's: the standard library holds its state, and the last `setup_logging` stands.
"""

from __future__ import annotations

import logging
import re
import sys
import traceback
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from functools import cached_property
from time import time
from typing import Any, NamedTuple

import orjson

from svc_infra.config import Environment, Settings
from svc_infra.errors import ConfigurationError
from svc_infra.obs.context import FACTS, current, facts_of
from svc_infra.obs.line_buffer import LineBuffer, Told
from svc_infra.obs.redact import cleaned, printable, redacted, shown, to_json

MAX_STACK_FRAMES = 50
MAX_PATH_CHARS = 2048

_FIELDS = "svc_infra_fields"
_STANDARD = frozenset([*vars(logging.makeLogRecord({})), "message", "asctime", "taskName", "color_message", _FIELDS])
_JSON = orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_CONTROL_BUT_NEWLINE = re.compile(_CONTROL.pattern.replace(r"\x1f", r"\x09\x0b-\x1f"))
_OWN_HANDLERS = ("uvicorn", "uvicorn.error", "uvicorn.asgi", "sqlalchemy", "sqlalchemy.engine", "alembic")

_root = logging.getLogger()
_ACCESS = "svc_infra.access"
_requests = logging.getLogger(_ACCESS)
_OF_EVERY_LINE = frozenset(["time", "level", "logger", "pid", "message"])


class Answered(NamedTuple):
    """A request and its answer, as its access line tells of them."""

    method: str
    path: str
    route: str
    status: int
    sent_bytes: int
    seconds: float
    first_byte_seconds: float | None
    client_ip: str

    def line(self, at: float, pid: int) -> dict[str, Any]:
        """The line without the facts of its context; nothing in it is long, and no credential in the path gets out."""
        method, path, route, status, sent_bytes, seconds, first_byte_seconds, client_ip = self
        path = redacted(path[:MAX_PATH_CHARS])
        line = {
            "time": datetime.fromtimestamp(at, UTC),
            "level": "INFO",
            "logger": _ACCESS,
            "pid": pid,
            "message": f"{method} {path} {status}",
            "method": method,
            "route": route,
            "path": path,
            "status": status,
            "bytes": sent_bytes,
            "duration_ms": int(seconds * 1e6) / 1000,
            "client_ip": client_ip,
        }
        if first_byte_seconds is not None:
            line["first_byte_ms"] = int(first_byte_seconds * 1e6) / 1000
        return line


Entry = tuple[float, tuple[str, ...], Told]
"""A line that is still to be made: the time, the facts of its context, what it tells."""


class EventLogger:
    """Writes events with fields: `logger.info("order.created", user_id=1)` or `extra={"user_id": 1}`."""

    def __init__(self, log: logging.Logger, fields: Mapping[str, Any]) -> None:
        self._logger = log
        self._context = fields

    def bind(self, **fields: Any) -> EventLogger:
        """A logger that adds these fields to each of its lines."""
        return EventLogger(self._logger, {**self._context, **fields})

    def debug(self, event: str, *args: object, **fields: Any) -> None:
        """Write a line that only helps while developing."""
        if self._logger.isEnabledFor(logging.DEBUG):
            self._write(logging.DEBUG, event, args, fields)

    def info(self, event: str, *args: object, **fields: Any) -> None:
        """Write that something happened as it should."""
        if self._logger.isEnabledFor(logging.INFO):
            self._write(logging.INFO, event, args, fields)

    def warning(self, event: str, *args: object, **fields: Any) -> None:
        """Write that something is not as it should be, and was coped with."""
        if self._logger.isEnabledFor(logging.WARNING):
            self._write(logging.WARNING, event, args, fields)

    def error(self, event: str, *args: object, **fields: Any) -> None:
        """Write that something failed; `exc_info=error` adds its type, message and stack."""
        if self._logger.isEnabledFor(logging.ERROR):
            self._write(logging.ERROR, event, args, fields)

    def exception(self, event: str, *args: object, **fields: Any) -> None:
        """Write that something failed, with the exception that is being handled."""
        if self._logger.isEnabledFor(logging.ERROR):
            self._write(logging.ERROR, event, args, {"exc_info": True, **fields})

    def critical(self, event: str, *args: object, **fields: Any) -> None:
        """Write that the service cannot go on."""
        if self._logger.isEnabledFor(logging.CRITICAL):
            self._write(logging.CRITICAL, event, args, fields)

    def _write(self, level: int, event: str, args: tuple[object, ...], fields: dict[str, Any]) -> None:
        exc_info = fields.pop("exc_info", None)
        extra = fields.pop("extra", None) or {}
        merged = {**self._context, **extra, **fields}
        self._logger.log(level, event, *args, exc_info=exc_info, extra={_FIELDS: merged}, stacklevel=3)


logger = EventLogger(logging.getLogger("app"), {})


class LineHandler(logging.Handler):
    """Writes each record as one line on standard error; lines of requests and jobs as JSON in batches, by a thread.

    Args:
        as_json: JSON lines; else lines for people, coloured on a terminal.
        drop_paths: Requests to these paths write no access line; nor where the app is served below another path.
    """

    def __init__(self, *, as_json: bool, drop_paths: Collection[str] = ()) -> None:
        super().__init__()
        self.as_json = as_json
        self.drop_paths = frozenset(drop_paths)
        self._buffer = LineBuffer(self._made, self._made_dropped)

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record."""
        try:
            extra = {name: value for name, value in vars(record).items() if name not in _STANDARD}
            fields = {**extra, **getattr(record, _FIELDS, {})}
            if record.name == _ACCESS and not self.drop_paths.isdisjoint([fields.get("path"), fields.get("route")]):
                return
            line: dict[str, Any] = {
                "time": datetime.fromtimestamp(record.created, UTC),
                "level": record.levelname,
                "logger": record.name,
                "pid": record.process,
                "message": shown(record.getMessage()),
                **current().known(),
            }
            error = record.exc_info[1] if record.exc_info else None
            if error is None:
                error = fields.pop("error", None)
            for name, value in cleaned(fields).items():
                line[_free(name, line)] = value
            if error is not None:
                line["error"] = _described(error)
            self._put(line)
        except Exception:  # noqa: BLE001 - the standard library's rule: a log line never fails its caller; it reports here
            self.handleError(record)

    def write_request(self, answered: Answered) -> None:
        """Write an access line."""
        if answered.path not in self.drop_paths and answered.route not in self.drop_paths:
            self.write_later(answered)

    def write_later(self, told: Told) -> None:
        """Write a line with those that come soon."""
        entry = time(), facts_of(current()), told
        if self.as_json:
            self._buffer.put(entry)
            return
        self.acquire()
        try:
            sys.stderr.write(self._as_text(self._later_line(entry)))
        except Exception:  # noqa: BLE001 - as in `emit`: no request fails because its line cannot be written
            self.handleError(logging.makeLogRecord({"name": __name__, "msg": str(told)[:MAX_PATH_CHARS]}))
        finally:
            self.release()

    @property
    def dropped(self) -> int:
        """Lines of requests and jobs that were not written: too many waited, or standard error took no more."""
        return self._buffer.dropped

    def flush(self) -> None:
        """Write the lines that wait."""
        self._buffer.flush()

    def close(self) -> None:
        """Write the lines that wait; the standard library calls it when the process exits."""
        self.flush()
        super().close()

    def _later_line(self, entry: Entry) -> dict[str, Any]:
        at, facts, told = entry
        line = told.line(at, self._buffer.pid)
        for name, fact in zip(FACTS, facts):  # noqa: B905 - its check would cost as much as a field
            if fact:
                line[name] = fact
        return line

    def _made(self, entry: Entry) -> bytes:
        try:
            return _as_json(self._later_line(entry))
        except Exception:  # noqa: BLE001 - one line that cannot be made must not end the thread that makes them all
            self.handleError(logging.makeLogRecord({"name": __name__, "msg": "a line that was to be made later"}))
            return b""

    def _made_dropped(self, count: int) -> bytes:
        line = {"time": datetime.now(UTC), "level": "WARNING", "logger": _ACCESS, "pid": self._buffer.pid}
        return _as_json({**line, "message": "access_log.dropped", "dropped": count})

    def _put(self, line: dict[str, Any]) -> None:
        sys.stderr.write(_as_json(line).decode() if self.as_json else self._as_text(line))

    @cached_property
    def _console(self) -> Any:
        from structlog.dev import ConsoleRenderer, plain_traceback  # 5 MB that a service in production has no use for

        return ConsoleRenderer(
            colors=sys.stderr.isatty(),
            event_key="message",
            timestamp_key="time",
            sort_keys=False,
            exception_formatter=plain_traceback,
        )

    def _as_text(self, line: dict[str, Any]) -> str:
        error = line.pop("error", None)
        text = {_escaped(_unrendered(name)): _escaped(value) for name, value in line.items()}
        text["time"] = f"{line['time']:%H:%M:%S.%f}"[:-3]
        text["level"] = str(line["level"]).lower()
        if error is not None:
            text["error"] = _escaped(error["message"])
            if stack := error.get("stack"):
                text["exception"] = _CONTROL_BUT_NEWLINE.sub(_escape, stack.rstrip())
        return f"{self._console(None, '', text)}\n"


def log_request(answered: Answered) -> None:
    """Write the access line of one request.

    Where our handler is the only one, the line is written without the detour of a log record, which would cost more
    than the rest of the edge together; any other set-up of logging gets an ordinary record.
    """
    if not _requests.isEnabledFor(logging.INFO):
        return
    if (handler := _only_handler(_requests)) is not None:
        handler.write_request(answered)
    else:
        _as_record(_requests, answered)


def log_later(log: logging.Logger, told: Told) -> None:
    """Write a line of which there may be thousands a second, as access lines are written: see `log_request`."""
    if not log.isEnabledFor(logging.INFO):
        return
    if (handler := _only_handler(log)) is not None:
        handler.write_later(told)
    else:
        _as_record(log, told)


def _as_record(log: logging.Logger, told: Told) -> None:
    line = told.line(0.0, 0)
    fields = {name: value for name, value in line.items() if name not in _OF_EVERY_LINE}
    log.info("%s", line["message"], extra=fields)


def _only_handler(log: logging.Logger) -> LineHandler | None:
    """Our handler, if nobody else would see a record of this logger."""
    handlers = _root.handlers
    if len(handlers) != 1 or not isinstance(handlers[0], LineHandler) or log.filters:
        return None
    at: logging.Logger | None = log
    while at is not None and at is not _root:
        if at.handlers or not at.propagate:
            return None
        at = at.parent
    return handlers[0]


def setup_logging(
    level: str | int | None = None,
    fmt: str | None = None,
    *,
    drop_paths: Collection[str] | None = None,
    settings: Settings | None = None,
) -> None:
    """Send every log line of this process through one handler; also those of uvicorn, SQLAlchemy and Alembic.

    uvicorn's own access log is switched off, as the edge writes a better one.

    Args:
        level: The least level that is written; `LOG_LEVEL` when left out.
        fmt: `json`, `plain`, or `auto`: JSON everywhere but in local; `LOG_FORMAT` when left out.
        drop_paths: Requests to these paths write no access line; `LOG_DROP_PATHS` when left out.
        settings: Where what is left out is looked up; the environment when left out.

    Raises:
        ConfigurationError: There is no such level or format.
    """
    settings = Settings() if settings is None else settings
    fmt = settings.log.format if fmt is None else fmt
    if fmt not in ("auto", "json", "plain"):
        raise ConfigurationError(f"The log format is {fmt!r}: use auto, json or plain.")
    if fmt == "auto":
        fmt = "plain" if settings.environment is Environment.LOCAL else "json"
    if drop_paths is None:
        drop_paths = settings.log.dropped
    root = logging.getLogger()
    try:
        root.setLevel(settings.log.level if level is None else level)
    except ValueError:
        raise ConfigurationError(f"The log level is {level!r}: use DEBUG, INFO, WARNING, ERROR or CRITICAL.") from None
    for handler in _installed():
        root.removeHandler(handler)
    root.addHandler(LineHandler(as_json=fmt == "json", drop_paths=drop_paths))
    adopt_libraries()


def adopt_libraries() -> None:
    """Take back the loggers of libraries that brought handlers of their own, as uvicorn does when it starts."""
    for name in _OWN_HANDLERS:
        library = logging.getLogger(name)
        library.handlers.clear()
        library.propagate = True
    duplicate = logging.getLogger("uvicorn.access")
    duplicate.handlers.clear()
    duplicate.propagate = False


def flush_logs() -> None:
    """Write the lines that wait."""
    for handler in _installed():
        handler.flush()


def is_set_up() -> bool:
    """Whether `setup_logging` was called in this process."""
    return bool(_installed())


def _installed() -> list[LineHandler]:
    return [handler for handler in logging.getLogger().handlers if isinstance(handler, LineHandler)]


def _free(name: str, line: Mapping[str, Any]) -> str:
    while name in line or name == "error":
        name += "_"
    return name


def _described(error: object) -> dict[str, str]:
    message = shown(printable(error))
    if not isinstance(error, BaseException):
        return {"message": message}
    kind = type(error)
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    frames = "".join(traceback.format_exception(error, limit=-MAX_STACK_FRAMES))
    return {"type": f"{module}{kind.__qualname__}", "message": message, "stack": shown(frames, keep_end=True)}


def _as_json(line: dict[str, Any]) -> bytes:
    try:
        content = orjson.dumps(line, option=_JSON)
    except orjson.JSONEncodeError:
        content = to_json(line) + b"\n"
    if content.isascii():
        return content
    # JSON may hold these three as they are, but some readers of lines break at them.
    text = content.decode().replace("\x85", "\\u0085").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return text.encode()


def _unrendered(name: str) -> str:
    """The console prints fields of these two names over several lines, and as they are."""
    return f"{name}_" if name in ("stack", "exception") else name


def _escaped(value: Any) -> Any:
    return _CONTROL.sub(_escape, value) if isinstance(value, str) else value


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()
