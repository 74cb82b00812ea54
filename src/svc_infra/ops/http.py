"""The probes over HTTP, as plain Starlette endpoints: no schema, no dependencies, nothing to authenticate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from svc_infra.config import Environment
from svc_infra.errors import UnavailableError
from svc_infra.middleware.problem import render
from svc_infra.obs.page import FixedRoute
from svc_infra.obs.redact import to_json
from svc_infra.ops.readiness import Readiness
from svc_infra.route_policy import PUBLIC, declares
from svc_infra.wiring import Phase


def probes(readiness: Readiness, *, prefix: str) -> list[FixedRoute]:
    """The routes of the three probes."""
    wiring = readiness.wiring
    expose = wiring.settings.environment is not Environment.PROD

    @declares(PUBLIC)
    async def live(request: Request) -> Response:
        return _ok({})

    @declares(PUBLIC)
    async def startup(request: Request) -> Response:
        if wiring.phase in (Phase.NEW, Phase.STARTING):
            return _unavailable(request, "The service is starting.", {"phase": wiring.phase}, expose=expose)
        return _ok({"phase": wiring.phase})

    @declares(PUBLIC)
    async def ready(request: Request) -> Response:
        if wiring.phase is not Phase.READY:
            return _unavailable(request, f"The service is {wiring.phase}.", {"phase": wiring.phase}, expose=expose)
        checks = await readiness.checks()
        members = {"phase": wiring.phase, "checks": [check.as_json(expose=expose) for check in checks]}
        failed = [check.name for check in checks if not check.passed]
        if failed:
            return _unavailable(request, f"Not ready: {', '.join(failed)}.", members, expose=expose)
        return _ok(members)

    return [
        FixedRoute(f"{prefix}/{probe.__name__}", probe, include_in_schema=False) for probe in (live, startup, ready)
    ]


def _ok(members: Mapping[str, Any]) -> Response:
    headers = {"Cache-Control": "no-store"}
    return Response(to_json({"status": "ok", **members}), media_type="application/json", headers=headers)


def _unavailable(request: Request, detail: str, members: Mapping[str, Any], *, expose: bool) -> Response:
    error = UnavailableError(detail, retry_after_seconds=1)
    status, headers, body = render(error, scope=request.scope, expose=expose, cause=None, members=members)
    response = Response(body, status_code=status)
    response.raw_headers = [*headers, (b"content-length", str(len(body)).encode())]
    return response
