"""`svc-infra audit`, as a person runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from sqlalchemy import text

from svc_infra.config import Settings
from svc_infra.db import AsyncDatabase
from svc_infra.security.audit import AuditKeys, AuditTrail


def run(*words: str, sql_url: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "svc_infra.cli", "audit", *words],
        capture_output=True,
        text=True,
        check=False,
        env={"SQL_URL": sql_url, "PYTHONPATH": ":".join(sys.path)},
    )


async def write(db: AsyncDatabase, *actions: str) -> None:
    trail = AuditTrail(AuditKeys.read(Settings().secrets))
    async with db.session() as session:
        for action in actions:
            await trail.record(session, action, tenant_id="acme")


async def test_verify_names_the_first_broken_entry_and_exits_with_1(sqlite_db: AsyncDatabase, sqlite_url: str) -> None:
    await write(sqlite_db, "first.done", "second.done")
    whole = run("verify", sql_url=sqlite_url)
    assert (whole.returncode, whole.stderr) == (0, "")
    assert [(line["tenant_id"], line["sequence"]) for line in map(json.loads, whole.stdout.splitlines())] == [
        ("", 1),
        ("acme", 2),
    ]
    async with sqlite_db.session() as session:
        await session.execute(text("DROP TRIGGER svc_audit_entries_update"))
        await session.execute(text("UPDATE svc_audit_entries SET action = 'x.y' WHERE sequence = 2"))
    broken = run("verify", sql_url=sqlite_url)
    assert broken.returncode == 1
    assert broken.stderr == "broken: the chain of acme at entry 2. Entry 2 is not what was written after entry 1.\n"
    assert run("verify", "--tenant", "", sql_url=sqlite_url).returncode == 0


async def test_verify_compares_with_what_an_earlier_run_printed(
    sqlite_db: AsyncDatabase, sqlite_url: str, tmp_path: Path
) -> None:
    await write(sqlite_db, "first.done")
    known = tmp_path / "known"
    known.write_text(run("verify", sql_url=sqlite_url).stdout)
    await write(sqlite_db, "second.done")
    assert run("verify", "--known", str(known), sql_url=sqlite_url).returncode == 0
    known.write_text(known.read_text().replace('"sequence":1', '"sequence":9'))
    assert run("verify", "--known", str(known), sql_url=sqlite_url).returncode == 1
    known.write_text("what is this")
    unreadable = run("verify", "--known", str(known), sql_url=sqlite_url)
    assert (unreadable.returncode, unreadable.stderr.startswith("error: ")) == (2, True)


async def test_export_prints_every_entry_as_a_line(sqlite_db: AsyncDatabase, sqlite_url: str) -> None:
    await write(sqlite_db, "first.done", "second.done")
    lines = [json.loads(line) for line in run("export", sql_url=sqlite_url).stdout.splitlines()]
    assert [line["action"] for line in lines] == ["audit.chain_started", "first.done", "second.done"]
    rest = run("export", "--tenant", "acme", "--after", "1", sql_url=sqlite_url).stdout.splitlines()
    assert [json.loads(line)["action"] for line in rest] == ["second.done"]
