"""What starts and stops with an app, in which order, and what happens when a part of it fails."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
from fastapi import FastAPI, Request
from starlette.applications import Starlette
from starlette.testclient import TestClient

import svc_infra
from svc_infra.config import Settings
from svc_infra.config.settings import AppSettings
from svc_infra.errors import ConfigurationError
from svc_infra.wiring import Part, Phase, Wiring, current_wiring, share_wiring, wiring_of

SOURCE = Path(svc_infra.__file__).parent


class Diary:
    """Writes down what happens."""

    def __init__(self) -> None:
        self.entries: list[str] = []

    def part(self, name: str, *, after: tuple[str, ...] = (), fails: bool = False) -> Part:
        return Part(name, run=self.run(name, fails=fails), after=after)

    def run(self, name: str, *, fails: bool = False) -> Callable[[], AbstractAsyncContextManager[str]]:
        @asynccontextmanager
        async def run() -> AsyncIterator[str]:
            if fails:
                raise RuntimeError(name)
            self.entries.append(f"start {name}")
            try:
                yield name
            finally:
                self.entries.append(f"stop {name}")

        return run


@pytest.fixture
def diary() -> Diary:
    return Diary()


@pytest.fixture
def wiring() -> Wiring:
    return Wiring(Settings(app=AppSettings(shutdown_grace_seconds=30)))


async def test_parts_stop_in_the_reverse_order_of_their_start(wiring: Wiring, diary: Diary) -> None:
    for name in ("a", "b", "c"):
        wiring.add(diary.part(name))
    async with wiring.running():
        pass
    assert diary.entries == ["start a", "start b", "start c", "stop c", "stop b", "stop a"]


async def test_an_app_is_ready_only_between_its_start_and_its_stop(wiring: Wiring) -> None:
    phases = [wiring.phase]

    @asynccontextmanager
    async def watch() -> AsyncIterator[None]:
        phases.append(wiring.phase)
        yield
        phases.append(wiring.phase)

    wiring.add(Part("watch", run=watch))
    async with wiring.running():
        phases.append(wiring.phase)
    phases.append(wiring.phase)
    assert phases == [Phase.NEW, Phase.STARTING, Phase.READY, Phase.DRAINING, Phase.STOPPED]


@pytest.mark.parametrize("order", list(itertools.permutations(["database", "queue", "worker"])))
async def test_a_part_starts_after_the_parts_that_it_names_in_whatever_order_they_are_added(
    order: tuple[str, ...], wiring: Wiring, diary: Diary
) -> None:
    needs = {"database": (), "queue": ("database",), "worker": ("queue", "database", "a part that is not there")}
    for name in order:
        wiring.add(diary.part(name, after=needs[name]))
    async with wiring.running():
        pass
    assert diary.entries == [
        "start database",
        "start queue",
        "start worker",
        "stop worker",
        "stop queue",
        "stop database",
    ]


async def test_parts_that_wait_for_each_other_are_named(wiring: Wiring, diary: Diary) -> None:
    wiring.add(diary.part("a", after=("b",)))
    wiring.add(diary.part("b", after=("a",)))
    with pytest.raises(ConfigurationError, match="Parts wait for each other: a -> b -> a"):
        async with wiring.running():
            pytest.fail("a circle has started")
    assert diary.entries == []


async def test_a_part_that_fails_to_start_stops_those_that_have(wiring: Wiring, diary: Diary) -> None:
    wiring.add(diary.part("a"))
    wiring.add(diary.part("b", fails=True))
    wiring.add(diary.part("c"))
    with pytest.raises(RuntimeError, match="b"):
        async with wiring.running():
            pytest.fail("started without b")
    assert diary.entries == ["start a", "stop a"]
    assert wiring.phase is Phase.STOPPED


async def test_a_part_that_fails_to_stop_does_not_keep_the_others_from_stopping(wiring: Wiring, diary: Diary) -> None:
    @asynccontextmanager
    async def fails_to_stop() -> AsyncIterator[None]:
        yield
        raise RuntimeError("b")

    wiring.add(diary.part("a"))
    wiring.add(Part("b", run=fails_to_stop))
    with pytest.raises(RuntimeError, match="b"):
        async with wiring.running():
            pass
    assert diary.entries == ["start a", "stop a"]


async def test_a_second_part_of_the_same_name_is_ignored(wiring: Wiring, diary: Diary) -> None:
    wiring.add(diary.part("a"))
    wiring.add(diary.part("a", fails=True))
    async with wiring.running():
        assert diary.entries == ["start a"]


async def test_a_part_cannot_be_added_to_an_app_that_runs(wiring: Wiring, diary: Diary) -> None:
    async with wiring.running():
        with pytest.raises(ConfigurationError, match="'late' was added after the app started"):
            wiring.add(diary.part("late"))
    wiring.add(diary.part("late"))
    async with wiring.running():
        assert diary.entries == ["start late"]


async def test_requests_are_drained_before_anything_stops(wiring: Wiring, diary: Diary) -> None:
    wiring.add(diary.part("database"))
    draining = asyncio.Event()
    wiring.request_started()
    wiring.request_started()

    async def run() -> None:
        async with wiring.running(diary.run("the application")):
            diary.entries.append("shutdown begins")
            asyncio.get_running_loop().call_soon(draining.set)

    running = asyncio.create_task(run())
    await draining.wait()
    assert wiring.phase is Phase.DRAINING
    wiring.request_finished()
    await asyncio.sleep(0)
    assert diary.entries == ["start database", "start the application", "shutdown begins"]
    wiring.request_finished()
    await running
    assert diary.entries[3:] == ["stop the application", "stop database"]


async def test_requests_that_outlast_the_grace_period_are_given_up(
    diary: Diary, caplog: pytest.LogCaptureFixture
) -> None:
    wiring = Wiring(Settings(app=AppSettings(shutdown_grace_seconds=0.001)))
    wiring.add(diary.part("database"))
    wiring.request_started()
    with caplog.at_level(logging.WARNING, logger="svc_infra.wiring"):
        async with wiring.running():
            pass
    assert [record.message for record in caplog.records] == ["shutdown.requests_abandoned"]
    assert diary.entries == ["start database", "stop database"]


def test_an_app_can_run_again_on_another_event_loop_and_drains_each_time(wiring: Wiring, diary: Diary) -> None:
    wiring.add(diary.part("database"))

    async def run() -> None:
        wiring.request_started()
        async with wiring.running():
            asyncio.get_running_loop().call_soon(wiring.request_finished)

    for _ in range(2):
        asyncio.run(run())
    assert diary.entries == ["start database", "stop database"] * 2
    assert wiring.in_flight == 0


def test_shared_objects_are_found_by_their_type(wiring: Wiring) -> None:
    assert not wiring.has(Diary)
    diary = Diary()
    wiring.provide(Diary, diary)
    assert wiring.has(Diary)
    assert wiring.get(Diary) is diary


@pytest.mark.parametrize("adds", sorted(SOURCE.rglob("add.py")), ids=lambda path: str(path.parent.relative_to(SOURCE)))
def test_asking_for_what_was_not_added_names_the_room_to_add(wiring: Wiring, adds: Path) -> None:
    room = ".".join(adds.parent.relative_to(SOURCE.parent).parts)
    thing = type("Thing", (), {"__module__": f"{room}.things"})
    with pytest.raises(ConfigurationError, match=r"no Thing: call (\w+)\(app\) first") as raised:
        wiring.get(thing)
    verb = str(raised.value).partition("call ")[2].partition("(")[0]
    assert f"\ndef {verb}(" in adds.read_text()


def test_the_current_wiring_is_that_of_the_innermost_block(wiring: Wiring) -> None:
    other = Wiring(wiring.settings)
    assert current_wiring() is None
    with wiring.active():
        with other.active():
            assert current_wiring() is other
        assert current_wiring() is wiring
    assert current_wiring() is None


@pytest.mark.parametrize("kind", [FastAPI, Starlette])
def test_any_app_gets_wiring_of_its_own_on_first_use(kind: type[Starlette], wiring: Wiring) -> None:
    app, other = kind(), kind()
    first = wiring_of(app, settings=wiring.settings)
    assert first.settings is wiring.settings
    assert wiring_of(app, settings=Settings()) is first
    assert wiring_of(other) is not first


def test_the_lifespan_of_a_plain_app_runs_inside_the_parts_and_its_state_reaches_requests(diary: Diary) -> None:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, str]]:
        diary.entries.append("startup")
        yield {"token": "from the lifespan"}
        diary.entries.append("shutdown")

    app = FastAPI(lifespan=lifespan)
    wiring_of(app).add(diary.part("database"))

    @app.get("/token")
    async def token(request: Request) -> str:
        return str(request.state.token)

    for _ in range(2):
        with TestClient(app) as client:
            assert client.get("/token").json() == "from the lifespan"
    assert diary.entries == ["start database", "startup", "shutdown", "stop database"] * 2


def test_a_lifespan_that_fails_to_start_stops_the_parts(diary: Diary) -> None:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        raise RuntimeError("no startup today")
        yield

    app = FastAPI(lifespan=lifespan)
    wiring_of(app).add(diary.part("database"))
    with pytest.raises(RuntimeError, match="no startup today"), TestClient(app):
        pytest.fail("started")
    assert diary.entries == ["start database", "stop database"]


def test_a_mounted_app_shares_the_wiring_unless_it_has_its_own() -> None:
    app, mounted = FastAPI(), FastAPI()
    assert share_wiring(app, mounted)
    assert wiring_of(mounted) is wiring_of(app)
    standalone = FastAPI()
    own = wiring_of(standalone)
    assert not share_wiring(app, standalone)
    assert wiring_of(standalone) is own


async def test_a_part_that_uses_the_app_runs_inside_the_apps_own_lifespan() -> None:
    events: list[str] = []

    def noting(name: str) -> Callable[[], AbstractAsyncContextManager[object]]:
        @asynccontextmanager
        async def run() -> AsyncIterator[None]:
            events.append(f"{name} starts")
            yield
            events.append(f"{name} stops")

        return run

    wiring = Wiring(Settings())
    wiring.add(Part("worker", noting("worker"), uses_app=True))
    wiring.add(Part("db", noting("db")))
    async with wiring.running(noting("app")):
        pass
    assert events == ["db starts", "app starts", "worker starts", "worker stops", "app stops", "db stops"]
