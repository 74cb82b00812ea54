from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette

from svc_infra.config import AppSettings, Settings
from svc_infra.db import AsyncDatabase
from svc_infra.errors import UnavailableError
from svc_infra.ops import add_probes
from svc_infra.ops.readiness import Readiness
from svc_infra.wiring import Part, Phase, Wiring, wiring_of
from tests.middleware.asgi import call
from tests.obs.log_capture import captured

Checks = dict[str, Callable[[], Awaitable[None]]]


async def good() -> None:
    pass


async def bad() -> None:
    raise UnavailableError("redis://:SECRET@cache/0 is down")


def probed(checks: Checks | None = None, *, env: str = "local", kind: type[Starlette] = Starlette) -> Starlette:
    app = kind()
    wiring = wiring_of(app, settings=Settings(app=AppSettings(env=env)))
    for name, check in (checks or {}).items():
        wiring.add(Part(name, check=check))
    wiring.add(Part("silent"))
    add_probes(app)
    return app


def asked(checks: Checks, **options: Any) -> Readiness:
    wiring = Wiring(Settings())
    for name, check in checks.items():
        wiring.add(Part(name, check=check))
    return Readiness(wiring, **options)


@pytest.mark.parametrize("kind", [Starlette, FastAPI])
async def test_live_is_ok_as_long_as_the_process_serves(kind: type[Starlette]) -> None:
    app = probed({"db": bad}, kind=kind)
    for method in ("GET", "HEAD"):
        answer = await call(app, method, "/_ops/live")
        assert answer.status == 200
        assert answer.header("cache-control") == "no-store"
    assert (await call(app, path="/_ops/live")).json == {"status": "ok"}


async def test_startup_is_unavailable_until_every_part_has_started() -> None:
    app = probed()
    wiring = wiring_of(app)
    starting: list[int] = []

    @asynccontextmanager
    async def part() -> AsyncIterator[None]:
        starting.append((await call(app, path="/_ops/startup")).status)
        yield

    wiring.add(Part("slow", run=part))
    answer = await call(app, path="/_ops/startup")
    assert answer.is_problem(503, "unavailable")
    assert int(answer.header("retry-after")) >= 1
    async with wiring.running():
        assert (await call(app, path="/_ops/startup")).json == {"status": "ok", "phase": "ready"}
        wiring.phase = Phase.DRAINING
        assert (await call(app, path="/_ops/startup")).status == 200
    assert starting == [503]


async def test_ready_asks_every_part_and_lists_what_they_said(sqlite_url: str) -> None:
    database = AsyncDatabase(sqlite_url)
    app = probed({"db": database.ping, "cache": good})
    assert (await call(app, path="/_ops/ready")).is_problem(503, "unavailable")
    async with wiring_of(app).running():
        answer = await call(app, path="/_ops/ready")
        assert (answer.status, answer.json["status"], answer.json["phase"]) == (200, "ok", "ready")
        assert [(check["name"], check["status"]) for check in answer.json["checks"]] == [("db", "ok"), ("cache", "ok")]
        assert all(check["ms"] >= 0 for check in answer.json["checks"])
        wiring_of(app).phase = Phase.DRAINING
        drained = await call(app, path="/_ops/ready")
        assert drained.is_problem(503, "unavailable")
        assert drained.json["phase"] == "draining"
        assert (await call(app, path="/_ops/live")).status == 200
    await database.dispose()


@pytest.mark.parametrize(("env", "is_told"), [("prod", False), ("local", True)])
async def test_a_part_that_fails_is_named_and_why_only_outside_of_prod(env: str, is_told: bool) -> None:
    app = probed({"db": good, "cache": bad}, env=env)
    with captured() as output:
        async with wiring_of(app).running():
            answer = await call(app, path="/_ops/ready")
    assert answer.is_problem(503, "unavailable")
    db, cache = answer.json["checks"]
    assert (db["status"], cache["name"], cache["status"]) == ("ok", "cache", "failed")
    assert ("error" in cache) is is_told
    assert (b"is down" in answer.body) is is_told
    assert b"SECRET" not in answer.body
    line = output.only("readiness.check_failed")
    assert line["part"] == "cache"
    assert line["error"]["type"].endswith("UnavailableError")
    assert "SECRET" not in output.text


async def test_parts_are_asked_at_once_and_each_only_for_so_long() -> None:
    both = asyncio.Barrier(2)

    async def meet() -> None:
        await both.wait()

    async def hang() -> None:
        await asyncio.get_running_loop().create_future()

    met = await asked({"a": meet, "b": meet}).checks()
    assert [check.passed for check in met] == [True, True]
    slow, quick = await asked({"slow": hang, "quick": good}, check_timeout_seconds=0.01).checks()
    assert (slow.passed, slow.error, quick.passed) == (False, "no answer within 0.01 seconds", True)


async def test_however_many_probes_come_the_parts_are_asked_once_a_second() -> None:
    count, now, gate = 0, [100.0], asyncio.Event()

    async def counted() -> None:
        nonlocal count
        count += 1
        await gate.wait()

    readiness = asked({"db": counted}, clock=lambda: now[0])
    probes = [asyncio.create_task(readiness.checks()) for _ in range(50)]
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(*probes)
    assert count == 1
    now[0] += 0.999
    await readiness.checks()
    assert count == 1
    now[0] += 0.001
    await readiness.checks()
    assert count == 2


async def test_a_probe_that_goes_away_takes_no_other_with_it() -> None:
    entered, gate = asyncio.Event(), asyncio.Event()

    async def slow() -> None:
        entered.set()
        await gate.wait()

    readiness = asked({"db": slow})
    first, second = asyncio.create_task(readiness.checks()), asyncio.create_task(readiness.checks())
    await entered.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    gate.set()
    assert [check.passed for check in await second] == [True]


def test_an_app_can_be_asked_in_one_event_loop_after_another() -> None:
    readiness = asked({"db": good}, cache_seconds=0)
    for _ in range(2):
        assert asyncio.run(readiness.checks())[0].passed


async def test_probes_are_added_once_where_they_are_wanted_and_stay_out_of_the_schema() -> None:
    app = FastAPI()
    add_probes(app, prefix="/health")
    add_probes(app)
    assert (await call(app, path="/health/live")).status == 200
    assert (await call(app, path="/_ops/live")).status == 404
    assert app.openapi()["paths"] == {}


async def test_two_apps_answer_for_themselves() -> None:
    well, ill = probed({"db": good}), probed({"db": bad})
    async with wiring_of(well).running(), wiring_of(ill).running():
        assert (await call(well, path="/_ops/ready")).status == 200
        assert (await call(ill, path="/_ops/ready")).status == 503
