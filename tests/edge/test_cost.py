"""The stack costs a request next to nothing: less than FastAPI wastes on a simple route.

Steps are counted, not timed, so that a busy machine changes nothing; `python -m bench.http` has the times.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute

from bench.http import call
from bench.http_apps import item, made
from bench.http_bare import fastapi_app
from svc_infra.middleware import (
    LoggingMiddleware,
    RateLimitMiddleware,
    RequestIdMiddleware,
    SecurityHeadersMiddleware,
)
from svc_infra.obs.line_buffer import BATCH_LINES
from tests.obs.log_capture import captured

CALLS = BATCH_LINES
MAX_OWN_STEPS = 85
"""Of the whole stack with access log and metrics; it takes 70 of Python's and C's functions."""
MAX_LAYER_STEPS = 6
"""Of one layer more: 1 microsecond at most."""
MAX_RATE_LIMIT_STEPS = 35
"""Of a rate limit in memory with its five headers; it takes 29."""
REQUESTS = 2000
MAX_MORE_BYTES = 15_000_000

RESIDENT = """
import asyncio, os
from pathlib import Path
from bench.http import call
from bench.{module} import {app} as app
asyncio.run(call(app, {requests}))
lines = Path("/proc/self/status").read_text().splitlines()
print(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:")))
"""


@pytest.fixture(autouse=True)
def _in_production(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APP_ENV", "prod")


def steps(app: Any) -> float:
    """How many functions, of Python and of C, one request calls."""
    count = 0

    def profile(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    async def run() -> None:
        await call(app, 2 * CALLS)  # whatever is made once
        sys.setprofile(profile)
        try:
            await call(app, CALLS)
        finally:
            sys.setprofile(None)

    before = sys.getprofile()
    try:
        with captured():  # access lines are written as in production, to where pytest's handlers do not see them
            asyncio.run(run())
    finally:
        sys.setprofile(before)
    return count / CALLS


def on_fastapis_routes() -> FastAPI:
    app = made()
    app.router.routes.pop()
    app.router.route_class = APIRoute
    app.get("/items/{item_id}")(item)
    return app


def test_a_simple_route_takes_fewer_steps_than_on_bare_fastapi() -> None:
    assert steps(made()) < steps(fastapi_app)


def test_the_stack_adds_a_bounded_number_of_steps_to_any_route() -> None:
    assert steps(on_fastapis_routes()) - steps(fastapi_app) < MAX_OWN_STEPS


@pytest.mark.parametrize(
    "layer",
    [
        lambda: made(edge={"trusted_hosts": ["bench"]}),
        lambda: made(edge={"trusted_proxies": ["10.0.0.0/8"]}),
        lambda: made(cors={"origins": ["https://app.example.com"]}),
    ],
    ids=["trusted hosts", "trusted proxies", "CORS"],
)
def test_a_layer_more_adds_hardly_any(layer: Callable[[], FastAPI]) -> None:
    assert steps(layer()) - steps(made()) <= MAX_LAYER_STEPS


@pytest.mark.parametrize("middleware", [LoggingMiddleware, RequestIdMiddleware, SecurityHeadersMiddleware])
def test_a_middleware_whose_work_the_edge_has_done_adds_hardly_any(middleware: Any) -> None:
    app = made()
    app.add_middleware(middleware)
    assert steps(app) - steps(made()) <= MAX_LAYER_STEPS


def test_a_rate_limit_adds_a_bounded_number_of_steps() -> None:
    app = made()
    app.add_middleware(RateLimitMiddleware, rate="1000000/second")
    assert steps(app) - steps(made()) <= MAX_RATE_LIMIT_STEPS


def test_a_request_takes_no_more_than_twice_its_time_on_bare_fastapi() -> None:
    best = dict.fromkeys(("bare", "ours"), float("inf"))
    apps = {"bare": fastapi_app, "ours": made()}
    for _ in range(7):
        for name, app in apps.items():
            started = time.process_time()
            with captured():
                asyncio.run(call(app, 200))
            best[name] = min(best[name], time.process_time() - started)
    assert best["ours"] < 2 * best["bare"]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells how much is resident")
def test_the_app_keeps_at_most_15_mb_more_than_bare_fastapi() -> None:
    kept = {}
    for module, app in (("http_bare", "fastapi_app"), ("http_apps", "svc_infra_app")):
        program = RESIDENT.format(module=module, app=app, requests=REQUESTS)
        environment = {"PYTHONPATH": os.pathsep.join(sys.path), "PATH": os.environ["PATH"], "APP_ENV": "prod"}
        command = [sys.executable, "-c", program]
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True, env=environment)
        kept[module] = int(result.stdout)
    assert kept["http_apps"] - kept["http_bare"] < MAX_MORE_BYTES
