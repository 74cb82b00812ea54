"""Settings of what stands around every request."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic_settings import SettingsConfigDict

from svc_infra.config.section import Section
from svc_infra.config.values import Many, PositiveInt, PositiveSeconds, Seconds, checked_networks


class EdgeSettings(Section):
    """What every request passes before a handler sees it: `EDGE_*`. The limit of a body is `APP_MAX_BODY_BYTES`."""

    model_config = SettingsConfigDict(env_prefix="EDGE_")

    trusted_proxies: Annotated[Many, AfterValidator(checked_networks)] = Field(
        (), description="Addresses and networks whose forwarded headers are believed; `unix` is a Unix socket's peer."
    )
    forwarded_header: Literal["x-forwarded", "forwarded"] = Field(
        "x-forwarded", description="Which headers the proxies write: X-Forwarded-*, or Forwarded (RFC 7239)."
    )
    forwarded_host: bool = Field(
        False, description="Whether the proxies write X-Forwarded-Host; many leave it as the client has sent it."
    )
    trusted_hosts: Many = Field((), description="Hosts that are answered, such as `*.example.com`; by default all.")
    max_url_bytes: PositiveInt = 8192
    max_headers: PositiveInt = 100
    max_header_bytes: PositiveInt = 32 * 1024
    header_timeout_seconds: PositiveSeconds = Field(
        20.0, description="Longest wait for a request's headers, from its first byte or the connection's beginning."
    )
    body_timeout_seconds: PositiveSeconds = Field(
        20.0, description="Longest wait for a request's body, beyond the time that the slowest rate allows."
    )
    min_body_bytes_per_second: PositiveInt = 500
    send_timeout_seconds: PositiveSeconds = Field(
        60.0, description="Longest that a client may take nothing of an answer that waits for it."
    )
    handler_timeout_seconds: Seconds = Field(60.0, description="Longest time until an answer begins; 0 for any time.")
    max_concurrency: PositiveInt = Field(1000, description="Handlers that run at once in one process.")
    max_queue: Annotated[int, Field(ge=0)] = Field(1000, description="Requests that wait for one of them to end.")
    queue_timeout_seconds: PositiveSeconds = 1.0
    drain_delay_seconds: Seconds | None = Field(
        None, description="From SIGTERM until no more connections are accepted; by default 5 in prod and else 0."
    )


class CorsSettings(Section):
    """Which pages of other origins may read the answers: `CORS_*`. By default none."""

    model_config = SettingsConfigDict(env_prefix="CORS_")

    origins: Many = Field((), description="Such as `https://app.example.com` or `https://*.example.com`; `*` is all.")
    credentials: bool = Field(False, description="Let the pages send cookies; not with the origin `*`.")
    methods: Many = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
    headers: Many = (
        "Authorization",
        "Idempotency-Key",
        "If-Match",
        "If-None-Match",
        "If-Unmodified-Since",
        "Traceparent",
        "X-Request-Id",
        "X-Tenant-Id",
    )
    expose_headers: Many = (
        "ETag",
        "Idempotent-Replayed",
        "Location",
        "RateLimit",
        "RateLimit-Policy",
        "Retry-After",
        "X-Impersonating",
        "X-Request-Id",
    )
    max_age_seconds: PositiveInt = 600


class HeadersSettings(Section):
    """Headers that tell a browser to be careful, on every answer that does not set its own: `HEADERS_*`.

    The values are those of the OWASP Secure Headers Project, stricter where an API needs less. The value `off` leaves a
    header out.
    """

    model_config = SettingsConfigDict(env_prefix="HEADERS_")

    content_security_policy: str = Field(
        "default-src 'none'; frame-ancestors 'none'", description="Of every answer but HTML pages."
    )
    html_content_security_policy: str = Field(
        "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
        description="Of HTML pages.",
    )
    cross_origin_opener_policy: str = "same-origin"
    cross_origin_resource_policy: str = "same-origin"
    permissions_policy: str = "camera=(), geolocation=(), microphone=(), payment=(), usb=()"
    referrer_policy: str = "no-referrer"
    strict_transport_security: str = Field("max-age=31536000; includeSubDomains", description="Over https only.")
    x_content_type_options: str = "nosniff"
    x_frame_options: str = "DENY"


class IdempotencySettings(Section):
    """Answers that are kept for `Idempotency-Key`: `IDEMPOTENCY_*`."""

    model_config = SettingsConfigDict(env_prefix="IDEMPOTENCY_")

    store: Literal["auto", "sql", "redis"] = Field("auto", description="auto: SQL where the app has a database.")
    ttl_seconds: PositiveSeconds = Field(86400.0, description="How long an answer is replayed.")
    lease_seconds: PositiveSeconds = Field(60.0, description="When the key of a request that died is free again.")
    max_answer_bytes: PositiveInt = 1024 * 1024
    purge_interval_seconds: PositiveSeconds = 300.0


class RateLimitSettings(Section):
    """Rate limits: `RATE_LIMIT_*`."""

    model_config = SettingsConfigDict(env_prefix="RATE_LIMIT_")

    driver: Literal["auto", "memory", "redis"] = Field("auto", description="By default redis where REDIS_URL is set.")
    on_outage: Literal["allow", "deny"] = Field("allow", description="What happens while requests cannot be counted.")
    timeout_seconds: PositiveSeconds = Field(0.05, description="Longest that Redis may take for a request.")
    max_keys: PositiveInt = Field(65_536, description="Clients that are remembered in memory.")
