"""Where variables come from: the process and the `.env` file."""

from __future__ import annotations

from pathlib import Path

import pytest

from svc_infra.config import Settings
from svc_infra.config.variables import MAX_FILE_BYTES, Variables
from svc_infra.errors import ConfigurationError


def test_the_file_in_the_working_directory_is_read(tmp_path: Path) -> None:
    Path(tmp_path, ".env").write_text("\ufeff# comment\nexport APP_NAME='from file'\nSQL_POOL_SIZE=3 # three\n")
    settings = Settings()
    assert settings.app.name == "from file"
    assert settings.sql.pool_size == 3


def test_the_process_comes_before_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(tmp_path, ".env").write_text("APP_NAME=file\nAPP_RELEASE=file\n")
    monkeypatch.setenv("APP_NAME", "process")
    monkeypatch.setenv("APP_RELEASE", "")
    settings = Settings()
    assert settings.app.name == "process"
    assert settings.app.release == "file"
    assert settings.variables.source("APP_NAME") == "environment variable"
    assert settings.variables.source("APP_RELEASE") == ".env"


def test_app_env_file_names_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(tmp_path, ".env").write_text("APP_NAME=default\n")
    Path(tmp_path, "other.env").write_text("APP_NAME=other\n")
    monkeypatch.setenv("APP_ENV_FILE", f"{tmp_path}/other.env")
    assert Settings().app.name == "other"
    assert Settings().variables.source("APP_NAME") == f"{tmp_path}/other.env"


def test_values_are_taken_literally(tmp_path: Path) -> None:
    Path(tmp_path, ".env").write_text("APP_NAME=a${HOME}b$$c\n")
    assert Settings().app.name == "a${HOME}b$$c"


def test_a_folder_called_dot_env_is_left_alone(tmp_path: Path) -> None:
    Path(tmp_path, ".env").mkdir()
    assert Settings().app.name == "service"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"APP_NAME=ok\nAPP_RELEASE\n", ".env, line 2, is not of the form NAME=value."),
        (b"A=b\nthis is = not 'a line\n", ".env, line 2, is not of the form NAME=value."),
        (b"APP_NAME=\xff\xfe\n", ".env is not UTF-8 text."),
        (b"#" * (MAX_FILE_BYTES + 1), ".env is larger than 1048576 bytes."),
    ],
)
def test_a_file_that_cannot_be_understood_is_one_clear_error(tmp_path: Path, content: bytes, message: str) -> None:
    Path(tmp_path, ".env").write_bytes(content)
    with pytest.raises(ConfigurationError) as raised:
        Settings()
    assert raised.value.detail == message


def test_a_named_file_that_is_missing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APP_ENV_FILE", "nowhere.env")
    with pytest.raises(
        ConfigurationError, match=r"nowhere\.env, which APP_ENV_FILE names, cannot be read: No such file"
    ):
        Settings()


def test_a_wrong_value_in_the_file_names_the_file(tmp_path: Path) -> None:
    Path(tmp_path, ".env").write_text("SQL_POOL_SIZE=many\n")
    with pytest.raises(ConfigurationError, match=r"SQL_POOL_SIZE \(\.env\) must be a whole number"):
        Settings()


def test_variables_never_show_their_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(tmp_path, ".env").write_text("A=hidden-in-file\n")
    monkeypatch.setenv("B", "hidden-in-process")
    assert "hidden" not in repr(Variables.read())
