"""Everything that can be configured, one frozen section per room."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_network
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, model_validator
from pydantic_settings import SettingsConfigDict

from svc_infra.config.environment import Environment
from svc_infra.config.secrets import Secrets
from svc_infra.config.section import Section, all_wrong
from svc_infra.config.url import UrlSetting
from svc_infra.config.variables import Variables
from svc_infra.errors import ConfigurationError

PositiveSeconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
PositiveInt = Annotated[int, Field(gt=0)]


def _split(value: object) -> object:
    return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value


def _networks(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        if value != "unix":
            ip_network(value)
    return values


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
ManySeconds = Annotated[tuple[PositiveSeconds, ...], BeforeValidator(_split)]
"""Written with commas in the environment."""
Many = Annotated[tuple[str, ...], BeforeValidator(_split)]
"""Written with commas in the environment."""

STANDARD_WEBHOOKS_SCHEDULE_SECONDS = (5.0, 300.0, 1800.0, 7200.0, 18_000.0, 36_000.0, 50_400.0, 72_000.0, 86_400.0)
"""What the Standard Webhooks specification recommends: ten attempts within about 75 hours."""


class AppSettings(Section):
    """The service as a whole: `APP_*`."""

    model_config = SettingsConfigDict(env_prefix="APP_")

    env: Environment = Environment.LOCAL
    name: str = "service"
    release: str = "0.1.0"
    max_body_bytes: PositiveInt = 10 * 1024 * 1024
    shutdown_grace_seconds: PositiveSeconds = 20.0
    docs: bool | None = Field(
        None, description="Serve /docs, /redoc and /openapi.json; by default everywhere but prod."
    )


class EdgeSettings(Section):
    """What every request passes before a handler sees it: `EDGE_*`. The limit of a body is `APP_MAX_BODY_BYTES`."""

    model_config = SettingsConfigDict(env_prefix="EDGE_")

    trusted_proxies: Annotated[Many, AfterValidator(_networks)] = Field(
        (), description="Addresses and networks whose forwarded headers are believed; `unix` is a Unix socket's peer."
    )
    forwarded_header: Literal["x-forwarded", "forwarded"] = Field(
        "x-forwarded", description="Which headers the proxies write: X-Forwarded-*, or Forwarded (RFC 7239)."
    )
    trusted_hosts: Many = Field((), description="Hosts that are answered, such as `*.example.com`; by default all.")
    max_url_bytes: PositiveInt = 8192
    max_headers: PositiveInt = 100
    max_header_bytes: PositiveInt = 32 * 1024
    body_timeout_seconds: PositiveSeconds = Field(
        20.0, description="Longest wait for a request's body, beyond the time that the slowest rate allows."
    )
    min_body_bytes_per_second: PositiveInt = 500
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
    expose_headers: Many = ("ETag", "Location", "RateLimit", "RateLimit-Policy", "Retry-After", "X-Request-Id")
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


class LogSettings(Section):
    """Logs: `LOG_*`."""

    model_config = SettingsConfigDict(env_prefix="LOG_")

    level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"],
        BeforeValidator(_upper),
    ] = "INFO"
    format: Literal["auto", "json", "plain"] = "auto"
    drop_paths: str = "/metrics,/_ops/live,/_ops/ready,/_ops/startup"


class MetricsSettings(Section):
    """Metrics: `METRICS_*`."""

    model_config = SettingsConfigDict(env_prefix="METRICS_")

    enabled: bool = True
    path: str = "/metrics"


class SqlSettings(Section):
    """The SQL database: `SQL_*`."""

    model_config = SettingsConfigDict(env_prefix="SQL_")

    url: UrlSetting = "sqlite:///svc-infra.db"
    pool_size: PositiveInt = 10
    max_overflow: Annotated[int, Field(ge=0)] = 20
    pool_timeout_seconds: PositiveSeconds = 30.0
    statement_timeout_seconds: PositiveSeconds | None = None
    migrate_on_start: bool | None = Field(None, description="By default only in local and test.")


class RedisSettings(Section):
    """Redis or Valkey: `REDIS_*`."""

    model_config = SettingsConfigDict(env_prefix="REDIS_")

    url: UrlSetting | None = None


class JobsSettings(Section):
    """Background jobs: `JOBS_*`."""

    model_config = SettingsConfigDict(env_prefix="JOBS_")

    driver: Literal["auto", "sql", "memory", "redis"] = "auto"
    concurrency: PositiveInt = 10
    lease_seconds: PositiveSeconds = 15.0
    poll_interval_seconds: PositiveSeconds = 0.5
    max_attempts: PositiveInt = 5
    backoff_seconds: PositiveSeconds = 5.0
    timeout_seconds: PositiveSeconds | None = None
    drain_seconds: PositiveSeconds = 20.0
    retention_seconds: PositiveSeconds = 7 * 86400.0


class AuthSettings(Section):
    """Accounts, tokens and sessions: `AUTH_*`. Everything is signed with the secret `AUTH_SECRET`.

    With the secret `AUTH_SIGNING_KEYS`, private keys in PEM (P-256 or Ed25519, the newest first), access tokens are
    signed with those instead, and other services verify them with `/.well-known/jwks.json`.
    """

    model_config = SettingsConfigDict(env_prefix="AUTH_")

    secrets: ClassVar[tuple[str, ...]] = ("AUTH_SECRET",)
    optional_secrets: ClassVar[tuple[str, ...]] = ("AUTH_SECRET_PREVIOUS", "AUTH_SECRETS_RETIRED", "AUTH_SIGNING_KEYS")

    issuer: str = "svc-infra"
    audience: str = "svc-infra"
    access_ttl_seconds: PositiveSeconds = 900.0
    refresh_ttl_seconds: PositiveSeconds = 30 * 86400.0
    refresh_grace_seconds: Seconds = 10.0
    hash_concurrency: PositiveInt = 2
    hash_memory_kib: PositiveInt = Field(19 * 1024, description="Of argon2id; raised costs reach an account at login.")
    hash_passes: PositiveInt = 2
    token_cache: Literal["auto", "on", "off"] = Field(
        "auto", description="Keep who is logged in; auto: where a cache with Redis tells all processes of changes."
    )
    token_cache_seconds: PositiveSeconds = 30.0
    require_verified: bool | None = Field(None, description="Only proven addresses log in; by default in prod.")
    breach_check: bool | None = Field(
        None, description="Ask Have I Been Pwned about new passwords; by default in prod."
    )
    breach_check_url: str = "https://api.pwnedpasswords.com/range/"
    verify_ttl_seconds: PositiveSeconds = 86400.0
    reset_ttl_seconds: PositiveSeconds = 600.0
    mail_interval_seconds: Seconds = Field(60.0, description="Between two mails of a kind to one account.")
    lockout_threshold: PositiveInt = Field(5, description="Failed attempts at an account that lock it.")
    lockout_network_threshold: PositiveInt = 100
    lockout_base_seconds: PositiveSeconds = Field(30.0, description="The first lock; each failure doubles it.")
    lockout_max_seconds: PositiveSeconds = 3600.0
    lockout_window_seconds: PositiveSeconds = Field(86400.0, description="When failures are forgotten.")
    oauth_redirect_url: str | None = Field(
        None, description="Where providers send browsers back to: the public address of /oauth/callback."
    )
    oauth_next_origins: Many = Field((), description="Other origins to whose pages one may go after such a login.")
    oauth_ttl_seconds: PositiveSeconds = Field(600.0, description="How long such a login may take.")


class MailSettings(Section):
    """Mail: `MAIL_*`. The server's password is the secret `MAIL_SMTP_PASSWORD`."""

    model_config = SettingsConfigDict(env_prefix="MAIL_")

    optional_secrets: ClassVar[tuple[str, ...]] = ("MAIL_SMTP_PASSWORD",)

    from_address: str | None = Field(None, description="Such as `Shop <no-reply@shop.example>`.")
    link_base_url: str | None = Field(None, description="Where the pages are that links lead to.")
    smtp_host: str | None = Field(None, description="Without it, mail is logged in local and test.")
    smtp_port: PositiveInt = 587
    smtp_username: str | None = None
    smtp_tls: Literal["starttls", "tls", "none"] = "starttls"
    timeout_seconds: PositiveSeconds = 10.0


