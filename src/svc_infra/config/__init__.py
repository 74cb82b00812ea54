"""Settings, secrets and the environment: the only room that reads environment variables.

- `environment`: which of local, dev, test and prod this process runs in
- `variables`: what the process's environment and the `.env` file say
- `section`: how a room's settings are read, and what is said when they are wrong
- `settings`, `serving`, `telemetry`: the sections, and `Settings`, which holds them · `values`: kinds of values
- `secrets`: values that are never printed and have no default outside local and test
- `url`: addresses that hide their password when they are printed
- `listing`: every setting with its source, and variables that look misspelt
"""

from svc_infra.config.environment import Environment
from svc_infra.config.listing import ListedSetting, likely_typos, list_settings
from svc_infra.config.secrets import Secrets
from svc_infra.config.section import Section
from svc_infra.config.serving import IdempotencySettings, RateLimitSettings
from svc_infra.config.settings import (
    AdminSettings,
    AppSettings,
    AuthSettings,
    CacheSettings,
    HttpClientSettings,
    JobsSettings,
    MailSettings,
    MfaSettings,
    RedisSettings,
    Settings,
    SqlSettings,
    WebhooksSettings,
)
from svc_infra.config.telemetry import LogSettings, MetricsSettings, OtelSettings

__all__ = [
    "AdminSettings", "AppSettings", "AuthSettings", "CacheSettings", "Environment", "HttpClientSettings",
    "IdempotencySettings", "JobsSettings", "ListedSetting", "LogSettings", "MailSettings", "MetricsSettings",
    "MfaSettings", "OtelSettings", "RateLimitSettings", "RedisSettings", "Secrets", "Section", "Settings",
    "SqlSettings", "WebhooksSettings", "likely_typos", "list_settings",
]  # fmt: skip
