"""What authentication costs: a request with a token or a key beside one without, with and without the token cache.

In process, so that nothing but the service is measured: the app is called as a server calls it, one request at a time,
and processor time is counted. Rounds are interleaved; figures are medians over the rounds. Logins are measured too: how
many there can be, and what others wait while many are in flight, over real sockets.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvloop
from fastapi import FastAPI
from sqlalchemy import Engine, event

from bench.login_storm import BUDGET_MS, storm
from bench.report import table, write
from svc_infra import create_app
from svc_infra.cache import add_cache
from svc_infra.config import Settings
from svc_infra.db import AsyncDatabase
from svc_infra.db.add import add_db
from svc_infra.security import Accounts, TokenPair
from svc_infra.security.add import add_auth_users
from svc_infra.security.http import Identity
from svc_infra.security.keys import ApiKeys, KeyRequest
from svc_infra.security.keys.add import add_api_keys
from svc_infra.security.principal import Principal
from svc_infra.wiring import wiring_of

EMAIL, PASSWORD = "ana@example.com", "correct horse battery"
BUDGET_MICROSECONDS = 60.0
LOGINS_IN_FLIGHT = 8
"""Beside the two threads that hash: what the database and the event loop do meanwhile costs them nothing then."""


@asynccontextmanager
async def service(folder: str, *, cache: str) -> AsyncIterator[tuple[FastAPI, str, str]]:
    """An app with one account; yields it, an access token and an API key."""
    settings = Settings(
        app={"env": "test"},
        log={"level": "WARNING"},
        auth={"token_cache": cache, "lockout_threshold": 10_000, "lockout_network_threshold": 10_000},
    )
    app = create_app(settings=settings)
    add_cache(app)
    add_db(app, url=f"sqlite:///{folder}/{cache}.db")
    add_auth_users(app)
    add_api_keys(app)

    @app.get("/open")
    async def open_to_all() -> dict[str, str]:
        return {"hello": "world"}

    @app.get("/mine")
    async def mine(user: Identity) -> dict[str, str]:
        return {"hello": "world"}

    async with app.router.lifespan_context(app):
        with wiring_of(app).active():
            accounts = wiring_of(app).get(Accounts)
            user_id, _ = await accounts.sign_up(email=EMAIL, password=PASSWORD)
            async with wiring_of(app).get(AsyncDatabase).session() as session:
                owner, keys = Principal(id=user_id, email=EMAIL), wiring_of(app).get(ApiKeys)
                key = (await keys.create(session, owner, KeyRequest(name="bench"))).key
            outcome = await accounts.login(email=EMAIL, password=PASSWORD)
            assert isinstance(outcome, TokenPair)
            yield app, outcome.access_token, key


def request(app: FastAPI, path: str, token: str = "") -> Callable[[], Awaitable[None]]:
    """One request, as a server makes it."""
    headers = [(b"host", b"bench"), (b"user-agent", b"bench")]
    headers += [(b"authorization", f"Bearer {token}".encode())] if token else []
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    async def call() -> None:
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "http",
            "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "headers": headers,
            "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), "state": {},
        }  # fmt: skip
        await app(scope, receive, send)
        if statuses.pop() != 200:
            raise SystemExit(f"{path} was not answered with 200")

    return call


async def microseconds(call: Callable[[], Awaitable[None]], count: int) -> float:
    """The processor time of one call, in all threads of this process: what else the machine does is left out."""
    started = time.process_time()
    for _ in range(count):
        await call()
    return (time.process_time() - started) / count * 1e6


async def logins(app: FastAPI, count: int) -> tuple[float, float]:
    """Logins in a second, and what the same threads manage that only hash; in flight are enough for none to wait."""
    accounts = wiring_of(app).get(Accounts)
    hasher = accounts._desk.hasher
    stored = await hasher.hash(PASSWORD)

    async def each(work: Callable[[], Awaitable[object]]) -> float:
        started = time.perf_counter()

        async def share() -> None:
            for _ in range(count // LOGINS_IN_FLIGHT):
                await work()

        await asyncio.gather(*(share() for _ in range(LOGINS_IN_FLIGHT)))
        return count / (time.perf_counter() - started)

    return await each(lambda: accounts.login(email=EMAIL, password=PASSWORD)), await each(
        lambda: hasher.verify(PASSWORD, stored)
    )


async def reads(call: Callable[[], Awaitable[None]]) -> int:
    """The statements of one call that read."""
    seen: list[str] = []

    def executed(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("SELECT"):
            seen.append(statement)

    event.listen(Engine, "before_cursor_execute", executed)
    await call()
    event.remove(Engine, "before_cursor_execute", executed)
    return len(seen)


async def measure(rounds: int, count: int, seconds: float) -> None:
    """Measure, print and write."""
    with tempfile.TemporaryDirectory() as folder:
        async with (
            service(folder, cache="on") as (warm, token, key),
            service(folder, cache="off") as (cold, other, other_key),
        ):
            calls = {
                "without a token": request(warm, "/open"),
                "with a token, token cache": request(warm, "/mine", token),
                "with a token, no cache": request(cold, "/mine", other),
                "with a key, token cache": request(warm, "/mine", key),
                "with a key, no cache": request(cold, "/mine", other_key),
            }
            seen: dict[str, list[float]] = {name: [] for name in calls}
            for number in range(rounds + 1):
                for name, call in calls.items():
                    taken = await microseconds(call, count)
                    if number:  # the first round only warms up
                        seen[name].append(taken)
            base = seen["without a token"]
            rows = [
                {
                    "request": name,
                    "us": statistics.median(taken),
                    "us more": statistics.median(a - b for a, b in zip(taken, base, strict=True)),
                    "reads": await reads(calls[name]),
                }
                for name, taken in seen.items()
            ]
            table(f"One request, median of {rounds} interleaved rounds of {count}", rows)
            done, only_hashing = await logins(warm, 80)
            row = {"logins/s": done, "argon2id/s": only_hashing, "part": done / only_hashing}
            table(f"Logins, {LOGINS_IN_FLIGHT} at a time", [row])
    waits = await storm(seconds)
    table(f"A plain GET for {seconds:.0f} s, one at a time", waits)
    write("auth", [*rows, *waits], ("fastapi", "starlette", "joserfc", "uvloop"))
    more = float(str(rows[1]["us more"]))
    print(f"\na token costs {more:.1f} us more with a warm cache; {BUDGET_MICROSECONDS:.0f} are allowed")
    print(f"a plain GET has a p99 of {waits[1]['p99 ms']:.1f} ms beside the logins; {BUDGET_MS:.0f} are allowed")
    if max(int(str(row["reads"])) for row in rows) > 1:
        raise SystemExit("a credential cost more than one read")


def main() -> None:
    """Read the options and measure."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=9)
    options.add_argument("--count", type=int, default=500)
    options.add_argument("--seconds", type=float, default=10.0)
    given = options.parse_args()
    Path("var").mkdir(exist_ok=True)
    uvloop.run(measure(given.rounds, given.count, given.seconds))


if __name__ == "__main__":
    main()
