"""Which pages of other origins may read the answers: Starlette's rules, under settings that cannot be unsafe."""

from __future__ import annotations

import re

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from svc_infra.config.serving import CorsSettings
from svc_infra.errors import BadRequestError, ConfigurationError

ANY = "*"

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:\*\.)?(?:[a-z0-9_.-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")
_BELOW = r"(?:[a-z0-9_-]+\.)+"


def cors(app: ASGIApp, settings: CorsSettings) -> CORSMiddleware | None:
    """The rules of these settings; None when they name no origin.

    The edge asks Starlette's class what to add to an answer, also to those that the edge gives itself, and what to say
    to a preflight.

    Raises:
        ConfigurationError: An origin is none, or every origin were given credentials.
    """
    if not settings.origins:
        return None
    if ANY in settings.origins and (settings.credentials or len(settings.origins) > 1):
        raise ConfigurationError(
            "CORS_ORIGINS is *, which stands alone and without CORS_CREDENTIALS: name the origins."
        )
    if wrong := [origin for origin in settings.origins if origin != ANY and not _ORIGIN.fullmatch(origin)]:
        raise ConfigurationError(
            f"CORS_ORIGINS has {', '.join(wrong)}: write origins as https://app.example.com, in small letters and"
            " without a path; * may stand for the names below a domain, as in https://*.example.com."
        )
    patterns = [re.escape(origin).replace(r"\*\.", _BELOW) for origin in settings.origins if "*." in origin]
    return CORSMiddleware(
        app,
        allow_origins=[origin for origin in settings.origins if "*." not in origin],
        allow_origin_regex="|".join(patterns) or None,
        allow_credentials=settings.credentials,
        allow_methods=settings.methods,
        allow_headers=settings.headers,
        expose_headers=settings.expose_headers,
        max_age=settings.max_age_seconds,
    )


def is_preflight(scope: Scope, headers: Headers) -> bool:
    """Whether a browser asks if it may send a request (Fetch, section 4.8)."""
    return scope["method"] == "OPTIONS" and "origin" in headers and "access-control-request-method" in headers


async def answer_preflight(rules: CORSMiddleware, headers: Headers, scope: Scope, receive: Receive, send: Send) -> None:
    """Tell a browser whether it may.

    Raises:
        BadRequestError: It may not; the detail says why.
    """
    answer = rules.preflight_response(request_headers=headers)
    if answer.status_code >= 400:
        raise BadRequestError(f"{bytes(answer.body).decode()}.", headers={"Vary": answer.headers["vary"]})
    await answer(scope, receive, send)
