"""Spans of SQL statements, as they are written, without a value in them."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from svc_infra.obs.context import current, span_id_here
from svc_infra.obs.tracing.spans import MAX_TEXT_CHARS, Tracing, Value

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.engine import ExceptionContext

MAX_STATEMENT_CHARS = 16 * 1024
"""Of a longer statement only the operation is shown."""

_SPAN = "svc_infra.span"
_PART = re.compile(
    r"--[^\n]*|/\*(?:(?!/\*).)*?\*/|/\*.*"  # comments; one that holds another hides the rest
    r"|(?P<value>\b[Ee]'(?:[^'\\]|''|\\.)*(?:'|\Z)"  # a string with escapes
    r"|(?:\b[BbNnXx]|\b[Uu]&)?'(?:[^']|'')*(?:'|\Z)"
    r"|\$(?P<tag>[A-Za-z_]*)\$.*?(?:\$(?P=tag)\$|\Z)"
    r"|\b\d[\w.]*)"
    r"|(?P<name>\"[^\"]*(?:\"|\Z)|[$:@]\w+|[A-Za-z_][\w$]*)",
    re.DOTALL,
)


def trace_statements(engine: Engine, tracing: Tracing) -> Callable[[], None]:
    """Record each statement of a trace that is kept as a span.

    Returns:
        Ends that.
    """
    from sqlalchemy import event  # an app without a database does not load it

    known = _known(engine)

    def before(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        request = current()
        if not request.sampled:
            return
        _end(connection, None)  # of a statement whose end nobody has told
        text = without_values(statement)
        name = _operation(context, text)
        attributes: dict[str, Value] = {**known, "db.operation.name": name, "db.query.text": text}
        if many and len(parameters) > 1:
            attributes["db.operation.batch.size"] = len(parameters)
        namespace = known.get("db.namespace")
        connection.info[_SPAN] = tracing.begin(
            f"{name} {namespace}" if namespace else name,
            "client",
            attributes,
            request.trace_id,
            span_id_here(request),
        )

    def after(connection: Any, *_: Any) -> None:
        _end(connection, None)

    def failed(context: ExceptionContext) -> None:
        if context.connection is not None and not context.connection.invalidated:
            _end(context.connection, type(context.original_exception).__name__)

    listeners: dict[str, Callable[..., None]] = {
        "before_cursor_execute": before,
        "after_cursor_execute": after,
        "handle_error": failed,
    }
    for name, listener in listeners.items():
        event.listen(engine, name, listener)

    def end() -> None:
        for name, listener in listeners.items():
            event.remove(engine, name, listener)

    return end


@lru_cache(maxsize=1024)
def without_values(statement: str) -> str:
    """A statement with `?` for every value in it, and without comments; parameters stay as they are."""
    if len(statement) > MAX_STATEMENT_CHARS:
        return ""
    return _PART.sub(_shown, statement).strip()[:MAX_TEXT_CHARS]


def _shown(match: re.Match[str]) -> str:
    return match["name"] or ("?" if match["value"] else "")


def _operation(context: Any, text: str) -> str:
    """What a statement does; SQLAlchemy knows it of those that begin with `WITH`."""
    for name in ("insert", "update", "delete"):
        if getattr(context, f"is{name}", False):
            return name.upper()
    found = re.match(r"[A-Za-z]{1,16}", text)
    return found[0].upper() if found else "STATEMENT"


def _end(connection: Any, error: str | None) -> None:
    recorded = connection.info.pop(_SPAN, None)
    if recorded is not None:
        if error is not None:
            recorded.fail(error)
        recorded.end()


def _known(engine: Engine) -> dict[str, Value]:
    """Source: OpenTelemetry's semantic conventions for databases, stable; `db.system` is their older name."""
    url = engine.url
    known: dict[str, Value] = {"db.system.name": engine.dialect.name, "db.system": engine.dialect.name}
    if url.database:
        known["db.namespace"] = PurePath(url.database).name if engine.dialect.name == "sqlite" else url.database
    if url.host:
        known["server.address"] = url.host
    if url.port:
        known["server.port"] = url.port
    return known
