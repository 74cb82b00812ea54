"""Settings of logs, metrics and traces."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_settings import SettingsConfigDict

from svc_infra.config.section import Section
from svc_infra.config.url import UrlSetting
from svc_infra.config.values import Many, PositiveInt, checked_networks, in_capitals


class LogSettings(Section):
    """Logs: `LOG_*`."""

    model_config = SettingsConfigDict(env_prefix="LOG_")

    level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"],
        BeforeValidator(in_capitals),
    ] = "INFO"
    format: Literal["auto", "json", "plain"] = "auto"
    drop_paths: str = "/metrics,/_ops/live,/_ops/ready,/_ops/startup"

    @property
    def dropped(self) -> tuple[str, ...]:
        """The paths whose requests write no access line, and begin no trace."""
        return tuple(path.strip() for path in self.drop_paths.split(","))


class MetricsSettings(Section):
    """Metrics: `METRICS_*`. Where the secret `METRICS_TOKEN` is set, whoever reads them must send it."""

    model_config = SettingsConfigDict(env_prefix="METRICS_")

    optional_secrets: ClassVar[tuple[str, ...]] = ("METRICS_TOKEN",)

    enabled: bool = True
    path: str = "/metrics"
    networks: Annotated[Many, AfterValidator(checked_networks)] = Field(
        ("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "::1/128", "fc00::/7"),
        description="Who may read them without a token, directly; in local and test everybody may.",
    )
    dir: str | None = Field(
        None, description="Where worker processes put their numbers together; uvicorn's find a place themselves."
    )


class OtelSettings(Section):
    """Traces, by OpenTelemetry's own variables: `OTEL_*`. They are kept where an endpoint is set.

    The endpoint's credentials are the secret `OTEL_EXPORTER_OTLP_HEADERS`: `name=value` pairs with commas.
    """

    model_config = SettingsConfigDict(env_prefix="OTEL_")

    optional_secrets: ClassVar[tuple[str, ...]] = ("OTEL_EXPORTER_OTLP_HEADERS",)

    exporter_otlp_endpoint: UrlSetting | None = Field(None, description="Such as `http://collector:4318`.")
    exporter_otlp_traces_endpoint: UrlSetting | None = Field(
        None, description="Of traces alone, with its whole path; by default `/v1/traces` below the other."
    )
    traces_sampler: Literal[
        "always_on",
        "always_off",
        "traceidratio",
        "parentbased_always_on",
        "parentbased_always_off",
        "parentbased_traceidratio",
    ] = "parentbased_always_on"
    traces_sampler_arg: Annotated[float, Field(ge=0, le=1)] = Field(1.0, description="The ratio of what is kept.")
    sdk_disabled: bool = False
    bsp_max_queue_size: PositiveInt = Field(2048, description="Spans that wait to be sent; further ones are dropped.")
    exporter_otlp_timeout: PositiveInt = Field(10_000, description="Longest attempt to send, in milliseconds.")
