"""What settings are made of, and what is said when they are wrong."""

from __future__ import annotations

import pytest
from pydantic import ValidationError as PydanticError
from pydantic import field_validator
from pydantic_settings import SettingsConfigDict

from svc_infra.config import AppSettings, Environment, Section, Settings, SqlSettings
from svc_infra.errors import ConfigurationError


class MapsSettings(Section):
    """What an application adds."""

    model_config = SettingsConfigDict(env_prefix="MAPS_")

    tile_pixels: int = 256

    @field_validator("tile_pixels")
    @classmethod
    def _power_of_two(cls, value: int) -> int:
        if value.bit_count() != 1:
            raise ValueError("it is no power of two {really}")
        return value


class ShopSettings(Settings):
    """An application's own settings."""

    maps: MapsSettings = MapsSettings()


def test_an_empty_environment_gives_the_embedded_defaults() -> None:
    settings = Settings()
    assert settings.environment is Environment.LOCAL
    assert settings.sql.url == "sqlite:///svc-infra.db"
    assert settings.redis.url is None
    assert settings.jobs.driver == "auto"


def test_a_variable_sets_the_field_that_its_prefix_and_name_make(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQL_POOL_SIZE", "3")
    monkeypatch.setenv("HTTP_CLIENT_MAX_RESPONSE_BYTES", "1024")
    monkeypatch.setenv("METRICS_ENABLED", "off")
    monkeypatch.setenv("LOG_LEVEL", "debug")
    settings = Settings()
    assert settings.sql.pool_size == 3
    assert settings.http_client.max_response_bytes == 1024
    assert settings.metrics.enabled is False
    assert settings.log.level == "DEBUG"


def test_a_blank_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQL_POOL_SIZE", "")
    monkeypatch.setenv("REDIS_URL", "  ")
    assert Settings().sql.pool_size == 10
    assert Settings().redis.url is None


def test_code_overrides_only_the_fields_that_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APP_NAME", "from-environment")
    monkeypatch.setenv("APP_RELEASE", "2.0")
    monkeypatch.setenv("SQL_POOL_SIZE", "3")
    settings = Settings(app=AppSettings(name="from-code"), sql={"url": "sqlite://"})
    assert (settings.app.name, settings.app.release) == ("from-code", "2.0")
    assert (settings.sql.url, settings.sql.pool_size) == ("sqlite://", 3)


def test_settings_cannot_be_changed() -> None:
    settings = Settings()
    with pytest.raises(PydanticError, match="frozen"):
        settings.sql = SqlSettings()  # type: ignore[misc]
    with pytest.raises(PydanticError, match="frozen"):
        settings.sql.pool_size = 1  # type: ignore[misc]


def test_equal_environments_give_equal_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    first = Settings()
    assert Settings() == first
    monkeypatch.setenv("APP_NAME", "other")
    assert Settings() != first


WRONG = {
    "APP_ENV": ("moon", "APP_ENV (environment variable) must be one of 'local', 'dev', 'test' or 'prod'."),
    "APP_DOCS": ("maybe", "APP_DOCS (environment variable) must be true or false."),
    "APP_MAX_BODY_BYTES": ("10MB", "APP_MAX_BODY_BYTES (environment variable) must be a whole number."),
    "SQL_POOL_SIZE": ("0", "SQL_POOL_SIZE (environment variable) must be greater than 0."),
    "SQL_MAX_OVERFLOW": ("-1", "SQL_MAX_OVERFLOW (environment variable) must be 0 or more."),
    "JOBS_DRIVER": (
        "kafka",
        "JOBS_DRIVER (environment variable) must be one of 'auto', 'sql', 'memory' or 'redis'.",
    ),
    "JOBS_LEASE_SECONDS": ("inf", "JOBS_LEASE_SECONDS (environment variable) must be a finite number."),
    "WEBHOOKS_RETRY_SCHEDULE_SECONDS": (
        "5, soon, later",
        "WEBHOOKS_RETRY_SCHEDULE_SECONDS (environment variable) must be a number.",
    ),
    "JOBS_BACKOFF_SECONDS": ("soon", "JOBS_BACKOFF_SECONDS (environment variable) must be a number."),
}


@pytest.mark.parametrize("variable", WRONG)
def test_a_wrong_value_names_its_variable_and_the_mend(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    value, message = WRONG[variable]
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError) as raised:
        Settings()
    assert raised.value.detail == message
    assert raised.value.errors == ({"loc": variable, "detail": message},)
    assert raised.value.__context__ is None  # no pydantic error with the value in it


def test_everything_that_is_wrong_in_any_section_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, (value, _) in WRONG.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError) as raised:
        Settings()
    assert raised.value.detail.startswith(f"{len(WRONG)} settings are wrong: ")
    assert {error["loc"] for error in raised.value.errors} == set(WRONG)
    assert all(message in raised.value.detail for _, message in WRONG.values())


def test_a_section_alone_explains_itself_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQL_POOL_SIZE", "x")
    monkeypatch.setenv("SQL_MAX_OVERFLOW", "y")
    with pytest.raises(ConfigurationError, match="2 settings are wrong: SQL_POOL_SIZE") as raised:
        SqlSettings()
    assert raised.value.__context__ is None


def test_a_wrong_value_given_in_code_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match=r"SQL_POOL_SIZE \(code\) must be greater than 0"):
        Settings(sql={"pool_size": 0})
    monkeypatch.setenv("SQL_POOL_SIZE", "x")
    assert Settings(sql={"pool_size": 4}).sql.pool_size == 4  # what code overrides is not even looked at


@pytest.mark.parametrize("build", [lambda: SqlSettings(pool_sise=3), lambda: Settings(sql={"pool_sise": 3})])
def test_a_field_that_does_not_exist_is_refused_in_code(build: type[Settings]) -> None:
    with pytest.raises(ConfigurationError, match="SqlSettings has no pool_sise: it has url, pool_size"):
        build()


def test_a_section_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="Settings have no sqll: use app, edge"):
        Settings(sqll={})


def test_variables_that_merely_resemble_section_names_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("APP", "SQL", "LOG", "REDIS", "sql_pool_size"):
        monkeypatch.setenv(name, "anything at all")
    assert Settings() == Settings()
    assert Settings().sql.pool_size == 10


def test_an_application_adds_its_own_section(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAPS_TILE_PIXELS", "512")
    assert ShopSettings().maps.tile_pixels == 512
    monkeypatch.setenv("MAPS_TILE_PIXELS", "500")
    with pytest.raises(ConfigurationError, match=r"MAPS_TILE_PIXELS \(environment variable\) is wrong: it is no power"):
        ShopSettings()
