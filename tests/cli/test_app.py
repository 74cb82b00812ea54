"""The command itself: its options, and how errors are shown. Each test runs the real process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from svc_infra import __version__
from svc_infra.cli.app import COMMANDS, commands

RUN = "from svc_infra.cli import main; main()"
WITHOUT = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {module!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
"""


def run(
    folder: Path, *arguments: str, code: str = RUN, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `svc-infra` in an empty folder, with no variables but these."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env=environment or {},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_version_is_printed(tmp_path: Path) -> None:
    done = run(tmp_path, "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"svc-infra {__version__}\n", "")


def test_the_installed_script_is_this_command() -> None:
    done = subprocess.run([Path(sys.executable).parent / "svc-infra", "--version"], capture_output=True, check=True)
    assert done.stdout.decode() == f"svc-infra {__version__}\n"


def test_without_a_command_the_help_lists_them(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert all(command in done.stdout for command in ("config", "demo"))
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize("module", ["typer", "rich"])
def test_a_missing_extra_is_one_line_that_installs_it(tmp_path: Path, module: str) -> None:
    done = run(tmp_path, "config", code=WITHOUT.format(module=module) + RUN)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == f"error: {module} is not installed: run `pip install 'svc-infra[cli]'`.\n"


def test_an_error_of_the_library_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    done = run(tmp_path, "config", environment={"SQL_POOL_SIZE": "many"})
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "error: SQL_POOL_SIZE (environment variable) must be a whole number.\n"


def test_debug_shows_where_an_error_comes_from(tmp_path: Path) -> None:
    done = run(tmp_path, "--debug", "config", environment={"SQL_POOL_SIZE": "many"})
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "ConfigurationError: SQL_POOL_SIZE" in done.stderr


def test_an_unknown_command_is_a_usage_error(tmp_path: Path) -> None:
    done = run(tmp_path, "confog")
    assert done.returncode == 2
    assert "No such command 'confog'" in done.stderr


def names(words: list[str]) -> set[str]:
    app = commands(words)
    groups = {str(one.name) for one in app.registered_groups}
    return groups | {str(one.name) for one in app.registered_commands}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_loaded_alone(command: str) -> None:
    assert names(["--debug", command, "sql"]) == {command}


@pytest.mark.parametrize("words", [[], ["--version"], ["--help"], ["confog"], ["confog", "sql"]])
def test_whoever_asks_for_no_command_gets_all(words: list[str]) -> None:
    assert names(words) == set(COMMANDS)


def test_a_command_loads_nothing_of_the_others(tmp_path: Path) -> None:
    load = "import sys; from svc_infra.cli.app import commands; commands(sys.argv[1:])"
    told = f"{load}; print(sorted({{'sqlalchemy', 'uvicorn'}} & sys.modules.keys()))"
    done = run(tmp_path, "config", code=told, environment={"PYTHONPATH": os.pathsep.join(sys.path)})
    assert done.stdout == "[]\n", done.stderr


def test_importing_the_command_line_loads_neither_typer_nor_rich(tmp_path: Path) -> None:
    code = "import sys, svc_infra.cli; print(sorted({'typer', 'rich', 'fastapi', 'sqlalchemy'} & sys.modules.keys()))"
    assert run(tmp_path, code=code).stdout == "[]\n"
