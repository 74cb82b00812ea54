"""The listing of every setting."""

from __future__ import annotations

from pathlib import Path

import pytest

from svc_infra.config import AppSettings, ListedSetting, Settings, likely_typos, list_settings

SECRETS = (
    *("auth.secret", "auth.secret_previous", "auth.secrets_retired", "auth.signing_keys"),
    *("admin.impersonation_secret", "admin.impersonation_secret_previous", "app.secret"),
    *("mail.smtp_password", "metrics.token", "otel.exporter_otlp_headers", "webhooks.key", "webhooks.key_previous"),
)


def _listed(settings: Settings) -> dict[str, ListedSetting]:
    return {setting.name: setting for setting in list_settings(settings)}


def test_every_field_and_every_secret_is_listed_once() -> None:
    settings = Settings()
    listed = list_settings(settings)
    fields = [
        f"{name}.{field}" for name, section in settings.sections().items() for field in type(section).model_fields
    ]
    assert {setting.name for setting in listed} == {*fields, *SECRETS}
    assert len({setting.variable for setting in listed}) == len(listed) == len(fields) + len(SECRETS)


def test_each_line_tells_where_its_value_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(tmp_path, ".env").write_text("JOBS_CONCURRENCY=3\nWEBHOOKS_KEY=k\n")
    monkeypatch.setenv("SQL_URL", "postgresql://u:pw@host/db")
    monkeypatch.setenv("APP_NAME", "environment")
    listed = _listed(Settings(app=AppSettings(name="code", docs=True)))
    assert listed["app.name"] == ListedSetting("app.name", "code", "APP_NAME", "code")
    assert listed["app.docs"] == ListedSetting("app.docs", "true", "APP_DOCS", "code")
    assert listed["app.env"] == ListedSetting("app.env", "local", "APP_ENV", "default")
    assert listed["jobs.concurrency"] == ListedSetting("jobs.concurrency", "3", "JOBS_CONCURRENCY", ".env")
    assert listed["sql.url"].value == "postgresql://u:***@host/db"
    assert listed["sql.url"].source == "environment variable"
    assert listed["redis.url"].value == ""
    assert listed["auth.secret"] == ListedSetting("auth.secret", "", "AUTH_SECRET", "development value")
    assert listed["auth.secret_previous"].source == "not set"  # nothing stands in for what is optional
    assert listed["webhooks.retry_schedule_seconds"].value.startswith("5.0,300.0,")
    assert listed["webhooks.key"] == ListedSetting("webhooks.key", "********", "WEBHOOKS_KEY", ".env")


def test_a_missing_secret_is_listed_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APP_ENV", "prod")
    assert _listed(Settings())["auth.secret"].source == "not set"


def test_variables_that_look_misspelt_are_told_and_others_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(tmp_path, ".env").write_text("AUTH_SECERT_FILE=x\n")
    for name in ("SQL_POOLSIZE", "JOBS_DRIVE", "APP_COLOUR", "PATH", "XSQL_URL"):
        monkeypatch.setenv(name, "1")
    for name in ("SQL_POOL_SIZE", "APP_NAME"):
        monkeypatch.setenv(name, "2")
    monkeypatch.setenv("AUTH_SECRET_FILE", "x")
    assert likely_typos(Settings()) == [
        "AUTH_SECERT_FILE is no setting: did you mean AUTH_SECRET_FILE?",
        "JOBS_DRIVE is no setting: did you mean JOBS_DRIVER?",
        "SQL_POOLSIZE is no setting: did you mean SQL_POOL_SIZE?",
    ]
