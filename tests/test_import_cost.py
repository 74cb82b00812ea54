"""What an import costs and loads, measured in fresh interpreters."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest

PACKAGE = Path(__file__).parent.parent / "src/svc_infra"
BUDGET_SECONDS = 0.05
ROUNDS = 5
HEAVY = {"fastapi", "starlette", "pydantic", "redis", "sqlalchemy"}
OPTIONAL = [
    "aiosmtplib",
    "asyncpg",
    "bcrypt",
    "mcp",
    "obstore",
    "pymongo",
    "pyotp",
    "redis",
    "rich",
    "segno",
    "stripe",
    "typer",
    "webauthn",
]

LOADED_AFTER_ASKING = {("svc_infra", "cli")}  # `svc-infra` asks for its extra before it loads its command groups


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


def own_seconds(timing: str) -> float:
    """Adds up what `-X importtime` says about every module that does not come with Python."""
    microseconds = 0
    for line in timing.splitlines():
        own, _, name = (part.strip() for part in line.removeprefix("import time:").split("|"))
        if own.isdigit() and name.partition(".")[0] not in sys.stdlib_module_names:
            microseconds += int(own)
    return microseconds / 1e6


def test_importing_the_package_costs_little() -> None:
    cost = median(own_seconds(python("-X", "importtime", "-c", "import svc_infra").stderr) for _ in range(ROUNDS))
    assert 0 < cost <= BUDGET_SECONDS, f"`import svc_infra` takes {cost:.3f} s: load the new module on first use."


def test_the_cost_counts_every_module_but_pythons_own() -> None:
    timing = "import time: self [us] | cumulative | imported package\nimport time: 7 | 7 | json\n"
    assert (
        own_seconds(f"{timing}import time: 300 | 307 |   fastapi.routing\nimport time: 200 | 507 | svc_infra") == 0.0005
    )


@pytest.mark.parametrize("module", ["svc_infra", "svc_infra.errors", "svc_infra._optional"])
def test_importing_the_package_loads_none_of_the_heavy_libraries(module: str) -> None:
    result = python("-c", f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))")
    loaded = HEAVY & set(json.loads(result.stdout))
    assert not loaded, f"`import {module}` loads {sorted(loaded)}: import them where they are used."


def test_every_module_imports_without_the_optional_libraries() -> None:
    files = [file.relative_to(PACKAGE.parent).with_suffix("") for file in PACKAGE.rglob("[a-z_]*.py")]
    modules = sorted(".".join(file.parts) for file in files if file.parts[:2] not in LOADED_AFTER_ASKING)
    hide = f"import sys, importlib; sys.modules.update(dict.fromkeys({OPTIONAL!r}))"
    load = f"[importlib.import_module(name) for name in {modules!r}]"
    result = python("-c", f"{hide}; {load}")
    assert result.returncode == 0, f"Load it with _optional.need where it is used:\n{result.stderr}"


def test_the_command_line_names_the_extra_that_it_lacks() -> None:
    result = python("-c", "import sys; sys.modules['typer'] = None; from svc_infra.cli import main; main()")
    assert result.returncode == 2
    assert "pip install 'svc-infra[cli]'" in result.stderr
