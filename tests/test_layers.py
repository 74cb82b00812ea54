"""The layers of the house: which room may import which (`[tool.importlinter]` in pyproject.toml)."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CONTRACT = ROOT / "pyproject.toml"


def lint_imports(sources: Path) -> subprocess.CompletedProcess[str]:
    """Check the package that lies in this folder."""
    linter = str(Path(sys.executable).with_name("lint-imports"))
    command = [linter, "--no-logo", "--no-cache", "--config", str(CONTRACT)]
    return subprocess.run(command, cwd=sources, capture_output=True, text=True, check=False)


def test_every_room_imports_only_the_rooms_below_it() -> None:
    result = lint_imports(ROOT / "src")
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("file", "line", "complaint"),
    [
        ("errors.py", "import svc_infra.db", "svc_infra.errors is not allowed to import svc_infra.db"),
        ("_optional.py", "import svc_infra.config", "svc_infra._optional is not allowed to import svc_infra.config"),
        ("stray/__init__.py", "", "svc_infra.stray"),
    ],
    ids=["upwards", "sideways", "a room that no layer names"],
)
def test_a_planted_violation_is_found(file: str, line: str, complaint: str, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    planted = tmp_path / "src/svc_infra" / file
    planted.parent.mkdir(exist_ok=True)
    with planted.open("a") as module:
        module.write(f"\n{line}\n")
    result = lint_imports(tmp_path / "src")
    assert result.returncode == 1
    assert complaint in result.stdout
