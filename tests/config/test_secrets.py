"""Secrets: where they are found, when they may be missing, and that they are never shown."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from svc_infra.config import Environment, Secrets, Settings, list_settings
from svc_infra.config.variables import MAX_FILE_BYTES
from svc_infra.errors import ConfigurationError, MissingSecretError, SvcInfraError

LONG = "x" * 32
MARK = "s3cr3t-"


def test_a_secret_is_read_from_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTH_SECRET", LONG)
    assert Settings().secrets.require("AUTH_SECRET").get_secret_value() == LONG


def test_a_secret_is_read_from_the_env_file(tmp_path: Path) -> None:
    Path(tmp_path, ".env").write_text(f"AUTH_SECRET={LONG}\n")
    secrets = Settings(app={"env": "prod"}).secrets
    assert secrets.require("AUTH_SECRET").get_secret_value() == LONG
    assert secrets.source("AUTH_SECRET") == ".env"


def test_a_secret_is_read_from_the_file_that_its_variable_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "signing-key"
    file.write_text(f"{LONG}\n")
    monkeypatch.setenv("AUTH_SECRET_FILE", str(file))
    secrets = Secrets(Environment.PROD)
    assert secrets.require("AUTH_SECRET").get_secret_value() == LONG
    assert secrets.source("AUTH_SECRET") == str(file)


def test_a_secret_is_read_from_the_mounted_directory(tmp_path: Path) -> None:
    Path(tmp_path, "auth_secret").write_text(f"{LONG}\n")
    assert Secrets(Environment.PROD, directory=tmp_path).require("AUTH_SECRET").get_secret_value() == LONG


def test_the_variable_comes_before_the_named_file_and_that_before_the_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(tmp_path, "key").write_text("mounted")
    Path(tmp_path, "named").write_text("named")
    assert _value(Secrets(Environment.PROD, directory=tmp_path)) == "mounted"
    monkeypatch.setenv("KEY_FILE", f"{tmp_path}/named")
    assert _value(Secrets(Environment.PROD, directory=tmp_path)) == "named"
    monkeypatch.setenv("KEY", "variable")
    assert _value(Secrets(Environment.PROD, directory=tmp_path)) == "variable"


@pytest.mark.parametrize("environment", ["dev", "prod"])
@pytest.mark.parametrize("value", [None, "", " \n"])
def test_a_missing_secret_is_refused_outside_local_and_test(
    monkeypatch: pytest.MonkeyPatch, environment: str, value: str | None
) -> None:
    if value is not None:
        monkeypatch.setenv("AUTH_SECRET", value)
    secrets = Settings(app={"env": environment}).secrets
    assert secrets.get("AUTH_SECRET") is None
    assert secrets.source("AUTH_SECRET") is None
    with pytest.raises(MissingSecretError) as raised:
        secrets.require("AUTH_SECRET")
    assert raised.value.detail == (
        "AUTH_SECRET is not set: set AUTH_SECRET, AUTH_SECRET_FILE or /run/secrets/auth_secret."
    )


def test_an_empty_file_counts_as_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(tmp_path, "empty").write_text("\n")
    monkeypatch.setenv("AUTH_SECRET_FILE", f"{tmp_path}/empty")
    with pytest.raises(MissingSecretError):
        Secrets(Environment.PROD).require("AUTH_SECRET")


@pytest.mark.parametrize("environment", [Environment.LOCAL, Environment.TEST])
def test_in_local_and_test_a_development_value_stands_in(environment: Environment) -> None:
    secrets = Secrets(environment)
    first, other = secrets.require("AUTH_SECRET"), secrets.require("WEBHOOKS_KEY")
    assert len(first.get_secret_value()) >= 32
    assert first.get_secret_value() != other.get_secret_value()
    assert Secrets(environment).require("AUTH_SECRET") == first  # tokens outlive a restart
    assert secrets.get("AUTH_SECRET") is None
    assert secrets.source("AUTH_SECRET") is None


def test_a_short_secret_is_refused_outside_local_and_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTH_SECRET", "s" * 31)
    with pytest.raises(ConfigurationError, match=r"AUTH_SECRET .* is shorter than 32 bytes"):
        Secrets(Environment.PROD).require("AUTH_SECRET")
    assert Secrets(Environment.PROD).require("AUTH_SECRET", min_bytes=31)
    assert Secrets(Environment.LOCAL).require("AUTH_SECRET").get_secret_value() == "s" * 31
    monkeypatch.setenv("AUTH_SECRET", "ü" * 16)
    assert Secrets(Environment.PROD).require("AUTH_SECRET")  # 32 bytes, 16 characters


def test_a_named_file_that_is_missing_is_an_error_even_in_local(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTH_SECRET_FILE", "nowhere")
    with pytest.raises(ConfigurationError, match="nowhere, which AUTH_SECRET_FILE names, cannot be read: No such file"):
        Secrets(Environment.LOCAL).require("AUTH_SECRET")


def test_files_that_are_no_secrets_are_clear_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "key"
    monkeypatch.setenv("KEY_FILE", str(file))
    file.write_bytes(b"\xff" + MARK.encode())
    with pytest.raises(ConfigurationError, match="is not UTF-8 text") as raised:
        Secrets(Environment.PROD).require("KEY")
    assert MARK not in str(raised.value)
    file.write_bytes(b"x" * (MAX_FILE_BYTES + 1))
    with pytest.raises(ConfigurationError, match="is larger than"):
        Secrets(Environment.PROD).require("KEY")
    monkeypatch.setenv("KEY_FILE", str(tmp_path))
    with pytest.raises(ConfigurationError, match="cannot be read: Is a directory"):
        Secrets(Environment.PROD).require("KEY")
    file.unlink()
    file.mkdir()
    monkeypatch.delenv("KEY_FILE")
    with pytest.raises(ConfigurationError, match="cannot be read: Is a directory"):
        Secrets(Environment.PROD, directory=tmp_path).require("KEY")


_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")).map(MARK.__add__)


@given(secret=_text, environment=st.sampled_from(["local", "dev", "prod"]), in_query=st.booleans())
@example(secret=f"{MARK}@/:?#&", environment="prod", in_query=False)
@example(secret=f"{MARK}\n://x@y", environment="prod", in_query=False)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_secret_is_ever_shown(
    monkeypatch: pytest.MonkeyPatch, secret: str, environment: str, in_query: bool
) -> None:
    url = f"postgresql://host/db?a=b&Password={secret.replace('&', '')}" if in_query else f"redis://user:{secret}@host"
    for name in ("AUTH_SECRET", "WEBHOOKS_KEY"):
        monkeypatch.setenv(name, secret)
    for name in ("SQL_URL", "REDIS_URL"):
        monkeypatch.setenv(name, url)
    monkeypatch.setenv("APP_ENV", environment)
    made = Settings()
    assert made.sql.url == url
    shown = [repr(made), str(made), made.model_dump_json(), repr(made.model_dump()), f"{made.sql}", repr(made.sql.url)]
    shown += [json.dumps([asdict(setting) for setting in list_settings(made)]), repr(list_settings(made))]
    shown += [repr(made.secrets), repr(made.secrets.get("AUTH_SECRET")), repr(vars(made.secrets)), repr(made.variables)]
    shown += [_refusal(lambda: made.secrets.require("AUTH_SECRET", min_bytes=10_000))]
    for wrong in ("SQL_POOL_SIZE", "APP_DOCS", "APP_ENV", "LOG_LEVEL", "JOBS_DRIVER", "JOBS_LEASE_SECONDS"):
        monkeypatch.setenv(wrong, secret)
    shown += [_refusal(Settings)]
    for wrong in ("SQL_POOL_SIZE", "APP_DOCS", "APP_ENV", "LOG_LEVEL", "JOBS_DRIVER", "JOBS_LEASE_SECONDS"):
        monkeypatch.delenv(wrong)
    for text in shown:
        assert MARK not in text


def _refusal(attempt: object) -> str:
    try:
        attempt()  # type: ignore[operator]
    except SvcInfraError as error:
        return f"{error} {error!r} {error.errors} {error.__context__!r}"
    return ""


def _value(secrets: Secrets) -> str:
    return secrets.require("KEY", min_bytes=1).get_secret_value()
