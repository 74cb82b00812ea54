"""The header that tells a front end as whom it acts, so that it can say so on every page."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from svc_infra.middleware._scope import EDGE, AtEdge

HEADER = "X-Impersonating"

_NOTICE = "svc_infra.impersonation"


class ImpersonationNotice:
    """Adds the header to answers to requests that acted as a user, where no edge does that.

    Args:
        app: What it stands in front of.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on, with the header where one is wanted."""
        if scope["type"] != "http" or EDGE in scope:
            await self._app(scope, receive, send)
            return
        notice: list[tuple[bytes, bytes]] = []
        scope[_NOTICE] = notice

        async def told(message: Message) -> None:
            if notice and message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *notice]}
            await send(message)

        await self._app(scope, receive, told)


def give_notice(scope: Scope, target_id: str) -> None:
    """Have the answer to this request say as whom it acted, refusals and failures included.

    Args:
        scope: The request's.
        target_id: Visible ASCII characters.
    """
    notice: list[tuple[bytes, bytes]] = scope.setdefault(_NOTICE, [])
    if not notice:
        notice.append((HEADER.lower().encode(), target_id.encode("ascii")))
        edge: AtEdge | None = scope.get(EDGE)
        if edge is not None:
            edge.answer_headers.append(notice.copy)
