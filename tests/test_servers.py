"""The servers that other tests stand on."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import redis.asyncio as redis
from sqlalchemy import text

from svc_infra.db import AsyncDatabase
from svc_infra.db.sql import migrate
from tests import machine


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_each_database_url_names_an_empty_database(kind: str, request: pytest.FixtureRequest) -> None:
    database = AsyncDatabase(request.getfixturevalue(f"{kind}_url"))
    async with database.session() as session:
        await session.execute(text("CREATE TABLE only_here (x integer)"))
        await session.execute(text("INSERT INTO only_here VALUES (1)"))
    async with database.session(read_only=True) as session:
        assert (await session.execute(text("SELECT x FROM only_here"))).scalars().all() == [1]
    await database.dispose()


async def test_the_valkey_url_names_an_empty_server(valkey_url: str) -> None:
    async with redis.from_url(valkey_url) as client:
        assert await client.dbsize() == 0
        assert await client.set("key", "value")


@pytest.mark.parametrize("time", ["first", "second"])
async def test_each_migrated_database_is_a_copy_of_its_own(db: AsyncDatabase, time: str) -> None:
    assert await migrate.pending(db) == []
    async with db.session() as session:  # the second time there is none yet
        await session.execute(text("CREATE TABLE only_here (x integer)"))


def test_temporary_files_stay_where_tmpdir_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = tempfile.tempdir
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    machine.keep_files_in_memory()
    assert (os.environ["TMPDIR"], tempfile.tempdir) == (str(tmp_path), before)


@pytest.mark.parametrize("free_bytes", [0, 1024**4])
def test_temporary_files_are_in_memory_where_there_is_room(
    free_bytes: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("TMPDIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(machine, "MEMORY", tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free_bytes))
    machine.keep_files_in_memory()
    assert os.environ.pop("TMPDIR", None) == (str(tmp_path) if free_bytes else None)
