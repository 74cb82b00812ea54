"""Headers that tell a browser to be careful."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from svc_infra.config.serving import HeadersSettings
from svc_infra.middleware._scope import EDGE
from svc_infra.middleware.problem import Headers, encoded

OFF = "off"
"""The value of a header that is left out."""

_CSP = b"content-security-policy"
_ONLY_OVER_HTTPS = b"strict-transport-security"
_OF_HTML = "html_"


class SecurityHeaders:
    """The headers, encoded once.

    Args:
        settings: Their values.
    """

    def __init__(self, settings: HeadersSettings) -> None:
        values = {name: str(getattr(settings, name)) for name in type(settings).model_fields}
        values = {name: value for name, value in values.items() if value != OFF}
        page = {name: value for name, value in values.items() if not name.startswith(_OF_HTML)}
        page.pop("content_security_policy", None)
        page |= {name.removeprefix(_OF_HTML): value for name, value in values.items() if name.startswith(_OF_HTML)}
        other = {name: value for name, value in values.items() if not name.startswith(_OF_HTML)}
        self._sets = {  # by: is it an HTML page, did it come over https
            (kind, secure): [header for header in _encoded(names) if secure or header[0] != _ONLY_OVER_HTTPS]
            for kind, names in ((True, page), (False, other))
            for secure in (True, False)
        }
        self._names = frozenset(name for headers in self._sets.values() for name, _ in headers)
        self._plain, self._plain_secure = self._sets[False, False], self._sets[False, True]

    def missing(self, present: Mapping[bytes, bytes], secure: bool) -> Headers:
        """The headers that an answer lacks.

        Args:
            present: The headers that it has, by lower-case name.
            secure: It goes out over https.
        """
        if b"content-type" in present and present[b"content-type"].startswith(b"text/html"):
            headers = self._sets[True, secure]
        else:
            headers = self._plain_secure if secure else self._plain
        if self._names.isdisjoint(present):
            return headers
        return [header for header in headers if header[0] not in present]


class SecurityHeadersMiddleware:
    """Adds to each answer the security headers that it lacks.

    Does nothing in an app of `create_app`, whose edge has done it.

    Args:
        app: The rest of the stack.
        **values: Replace the defaults, which are those of `HeadersSettings`; `off` leaves a header out.
    """

    def __init__(self, app: ASGIApp, /, **values: Any) -> None:
        self.app = app
        self._headers = SecurityHeaders(HeadersSettings(**values))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or EDGE in scope:
            await self.app(scope, receive, send)
            return
        secure = scope["scheme"] == "https"

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", ()))
                missing = self._headers.missing(by_name(headers), secure)
                message = {**message, "headers": headers + missing}
            await send(message)

        await self.app(scope, receive, send_with_headers)


def by_name(headers: Headers) -> dict[bytes, bytes]:
    """Headers by lower-case name; the last one of each."""
    return {name.lower(): value for name, value in headers}


def _encoded(values: Mapping[str, str]) -> Headers:
    return encoded((name.replace("_", "-"), value) for name, value in values.items())
