"""Everything that can be configured, one frozen section per room."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, model_validator
from pydantic_settings import SettingsConfigDict

from svc_infra.config.environment import Environment
from svc_infra.config.secrets import Secrets
from svc_infra.config.section import Section, all_wrong
from svc_infra.config.serving import CorsSettings, EdgeSettings, HeadersSettings, IdempotencySettings, RateLimitSettings
from svc_infra.config.telemetry import LogSettings, MetricsSettings, OtelSettings
from svc_infra.config.url import UrlSetting
from svc_infra.config.values import (
    Many,
    ManySeconds,
    NonNegativeInt,
    PositiveInt,
    PositiveSeconds,
    Seconds,
    checked_site_data,
)
from svc_infra.config.variables import Variables
from svc_infra.errors import ConfigurationError

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
    prefetch: NonNegativeInt = Field(0, description="Jobs that a worker claims beyond those that it runs.")
    stall_seconds: PositiveSeconds = Field(60.0, description="When a worker that gets no due job counts as broken.")


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
    refresh_idle_seconds: PositiveSeconds = Field(14 * 86400.0, description="How long a login lasts without a refresh.")
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
    password_words: Many = Field((), description="Of which no password may consist, beside the app's name.")
    verify_ttl_seconds: PositiveSeconds = 86400.0
    reset_ttl_seconds: PositiveSeconds = 600.0
    mail_interval_seconds: Seconds = Field(60.0, description="Between two mails of a kind to one account.")
    clear_site_data: Annotated[Many, AfterValidator(checked_site_data)] = Field(
        ("storage",), description="What a browser forgets at logout beside its cookies of the login; off for nothing."
    )
    lockout_threshold: PositiveInt = Field(5, description="Failed attempts at an account that lock it.")
    lockout_network_threshold: PositiveInt = 100
    lockout_base_seconds: PositiveSeconds = Field(30.0, description="The first lock; each failure doubles it.")
    lockout_max_seconds: PositiveSeconds = 3600.0
    lockout_window_seconds: PositiveSeconds = Field(86400.0, description="When failures are forgotten.")
    secret_scanning_keys_url: str = Field(
        "https://api.github.com/meta/public_keys/secret_scanning",
        description="Where GitHub publishes what its reports of leaked keys are signed with.",
    )
    oauth_redirect_url: str | None = Field(
        None, description="Where providers send browsers back to: the public address of /oauth/callback."
    )
    oauth_next_origins: Many = Field((), description="Other origins to whose pages one may go after such a login.")
    oauth_ttl_seconds: PositiveSeconds = Field(600.0, description="How long such a login may take.")


class SecuritySettings(Section):
    """What an app insists on: `SECURITY_*`."""

    model_config = SettingsConfigDict(env_prefix="SECURITY_")

    strict_routes: bool = Field(False, description="Start only when every route says who may call it.")


class MfaSettings(Section):
    """Second factors and passkeys: `MFA_*`."""

    model_config = SettingsConfigDict(env_prefix="MFA_")

    required: Literal["off", "roles", "all"] = Field(
        "off", description="Who can do nothing without a second factor: nobody, who has one of MFA_ROLES, everybody."
    )
    roles: Many = Field(("admin",), description="Whose holders need one, with MFA_REQUIRED=roles.")
    issuer: str | None = Field(None, description="What authenticator apps show; by default `APP_NAME`.")
    email_codes: bool = Field(False, description="Offer codes by mail: weak, so not what MFA_REQUIRED asks for.")
    rp_id: str | None = Field(
        None,
        description="The domain that passkeys belong to; by default localhost in local and test, needed elsewhere.",
    )
    origins: Many = Field(
        (), description="The pages' origins that passkeys may be used from; by default https://<MFA_RP_ID>."
    )
    page_url: str = Field("/second-factor", description="The page that asks for the factor after an OAuth login.")
    step_ttl_seconds: PositiveSeconds = Field(300.0, description="How long the second step of a login may take.")


class AdminSettings(Section):
    """Admins who act as users: `ADMIN_*`. Their cookie is signed with the secret `ADMIN_IMPERSONATION_SECRET`.

    Where that is not set, it is signed with `APP_SECRET`.
    """

    model_config = SettingsConfigDict(env_prefix="ADMIN_")

    optional_secrets: ClassVar[tuple[str, ...]] = (
        "ADMIN_IMPERSONATION_SECRET", "ADMIN_IMPERSONATION_SECRET_PREVIOUS", "APP_SECRET",
    )  # fmt: skip

    impersonation_ttl: Annotated[int, Field(gt=0, le=3600)] = Field(900, description="Seconds; at most an hour.")
    impersonation_cookie: Annotated[str, Field(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}$")] = "impersonation"


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
    otel: OtelSettings = Field(default_factory=OtelSettings)
    sql: SqlSettings = Field(default_factory=SqlSettings)
    redis: RedisSettings = Field(default_factory=RedisSettings)
    jobs: JobsSettings = Field(default_factory=JobsSettings)
    auth: AuthSettings = Field(default_factory=AuthSettings)
    security: SecuritySettings = Field(default_factory=SecuritySettings)
    mfa: MfaSettings = Field(default_factory=MfaSettings)
    admin: AdminSettings = Field(default_factory=AdminSettings)
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
