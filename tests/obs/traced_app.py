"""An app whose spans a test looks at."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import FastAPI
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from svc_infra import create_app
from svc_infra.config import AppSettings, Settings
from svc_infra.errors import NotFoundError
from svc_infra.obs.add import add_observability
from svc_infra.obs.context import current
from svc_infra.obs.logging import logger
from svc_infra.obs.tracing import span

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
KEPT, NOT_KEPT = ("traceparent", f"00-{TRACE}-{CALLER}-01"), ("traceparent", f"00-{TRACE}-{CALLER}-00")


class Kept(InMemorySpanExporter):
    """The spans that were sent: all of them when the app has ended."""

    def named(self, name: str) -> ReadableSpan:
        (found,) = [one for one in self.get_finished_spans() if one.name == name]
        return found


def service(exporter: InMemorySpanExporter, **settings: Any) -> FastAPI:
    sections = Settings(app=AppSettings(name="shop", release="7", env="test"), **settings)
    app = create_app(settings=sections)
    add_observability(app, span_exporter=exporter)

    @app.get("/orders/{order}")
    async def order(order: int) -> dict[str, str]:
        logger.info("looked")
        return current().known()

    @app.get("/parts")
    async def parts() -> list[str]:
        with span("price.calculate", attributes={"items": 3}) as one:
            one.set("text", "x" * 5000)
            logger.info("calculated")
            inside = current().known()["span_id"]
        await asyncio.gather(one_of("a"), one_of("b"))
        return [inside, current().known()["span_id"]]

    async def one_of(name: str) -> None:
        with span(name):
            await asyncio.sleep(0)
            with span(f"{name}.inner"):
                await asyncio.sleep(0)

    @app.get("/fails")
    async def fails() -> None:
        with span("breaks"):
            raise KeyError("a secret")

    @app.get("/missing")
    async def missing() -> None:
        raise NotFoundError("Order", 1)

    return app


def parent_of(one: ReadableSpan) -> str:
    return "" if one.parent is None else f"{one.parent.span_id:016x}"


def id_of(one: ReadableSpan) -> str:
    assert one.context is not None
    return f"{one.context.span_id:016x}"
