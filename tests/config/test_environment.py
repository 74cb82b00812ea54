"""Which environment a process runs in."""

from __future__ import annotations

import pytest

from svc_infra.config import AppSettings, Environment, Settings
from svc_infra.errors import ConfigurationError, MissingSecretError


@pytest.mark.parametrize(
    ("name", "environment"),
    [
        ("local", Environment.LOCAL),
        ("dev", Environment.DEV),
        ("development", Environment.DEV),
        ("test", Environment.TEST),
        ("uat", Environment.DEV),
        ("preview", Environment.DEV),
        ("staging", Environment.DEV),
        ("prod", Environment.PROD),
        ("production", Environment.PROD),
        (" Production ", Environment.PROD),
    ],
)
def test_app_env_takes_every_name_and_alias(
    monkeypatch: pytest.MonkeyPatch, name: str, environment: Environment
) -> None:
    monkeypatch.setenv("APP_ENV", name)
    assert AppSettings().env is environment


@pytest.mark.parametrize("name", ["produktion", "prod2", "None", "1"])
def test_an_unknown_environment_is_an_error_and_not_local(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("APP_ENV", name)
    with pytest.raises(ConfigurationError, match=r"APP_ENV.*must be one of 'local', 'dev', 'test' or 'prod'"):
        AppSettings()


def test_without_app_env_the_environment_is_local() -> None:
    assert AppSettings().env is Environment.LOCAL


def test_only_local_and_test_are_trusted() -> None:
    assert [environment for environment in Environment if environment.is_trusted] == ["local", "test"]


@pytest.mark.parametrize("name", ["staging", "preview", "uat", "development"])
def test_a_host_that_others_can_reach_does_not_run_on_secrets_from_the_source(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("APP_ENV", name)
    with pytest.raises(MissingSecretError, match="AUTH_SECRET is not set"):
        Settings().secrets.require("AUTH_SECRET")