class IdempotencySettings(Section):
    """Answers that are kept for `Idempotency-Key`: `IDEMPOTENCY_*`."""

    model_config = SettingsConfigDict(env_prefix="IDEMPOTENCY_")

    store: Literal["auto", "sql", "redis"] = Field("auto", description="auto: SQL where the app has a database.")
    ttl_seconds: PositiveSeconds = Field(86400.0, description="How long an answer is replayed.")
    lease_seconds: PositiveSeconds = Field(60.0, description="When the key of a request that died is free again.")
    max_answer_bytes: PositiveInt = 1024 * 1024
    purge_interval_seconds: PositiveSeconds = 300.0


class WebhooksSettings(Section):
    """Outgoing and incoming webhooks: `WEBHOOKS_*`. Secrets at rest are encrypted with the secret `WEBHOOKS_KEY`."""

    model_config = SettingsConfigDict(env_prefix="WEBHOOKS_")

    secrets: ClassVar[tuple[str, ...]] = ("WEBHOOKS_KEY",)
    optional_secrets: ClassVar[tuple[str, ...]] = ("WEBHOOKS_KEY_PREVIOUS",)

    timeout_seconds: PositiveSeconds = 10.0
    retry_schedule_seconds: ManySeconds = Field(
        STANDARD_WEBHOOKS_SCHEDULE_SECONDS, description="Delays before the second attempt, the third and so on."
    )


