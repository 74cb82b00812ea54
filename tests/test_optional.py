"""Optional dependencies."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from pathlib import Path

import pytest

from svc_infra._optional import need
from svc_infra.errors import MissingExtra, MissingExtraError

PYPROJECT = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text())
EXTRAS = {
    re.split(r"[>=\[]", requirement)[0]: extra
    for extra, requirements in PYPROJECT["project"]["optional-dependencies"].items()
    if extra not in ("all", "dev")
    for requirement in requirements
}


def test_what_is_installed_is_imported() -> None:
    assert need("json") is json
    assert need("redis.asyncio").__name__ == "redis.asyncio"


@pytest.mark.parametrize("distribution", EXTRAS)
def test_what_is_missing_names_the_extra_that_declares_it(monkeypatch: pytest.MonkeyPatch, distribution: str) -> None:
    module = distribution.partition("-")[0]
    for loaded in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    with pytest.raises(MissingExtraError) as raised:
        need(f"{module}.part")
    assert raised.value.detail == f"{module} is not installed: run `pip install 'svc-infra[{EXTRAS[distribution]}]'`."
    assert (raised.value.module, raised.value.extra) == (module, EXTRAS[distribution])


def test_a_dependency_that_is_broken_itself_is_not_called_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(tmp_path, "half_installed.py").write_text("import nothing_of_this_name")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="nothing_of_this_name"):
        need("half_installed")


def test_the_short_name_is_the_same_error() -> None:
    assert MissingExtra is MissingExtraError
