"""`svc-infra demo`: the example service, to look at or to be driven from outside."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
import uvicorn

from svc_infra.config import Settings
from svc_infra.edge.protocol import BoundedProtocol
from svc_infra.errors import ConfigurationError

DEFAULT_PORT = 8000
DEFAULT_SQL_URL = "sqlite:///var/tracker.db"
LIMIT_OF_OPEN_REQUESTS_SECONDS = 10


def demo(
    port: Annotated[int | None, typer.Option(help="Where to listen; 8000, or another when that is taken.")] = None,
    tour: Annotated[
        bool, typer.Option("--tour", help="Drive the service from outside, print each step, exit.")
    ] = False,
    sql_url: Annotated[str | None, typer.Option(help="Another database, such as postgresql://user@host/name.")] = None,
    redis_url: Annotated[str | None, typer.Option(help="Redis or Valkey for the jobs.")] = None,
    seed: Annotated[bool, typer.Option(help="Make an account and data to look at.")] = True,
) -> None:
    """Serve the example tracker with its worker and scheduler inside, on a SQLite file."""
    _find_examples()
    if tour:
        run = import_module("tour.run")
        steps = asyncio.run(run.tour(sql_url=sql_url, redis_url=redis_url))
        print(run.printed(steps))
        raise typer.Exit(1 if any(step.error for step in steps) else 0)
    settings = _settings(sql_url, redis_url)
    with _listening(port) as listener:
        signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn handles it and raises it again when it has stopped
        asyncio.run(_serve(import_module("tracker.app").create(settings), listener, seed=seed))


def _find_examples() -> None:
    examples = Path(__file__).parents[3] / "examples"
    if not (examples / "tracker").is_dir():
        raise ConfigurationError("The demo is not part of the installed package: run it from a clone of the project.")
    sys.path.insert(0, str(examples))


def _settings(sql_url: str | None, redis_url: str | None) -> Settings:
    found = Settings()
    if sql_url is None and "url" not in found.sql.model_fields_set:
        sql_url = DEFAULT_SQL_URL
    given: dict[str, Any] = {}
    if sql_url is not None:
        given["sql"] = {"url": sql_url}
    if redis_url is not None:
        given["redis"] = {"url": redis_url}
    return Settings(**given)


def _listening(port: int | None) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        try:
            listener.bind(("127.0.0.1", DEFAULT_PORT if port is None else port))
        except OSError:
            if port is not None:
                raise ConfigurationError(f"Port {port} is taken: choose another with --port.") from None
            listener.bind(("127.0.0.1", 0))
    except BaseException:
        listener.close()
        raise
    return listener


async def _serve(app: Any, listener: socket.socket, *, seed: bool) -> None:
    # The app's lifespan is run here, not by uvicorn, so that what is wrong at start is one line and not a traceback.
    config = uvicorn.Config(
        app,
        http=BoundedProtocol,
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=LIMIT_OF_OPEN_REQUESTS_SECONDS,
    )
    async with app.router.lifespan_context(app):
        login = await import_module("tracker.demo").seed(app) if seed else None
        listener.listen()
        print(_greeting(f"http://127.0.0.1:{listener.getsockname()[1]}", login), flush=True)
        await uvicorn.Server(config).serve(sockets=[listener])


def _greeting(url: str, login: Any) -> str:
    lines = [
        "",
        f"  The tracker is at {url}",
        f"  try its API       {url}/docs   (Authorize with an access token from POST /auth/login)",
        f"  health            {url}/_ops/ready",
        f"  metrics           {url}/metrics",
    ]
    if login is not None:
        lines += [
            f"  log in as         {login.email}  password {login.password}",
            f"  or as an admin    {login.admin_email}  (the same password; may act as the former, see docs/admin.md)",
            f"  its organisation  X-Tenant-Id: {login.tenant_id}   (40 tickets, imported by a job from a CSV file)",
        ]
    return "\n".join([*lines, "  stop with Ctrl-C", ""])
