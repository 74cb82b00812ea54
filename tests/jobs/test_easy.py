"""Which queue the settings ask for."""

from typing import Any

import pytest

from svc_infra.config import Settings
from svc_infra.db import AsyncDatabase
from svc_infra.db.sql.migrate import upgrade
from svc_infra.errors import ConfigurationError
from svc_infra.jobs import InMemoryJobQueue, RedisJobQueue, SqlJobQueue, easy_jobs, every, task


@task
async def report() -> None: ...


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("JOBS_DRIVER", "REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def chosen(sqlite_url: str, **settings: Any) -> type:
    return type(easy_jobs(Settings(**settings), AsyncDatabase(sqlite_url))[0])


@pytest.mark.parametrize(
    ("driver", "redis_url", "expected"),
    [
        ("auto", None, SqlJobQueue),
        ("auto", "redis://localhost:1", RedisJobQueue),
        ("sql", "redis://localhost:1", SqlJobQueue),
        ("redis", "redis://localhost:1", RedisJobQueue),
        ("memory", "redis://localhost:1", InMemoryJobQueue),
    ],
)
def test_the_driver_and_the_urls_choose_the_queue(
    driver: str, redis_url: str | None, expected: type, sqlite_url: str, unset: pytest.MonkeyPatch
) -> None:
    assert chosen(sqlite_url, jobs={"driver": driver}, redis={"url": redis_url}) is expected


def test_the_environment_chooses_too(sqlite_url: str, unset: pytest.MonkeyPatch) -> None:
    unset.setenv("SQL_URL", sqlite_url)
    assert isinstance(easy_jobs()[0], SqlJobQueue)
    unset.setenv("JOBS_DRIVER", "memory")
    assert isinstance(easy_jobs()[0], InMemoryJobQueue)


def test_redis_without_a_url_names_the_setting(unset: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="REDIS_URL"):
        easy_jobs(Settings(jobs={"driver": "redis"}, redis={"url": None}))


async def test_the_queue_has_the_attempts_and_the_backoff_of_the_settings(sqlite_url: str) -> None:
    db = AsyncDatabase(sqlite_url)
    await upgrade(db)
    queue, _ = easy_jobs(Settings(jobs={"driver": "sql", "max_attempts": 9, "backoff_seconds": 2.5}), db)
    assert isinstance(queue, SqlJobQueue)
    job = await queue.get(await queue.enqueue("any"))
    assert job is not None
    assert (job.max_attempts, job.backoff_seconds) == (9, 2.5)
    await db.dispose()


async def test_the_scheduler_stores_on_the_queue() -> None:
    queue, scheduler = easy_jobs(Settings(jobs={"driver": "memory"}))
    assert isinstance(queue, InMemoryJobQueue)
    scheduler.add(every(60, report))
    assert len(await scheduler.tick()) == len(await queue.list()) == 1
