"""How often a request goes to Valkey and back, as Valkey counts it, and what that costs.

A rate limit goes once, whatever the number of its policies; a write with an idempotency key once before its handler and
once after.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from redis.asyncio import Redis

from bench.report import table, write
from svc_infra import create_app
from svc_infra.config import Settings
from svc_infra.idempotency.add import add_idempotency
from svc_infra.idempotency.http import Idempotent
from svc_infra.middleware import RateLimitMiddleware
from svc_infra.middleware.http import rate_limit
from tests.middleware.asgi import call
from tests.servers import valkey

POLICIES = ("100000/second", "1000000/minute", "10000000/hour")


async def _measure(url: str, requests: int) -> list[dict[str, Any]]:
    app = create_app(settings=Settings(app={"env": "test"}, redis={"url": url}, log={"level": "WARNING"}))
    app.add_middleware(RateLimitMiddleware, rate=())
    add_idempotency(app)
    observer = Redis.from_url(url)
    inside: list[int] = []
    is_asking = False

    async def ask() -> int:
        return int((await observer.info("stats"))["total_reads_processed"])

    @app.get("/limited", dependencies=[rate_limit(*POLICIES, per="ip")])
    async def limited() -> int:
        return 1

    @app.post("/written", dependencies=[Idempotent(caller=lambda request: "bench")])
    async def written() -> int:
        if is_asking:
            inside.append(await ask())
        return 1

    @app.post("/free")
    async def free() -> int:
        return 1

    numbers = iter(range(10**9))

    async def send_limited() -> None:
        assert (await call(app, path="/limited")).status == 200

    async def send_written() -> None:
        answer = await call(app, "POST", "/written", headers=[("idempotency-key", f"key-{next(numbers)}")])
        assert answer.status == 200

    async def send_free() -> None:
        assert (await call(app, "POST", "/free")).status == 200

    async with app.router.lifespan_context(app):
        rows = []
        for name, send in (("no such thing", send_free), ("3 rate limits", send_limited), ("idempotent", send_written)):
            rows.append({"request": name, **await _counted(send, ask, requests)})
        is_asking = True
        first = await ask()
        await send_written()
        last = await ask()
    rows[-1] |= {"before": inside[0] - first - 1, "after": last - inside[0] - 1}
    await observer.aclose()
    return [{"before": "", "after": "", **row} for row in rows]


async def _counted(
    send: Callable[[], Awaitable[None]], ask: Callable[[], Awaitable[int]], requests: int
) -> dict[str, Any]:
    await send()  # connects, and the server learns the scripts
    first, started = await ask(), time.perf_counter()
    for _ in range(requests):
        await send()
    seconds = time.perf_counter() - started
    return {"round trips": (await ask() - first - 1) / requests, "us": seconds / requests * 1e6}


def main() -> None:
    """Measure, print and write."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--requests", type=int, default=2000)
    given = options.parse_args()
    with valkey() as url:
        rows = asyncio.run(_measure(url, given.requests))
    columns = ("request", "round trips", "before", "after", "us")
    rows = [{column: row[column] for column in columns} for row in rows]
    table(f"Round trips to Valkey, of {given.requests:,} requests in process", rows)
    write("round_trips", rows, ("redis", "fastapi", "svc-infra"))


if __name__ == "__main__":
    main()
