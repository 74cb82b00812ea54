"""What a hit costs: in memory and in Valkey, beside aiocache, cashews and a bare GET of redis-py.

The rounds of all contenders alternate, and each shows its best round, so that whatever else the machine does hits them
alike. The peers are measured where they are installed; `--install` puts them into an environment under `var/`, in which
this then runs, and which nothing else uses.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import distributions
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import uvloop
from fastapi import FastAPI
from redis.asyncio import Redis

from bench.report import table, write
from svc_infra.cache import Cache, MemoryCache, RedisCache, add_cache, cached
from svc_infra.obs.add import add_observability
from svc_infra.obs.context import Context, enter
from svc_infra.wiring import wiring_of
from tests.servers import valkey

PEERS = ("aiocache", "cashews")
PEERS_FOLDER = Path(__file__).parent.parent / "var" / "bench" / "peers"
ROUNDS = 25
KEY = "bench:42"
TEXT = "Ada Lovelace, 12 St James's Square, London" * 2

Measured = Callable[[], Awaitable[Any]]


@dataclass(frozen=True)
class User:
    """A value that cannot be changed."""

    id: int
    name: str


def main() -> None:
    """Measure, print and write."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--install", action="store_true", help="install the peers into var/bench/peers")
    options.add_argument("--misses", type=int, default=10_000)
    given = options.parse_args()
    if given.install:
        command = [sys.executable, "-m", "pip", "install", "-q", "--target", str(PEERS_FOLDER), "--upgrade", *PEERS]
        if subprocess.run(command, check=False).returncode != 0:
            sys.exit("The peers could not be installed; without --install they are left out.")
    if PEERS_FOLDER.exists():
        sys.path.append(str(PEERS_FOLDER))
    found = [peer for peer in PEERS if find_spec(peer) is not None]
    with valkey() as url:
        memory = uvloop.run(_memory(found))
        shared = uvloop.run(_shared(url, found))
        misses = _misses(url, given.misses)
    table("A hit in memory, microseconds", memory)
    table("A hit in Valkey, microseconds", shared)
    table(f"{given.misses:,} misses of one key at once, in 4 processes", misses)
    versions = {one.metadata["Name"] for one in distributions()} & {*PEERS, "redis", "msgspec", "svc-infra", "uvloop"}
    write("cache", [*memory, *shared, *misses], sorted(versions))


async def _memory(peers: list[str]) -> list[dict[str, Any]]:
    app = FastAPI()
    add_observability(app)
    add_cache(app, url="memory://")
    memory = MemoryCache()

    @cached(ttl=300)
    async def in_app(number: int) -> str:
        return TEXT

    @cached(ttl=300, cache=memory)
    async def given(number: int) -> str:
        return TEXT

    @cached(ttl=300, cache=memory)
    async def frozen(number: int) -> User:
        return User(number, "Ada")

    @cached(ttl=300, cache=memory)
    async def copied(number: int) -> dict[str, Any]:
        return {"id": number, "name": "Ada", "tags": ["a", "b"]}

    @cached(ttl=300, cache=memory, tags=["user:{number}"])
    async def tagged(number: int) -> str:
        return TEXT

    async def bare(number: int) -> str:
        return TEXT

    contenders: dict[str, Measured] = {
        "a bare call": lambda: bare(42),
        "svc-infra, in an app, with metrics": lambda: in_app(42),
        "svc-infra, cache= given": lambda: given(42),
        "svc-infra, a frozen dataclass": lambda: frozen(42),
        "svc-infra, with a tag": lambda: tagged(42),
        "svc-infra, a dict, copied for each caller": lambda: copied(42),
        "svc-infra, named argument": lambda: given(number=42),
    }
    if "aiocache" in peers:
        aiocache: Any = import_module("aiocache")

        @aiocache.cached(ttl=300)  # type: ignore[untyped-decorator]
        async def by_aiocache(number: int) -> str:
            return TEXT

        contenders["aiocache, memory"] = lambda: by_aiocache(42)
    if "cashews" in peers:
        cashews: Any = import_module("cashews")
        cashews.cache.setup("mem://")

        @cashews.cache(ttl=300)  # type: ignore[untyped-decorator]
        async def by_cashews(number: int) -> str:
            return TEXT

        contenders["cashews, memory"] = lambda: by_cashews(42)
    enter(Context(request_id="bench"))
    with wiring_of(app).active():
        best = await _best(contenders, 1000)
    ours = best["svc-infra, in an app, with metrics"]
    return [{"contender": name, "us": value, "of ours": value / ours} for name, value in best.items()]


