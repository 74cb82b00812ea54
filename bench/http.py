"""What the default stack costs: the same route on bare Starlette, bare FastAPI and our apps, side by side.

Once in this process, where nothing but the app is measured (processor time, so that other processes do not count); once
through uvicorn, where each server is one process on the first core and the load comes from this one on the last. Rounds
are interleaved, so a slow minute of the machine hits all alike. Ours has its access log and its metrics on, always.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from contextlib import redirect_stderr
from importlib import import_module
from unittest.mock import patch

import uvloop
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Message, Scope

from bench.report import table, write
from bench.serving import PATH, Contender, compared, memory

CALLS = 1000
MEMORY_REQUESTS = 10_000
IN_PRODUCTION = {"APP_ENV": "prod"}
SERVED = {
    "starlette": Contender("bench.http_bare:starlette_app"),
    "fastapi": Contender("bench.http_bare:fastapi_app"),
    "fastapi, uvicorn's access log": Contender("bench.http_bare:fastapi_app", access_log=True),
    "svc-infra": Contender("bench.http_apps:svc_infra_app"),
}


def in_process(rounds: int) -> list[dict[str, object]]:
    """Call each app without a server; access lines go where they would go in production, to a file."""
    with tempfile.TemporaryFile("w") as log, redirect_stderr(log), patch.dict(os.environ, IN_PRODUCTION):
        apps = _apps()
        flush = import_module("svc_infra.obs.logging").flush_logs
        microseconds: dict[str, list[float]] = {name: [] for name in apps}
        for _ in range(rounds + 1):
            for name, app in apps.items():
                started = time.process_time()
                uvloop.run(call(app, CALLS))
                flush()
                microseconds[name].append((time.process_time() - started) / CALLS * 1e6)
    best = {name: min(seen[1:]) for name, seen in microseconds.items()}  # the first round only warms up
    return [
        {"app": name, "us": best[name], "over fastapi": best[name] - best["fastapi"], "over the default": more}
        for name in apps
        for more in [best[name] - best["svc-infra"] if name.startswith("svc-infra, ") else 0.0]
    ]


def _apps() -> dict[str, ASGIApp]:
    bare, ours = import_module("bench.http_bare"), import_module("bench.http_apps")
    full_routes = import_module("svc_infra").easy_service_app(name="bench", release="1.0.0")
    full_routes.router.route_class = APIRoute
    full_routes.get("/items/{item_id}")(ours.item)
    return {
        "starlette": bare.starlette_app,
        "fastapi": bare.fastapi_app,
        "svc-infra": ours.svc_infra_app,
        "svc-infra, on FastAPI's own routes": full_routes,
        "svc-infra, with trusted hosts": ours.made(edge={"trusted_hosts": ["bench"]}),
        "svc-infra, with trusted proxies": ours.made(edge={"trusted_proxies": ["10.0.0.0/8"]}),
        "svc-infra, with CORS": ours.made(cors={"origins": ["https://app.example.com"]}),
        "svc-infra, with CORS and a rate limit": ours.guarded(),
    }


async def call(app: ASGIApp, calls: int) -> None:
    """Send the same request so often."""
    headers = [(b"host", b"bench"), (b"accept", b"*/*"), (b"user-agent", b"bench")]
    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": PATH,
        "raw_path": PATH.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        pass

    for _ in range(calls):
        await app({**scope, "state": {}}, receive, send)


def main() -> None:
    """Measure, print and write."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=9)
    options.add_argument("--seconds", type=float, default=2.0)
    given = options.parse_args()
    called = in_process(given.rounds * 3)
    table(f"GET {PATH} in process, best of {given.rounds * 3} interleaved rounds", called)
    rows = compared(SERVED, base="fastapi", rounds=given.rounds, seconds=given.seconds)
    table(f"GET {PATH} through uvicorn, median of {given.rounds} interleaved rounds", rows)
    resident = {name: memory(SERVED[name], MEMORY_REQUESTS) for name in ("fastapi", "svc-infra")}
    kept = [{"app": name, "MB": size, "over fastapi": size - resident["fastapi"]} for name, size in resident.items()]
    table(f"Resident memory after {MEMORY_REQUESTS:,} requests", kept)
    write("http", [*called, *rows, *kept], ("fastapi", "starlette", "uvicorn", "uvloop", "httptools", "svc-infra"))


if __name__ == "__main__":
    main()
