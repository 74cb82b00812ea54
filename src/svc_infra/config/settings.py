"""Everything that can be configured, one frozen section per room."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from svc_infra.config.environment import Environment

PositiveSeconds = Annotated[float, Field(gt=0)]
PositiveInt = Annotated[int, Field(gt=0)]


class Section(BaseSettings):
    """A room's settings; each field is read from the environment variable that its section's prefix and name make."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True)


class AppSettings(Section):
    """The service as a whole: `APP_*`."""

    model_config = SettingsConfigDict(env_prefix="APP_")

    env: Annotated[Environment, BeforeValidator(Environment.parse)] = Environment.LOCAL
    name: str = "service"
    release: str = "0.1.0"
    max_body_bytes: PositiveInt = 10 * 1024 * 1024
    shutdown_grace_seconds: PositiveSeconds = 20.0
    docs: bool | None = Field(
        None, description="Serve /docs, /redoc and /openapi.json; by default everywhere but prod."
    )


class LogSettings(Section):
    """Logs: `LOG_*`."""

    model_config = SettingsConfigDict(env_prefix="LOG_")

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = "INFO"
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

    url: str = "sqlite:///svc-infra.db"
    pool_size: PositiveInt = 10
    max_overflow: Annotated[int, Field(ge=0)] = 20
    pool_timeout_seconds: PositiveSeconds = 30.0
    statement_timeout_seconds: PositiveSeconds | None = None
    migrate_on_start: bool | None = Field(None, description="By default only in local and test.")


class RedisSettings(Section):
    """Redis or Valkey: `REDIS_*`."""

    model_config = SettingsConfigDict(env_prefix="REDIS_")

    url: str | None = None


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
    """Accounts, tokens and sessions: `AUTH_*`. The signing key is the secret `AUTH_SECRET`."""

    model_config = SettingsConfigDict(env_prefix="AUTH_")

    issuer: str = "svc-infra"
    audience: str = "svc-infra"
    access_ttl_seconds: PositiveSeconds = 900.0
    refresh_ttl_seconds: PositiveSeconds = 30 * 86400.0
    refresh_grace_seconds: Annotated[float, Field(ge=0)] = 10.0
    hash_concurrency: PositiveInt = 2


class WebhooksSettings(Section):
    """Outgoing and incoming webhooks: `WEBHOOKS_*`. Secrets at rest are encrypted with the secret `WEBHOOKS_KEY`."""

    model_config = SettingsConfigDict(env_prefix="WEBHOOKS_")

    timeout_seconds: PositiveSeconds = 10.0
    max_attempts: PositiveInt = 10
    tolerance_seconds: PositiveSeconds = 300.0


class HttpClientSettings(Section):
    """Outbound HTTP: `HTTP_CLIENT_*`."""

    model_config = SettingsConfigDict(env_prefix="HTTP_CLIENT_")

    timeout_seconds: PositiveSeconds = 10.0
    max_response_bytes: PositiveInt = 1024 * 1024
    allow_private_addresses: bool | None = Field(None, description="By default only in local and test.")


class Settings(BaseSettings):
    """All settings of one app.

    Raises:
        ConfigurationError: A value is wrong; the message names each variable and the mend.
    """

    model_config = SettingsConfigDict(frozen=True, extra="ignore")

    app: AppSettings = Field(default_factory=AppSettings)
    log: LogSettings = Field(default_factory=LogSettings)
    metrics: MetricsSettings = Field(default_factory=MetricsSettings)
    sql: SqlSettings = Field(default_factory=SqlSettings)
    redis: RedisSettings = Field(default_factory=RedisSettings)
    jobs: JobsSettings = Field(default_factory=JobsSettings)
    auth: AuthSettings = Field(default_factory=AuthSettings)
    webhooks: WebhooksSettings = Field(default_factory=WebhooksSettings)
    http_client: HttpClientSettings = Field(default_factory=HttpClientSettings)

    @property
    def environment(self) -> Environment:
        """The environment of the whole app."""
        return self.app.env