class CacheSettings(Section):
    """The cache: `CACHE_*`."""

    model_config = SettingsConfigDict(env_prefix="CACHE_")

    url: UrlSetting | None = Field(None, description="By default `REDIS_URL`; without either there is only memory.")
    namespace: str | None = Field(None, description="Whose keys these are; by default `APP_NAME`.")
    version: str = "1"
    default_ttl_seconds: PositiveSeconds = 300.0
    memory_ttl_seconds: PositiveSeconds = 60.0
    max_entries: Annotated[int, Field(ge=0)] = 10_000
    max_bytes: PositiveInt = 64 * 1024 * 1024
    timeout_seconds: PositiveSeconds = 1.0
    retry_seconds: PositiveSeconds = 1.0


class HttpClientSettings(Section):
    """Outbound HTTP: `HTTP_CLIENT_*`."""

    model_config = SettingsConfigDict(env_prefix="HTTP_CLIENT_")

    timeout_seconds: PositiveSeconds = 10.0
    max_response_bytes: PositiveInt = 1024 * 1024
    allow_private_addresses: bool | None = Field(None, description="By default only in local and test.")


class RateLimitSettings(Section):
    """Rate limits: `RATE_LIMIT_*`."""

    model_config = SettingsConfigDict(env_prefix="RATE_LIMIT_")

    driver: Literal["auto", "memory", "redis"] = Field("auto", description="By default redis where REDIS_URL is set.")
    on_outage: Literal["allow", "deny"] = Field("allow", description="What happens while requests cannot be counted.")
    timeout_seconds: PositiveSeconds = Field(0.05, description="Longest that Redis may take for a request.")
    max_keys: PositiveInt = Field(65_536, description="Clients that are remembered in memory.")


class Settings(BaseModel):
    """All settings of one app.

    `Settings()` reads everything from the environment; `Settings(sql={"url": "sqlite://"})` and
    `Settings(app=AppSettings(name="shop"))` give some values in code and read the rest. An application adds its own
    section in a subclass.

    Raises:
        ConfigurationError: Values are wrong; the message names every wrong variable and the mend.
    """

    model_config = ConfigDict(frozen=True)

    app: AppSettings = Field(default_factory=AppSettings)
    edge: EdgeSettings = Field(default_factory=EdgeSettings)
    cors: CorsSettings = Field(default_factory=CorsSettings)
    headers: HeadersSettings = Field(default_factory=HeadersSettings)
    log: LogSettings = Field(default_factory=LogSettings)
    metrics: MetricsSettings = Field(default_factory=MetricsSettings)
    sql: SqlSettings = Field(default_factory=SqlSettings)
    redis: RedisSettings = Field(default_factory=RedisSettings)
    jobs: JobsSettings = Field(default_factory=JobsSettings)
    auth: AuthSettings = Field(default_factory=AuthSettings)
    mail: MailSettings = Field(default_factory=MailSettings)
    idempotency: IdempotencySettings = Field(default_factory=IdempotencySettings)
    webhooks: WebhooksSettings = Field(default_factory=WebhooksSettings)
    cache: CacheSettings = Field(default_factory=CacheSettings)
    http_client: HttpClientSettings = Field(default_factory=HttpClientSettings)
    rate_limit: RateLimitSettings = Field(default_factory=RateLimitSettings)

    _variables: Variables = PrivateAttr(default_factory=Variables.read)

    @model_validator(mode="before")
    @classmethod
    def _build_every_section(cls, given: Mapping[str, Any]) -> dict[str, Section]:
        """Read the sections one by one, so that everything that is wrong in any of them is told at once."""
        if unknown := given.keys() - cls.model_fields.keys():
            raise ConfigurationError(
                f"Settings have no {', '.join(sorted(unknown))}: use {', '.join(cls.model_fields)}."
            )
        built: dict[str, Section] = {}
        wrong: list[Any] = []
        for name, field in cls.model_fields.items():
            kind = cast(type[Section], field.annotation)
            values = given.get(name, {})
            try:
                built[name] = values if isinstance(values, kind) else kind(**values)
            except ConfigurationError as error:
                if not error.errors:
                    raise
                wrong.extend(error.errors)
        if wrong:
            raise all_wrong(wrong)
        return built

    @property
    def environment(self) -> Environment:
        """The environment of the whole app."""
        return self.app.env

    @property
    def secrets(self) -> Secrets:
        """The secrets of this app's environment."""
        return Secrets(self.environment, variables=self._variables)

    @property
    def variables(self) -> Variables:
        """What the environment said when these settings were made."""
        return self._variables

    def sections(self) -> dict[str, Section]:
        """Every section by its name, in the order in which they are declared."""
        return {name: getattr(self, name) for name in type(self).model_fields}
