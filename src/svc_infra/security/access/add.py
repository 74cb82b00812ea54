"""Wires the check of an app's routes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from svc_infra.errors import ConfigurationError
from svc_infra.security.access.http import routes_without_policy
from svc_infra.wiring import Part, wiring_of

if TYPE_CHECKING:
    from fastapi import FastAPI


def add_strict_routes(app: FastAPI) -> None:
    """Let an app start only when each of its routes declares who may call it. A second call changes nothing.

    A route declares it by a dependency: `Identity`, `TenantId`, `RequirePermission(...)` and their relatives, one of
    the app's own that is marked with `declares(...)`, or `public()`. Mounted apps and endpoints without dependencies
    are marked themselves: `app.mount("/static", declares("public")(StaticFiles(...)))`.

    Args:
        app: The app. Its routes are looked at after its own lifespan has begun.

    Raises:
        ConfigurationError: At start-up: some routes declare nothing; the message lists them.
    """

    @asynccontextmanager
    async def checked() -> AsyncIterator[None]:
        if silent := routes_without_policy(app):
            raise ConfigurationError(
                f"Routes that do not say who may call them: {'; '.join(map(str, silent))}. Give each a dependency such "
                "as RequirePermission(...) or Identity, or public() where everybody may."
            )
        yield

    wiring_of(app).add(Part("strict_routes", run=checked, uses_app=True))
