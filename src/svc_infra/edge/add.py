"""Gives an app its shutdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from svc_infra.edge.shutdown import Shutdown
from svc_infra.wiring import Part, wiring_of

if TYPE_CHECKING:
    from starlette.applications import Starlette


def add_edge(app: Starlette) -> None:
    """Let the app drain when its server is told to stop; its settings are `EDGE_*`.

    The edge itself stands around the app in `create_app`, outside of all that `add_middleware` adds.
    """
    wiring = wiring_of(app)
    if not wiring.has(Shutdown):
        shutdown = Shutdown(wiring)
        wiring.provide(Shutdown, shutdown)
        wiring.add(Part("edge", run=shutdown.listening))
