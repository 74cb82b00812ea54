"""Schedules in a YAML file: what can be written, and how clearly a mistake is named."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from svc_infra.errors import ConfigurationError, MissingExtraError
from svc_infra.jobs import task
from svc_infra.jobs.schedules import Schedule, at, cron, every, load_schedules


@task(name="report")
async def report(kind: str = "short", copies: int = 1) -> None: ...


def load(folder: Path, text: str) -> list[Schedule]:
    (folder / "schedules.yaml").write_text(text)
    return load_schedules(folder / "schedules.yaml", [report])


def test_every_kind_of_schedule_can_be_written(tmp_path: Path) -> None:
    written = """
weekly:
  task: report
  cron: "0 7 * * MON"
  tz: Europe/Berlin
  payload: {kind: long, copies: 2}
  missed: run_all
  max_missed: 5
  overlap: buffer_one
  jitter_seconds: 30
often:
  task: report
  every_seconds: 90
once:
  task: report
  at: 2030-01-01T00:00:00+01:00
"""
    assert load(tmp_path, written) == [
        cron(
            "0 7 * * MON",
            report,
            {"kind": "long", "copies": 2},
            tz="Europe/Berlin",
            name="weekly",
            missed="run_all",
            max_missed=5,
            overlap="buffer_one",
            jitter_seconds=30.0,
        ),
        every(90, report, name="often"),
        at(datetime(2030, 1, 1, tzinfo=UTC) - timedelta(hours=1), report, name="once"),
    ]
    assert load(tmp_path, "# nothing yet\n") == []


@pytest.mark.parametrize(
    ("text", "line", "named"),
    [
        ("a:\n  task: report\n  interval: 6h\n", 3, "a.interval: .*use task, cron, every_seconds, at"),
        ("a:\n  task: report\n  every_seconds: often\n", 3, "a.every_seconds: .*number"),
        ("a:\n  task: report\n  every_seconds: -5\n", 1, "a: A schedule every -5"),
        ("a:\n  task: report\n  at: 2030-01-01T00:00:00\n", 3, "a.at: .*timezone"),
        ("\n\na:\n  task: nothing\n  cron: '* * * * *'\n", 3, "a: There is no task nothing"),
        ("a:\n  task: report\n  cron: 61 * * * *\n", 1, "a: '61 .* is no cron expression: Bad minute"),
        ("a:\n  task: report\n  cron: '* * * * *'\n  tz: Mars/Base\n", 1, "a: 'Mars/Base' is no time zone"),
        ("a:\n  task: report\n", 1, "a: A schedule has one of"),
        ("a:\n  task: report\n  every_seconds: 5\n  payload:\n    copies: many\n", 1, "a: report: copies"),
        ("a:\n  task: report\n  every_seconds: 5\n  overlap: never\n", 4, "a.overlap: .*'cancel_previous'"),
        ("a:\n  every_seconds: 5\n", 1, "a.task: Field required"),
        ("a:\n  task: report\n  every_seconds: 5\n\na:\n  task: report\n", 5, "a: is here for the second time"),
        ("a:\n  task: report\n  every_seconds: 5\n  every_seconds: 6\n", 4, "a.every_seconds: is here for the second"),
        ("a: [1]\n", 1, "a: .*dictionary"),
        ("- task: report\n", 1, "a file of schedules maps names to definitions"),
        ("1:\n  task: report\n", 1, "1: a schedule's name is text"),
        ("a:\n  task: report\n  cron: '* *\n", 4, "no YAML"),
        ("a: !!python/object/apply:os.system ['true']\n", 1, "no YAML"),
        ("with space:\n  task: report\n  every_seconds: 5\n", 1, "with space: .*schedule key"),
    ],
)
def test_a_mistake_is_named_with_its_line_and_key(text: str, line: int, named: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"schedules.yaml, line {line}: {named}"):
        load(tmp_path, text)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"none.yaml cannot be read: No such file"):
        load_schedules(tmp_path / "none.yaml", [report])
    with pytest.raises(ConfigurationError, match="the limit is"):
        load(tmp_path, "#" * (1024 * 1024 + 1))


def test_a_missing_yaml_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(MissingExtraError, match="yaml is not installed"):
        load(tmp_path, "")
