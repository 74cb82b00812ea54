"""The probes of one app."""

from __future__ import annotations

from typing import TYPE_CHECKING

from svc_infra.ops.http import probes
from svc_infra.ops.readiness import Readiness
from svc_infra.wiring import wiring_of

if TYPE_CHECKING:
    from starlette.applications import Starlette


def add_probes(app: Starlette, *, prefix: str = "/_ops") -> None:
    """Answer the probes of an orchestrator.

    `live` is 200 as long as the process serves. `startup` is 503 until every part has started. `ready` is 503 unless
    the app runs, does not shut down, and every part's check passes.

    Args:
        app: The app.
        prefix: The path under which the three are found.
    """
    wiring = wiring_of(app)
    if not wiring.has(Readiness):
        readiness = Readiness(wiring)
        wiring.provide(Readiness, readiness)
        app.router.routes.extend(probes(readiness, prefix=prefix))