async def _shared(url: str, peers: list[str]) -> list[dict[str, Any]]:
    raw = Redis.from_url(url)
    ours = RedisCache(url, namespace="bench")

    @cached(ttl=300, cache=ours)
    async def plain(number: int) -> str:
        return TEXT

    @cached(ttl=300, cache=ours, tags=["user:{number}"])
    async def tagged(number: int) -> str:
        return TEXT

    await raw.set(KEY, TEXT)
    await ours.set(KEY, TEXT, 300)
    contenders: dict[str, Measured] = {
        "redis-py, GET": lambda: raw.get(KEY),
        "svc-infra, cache.get": lambda: ours.get(KEY),
        "svc-infra, @cached": lambda: plain(42),
        "svc-infra, @cached with a tag": lambda: tagged(42),
    }
    if "aiocache" in peers:
        aiocache: Any = import_module("aiocache")

        host, _, port = url.removeprefix("redis://").rpartition("@")[2].partition(":")
        options = {"endpoint": host, "port": int(port.partition("/")[0]), "namespace": "aiocache"}

        @aiocache.cached(
            ttl=300, cache=aiocache.Cache.REDIS, serializer=aiocache.serializers.JsonSerializer(), **options
        )  # type: ignore[untyped-decorator]
        async def by_aiocache(number: int) -> str:
            return TEXT

        contenders["aiocache, Redis"] = lambda: by_aiocache(42)
    best = await _best(contenders, 100)
    await ours.close()
    await raw.aclose()
    return [{"contender": name, "us": value, "of GET": value / best["redis-py, GET"]} for name, value in best.items()]


async def _best(contenders: dict[str, Measured], calls: int) -> dict[str, float]:
    best = dict.fromkeys(contenders, float("inf"))
    for _ in range(ROUNDS):
        for name, call in contenders.items():
            await call()
            started = time.perf_counter()
            for _ in range(calls):
                await call()
            best[name] = min(best[name], (time.perf_counter() - started) / calls * 1e6)
    return best


def _misses(url: str, misses: int) -> list[dict[str, Any]]:
    context = get_context("spawn")
    results, start = context.Queue(), context.Event()
    processes = [context.Process(target=_miss, args=(url, misses // 4, start, results)) for _ in range(4)]
    for process in processes:
        process.start()
    for _ in processes:
        results.get(timeout=60)
    start.set()
    outcomes = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    calls, slowest = sum(one[0] for one in outcomes), max(one[1] for one in outcomes)
    return [{"processes": 4, "misses": misses, "calls of the origin": calls, "seconds until the last": slowest}]


def _miss(url: str, misses: int, start: Any, results: Any) -> None:
    calls = 0

    async def run() -> float:
        async with Cache(url, namespace="misses") as cache:

            @cached(ttl=60, cache=cache)
            async def slow(number: int) -> int:
                nonlocal calls
                calls += 1
                await asyncio.sleep(0.2)
                return os.getpid()

            await cache.get("warm")
            results.put(None)
            await asyncio.to_thread(start.wait, 60)
            started = time.perf_counter()
            await asyncio.gather(*(slow(1) for _ in range(misses)))
            return time.perf_counter() - started

    seconds = asyncio.run(run())
    results.put((calls, seconds))


if __name__ == "__main__":
    main()
