"""Prints a table, and writes the same figures as JSON with the machine and the versions they were measured on."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent.parent / "var" / "bench"


def table(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows that share the same columns."""
    columns = list(rows[0])
    cells = [[_shown(row[column]) for column in columns] for row in rows]
    widths = [max(len(column), *(len(line[i]) for line in cells)) for i, column in enumerate(columns)]
    print(f"\n{title}")
    print("  ".join(column.ljust(width) for column, width in zip(columns, widths, strict=True)))
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))


def write(name: str, rows: Sequence[Mapping[str, Any]], packages: Sequence[str]) -> None:
    """Write `var/bench/<name>.json`, and print the machine and the versions that are in it."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    versions = {package: version(package) for package in packages}
    machine = {"cpus": os.cpu_count(), "processor": _processor(), "python": platform.python_version()}
    document = {"machine": machine, "versions": versions, "rows": list(rows)}
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(document, indent=2) + "\n")
    print(f"\n{machine['cpus']} x {machine['processor']}, {platform.system()}, Python {machine['python']}")
    print(", ".join(f"{package} {number}" for package, number in versions.items()))
    print(f"written to {path.relative_to(RESULTS.parent.parent)}")


def _shown(value: Any) -> str:
    return (
        f"{value:,.2f}"
        if isinstance(value, float) and value < 100
        else f"{value:,.0f}"
        if isinstance(value, float)
        else str(value)
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
