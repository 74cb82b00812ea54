"""`svc-infra config`: what is configured, and where it comes from."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from svc_infra.config import ListedSetting, Settings, likely_typos, list_settings

_PIPED_COLUMNS = 200  # the table's width where there is no terminal


def config(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Print every setting, its value (secrets masked), its environment variable and its source."""
    settings = Settings()
    listed = list_settings(settings)
    if as_json:
        print(json.dumps([asdict(setting) for setting in listed], indent=2))
    else:
        Console(width=None if sys.stdout.isatty() else _PIPED_COLUMNS).print(_table(listed))
    for sentence in likely_typos(settings):
        print("warning:", sentence, file=sys.stderr)


def _table(listed: list[ListedSetting]) -> Table:
    table = Table("Setting", "Value", "Environment variable", "Source", box=None)
    for setting in listed:
        table.add_row(*(Text(cell, overflow="fold") for cell in asdict(setting).values()))
    return table
