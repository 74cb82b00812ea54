"""The default stack beside the one that services usually put together around FastAPI (`bench.http_peer_app`).

The peers are installed into an environment of their own in the user's cache folder, with the same FastAPI, Starlette,
uvicorn and parsers as here, so that nothing but the middleware differs.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from bench.report import table, write
from bench.serving import PATH, Contender, compared

SHARED = (
    "fastapi",
    "starlette",
    "pydantic",
    "uvicorn",
    "uvloop",
    "httptools",
    "orjson",
    "structlog",
    "prometheus-client",
)
PEERS = ("asgi-correlation-id==5.0.1", "prometheus-fastapi-instrumentator==8.1.0", "slowapi==0.1.10")


def peers_python() -> str:
    """The interpreter of the peers' environment, which is made when it is not there as asked for."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "svc-infra" / "bench" / "http"
    packages = [*PEERS, *(f"{package}=={version(package)}" for package in SHARED)]
    python, marker = folder / "bin" / "python", folder / "installed.txt"
    if not marker.exists() or marker.read_text().split() != packages:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True)
        marker.write_text("\n".join(packages) + "\n")
    return str(python)


def main() -> None:
    """Measure, print and write."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--seconds", type=float, default=2.0)
    given = options.parse_args()
    contenders = {
        "the usual middlewares": Contender("bench.http_peer_app:app", python=peers_python()),
        "fastapi": Contender("bench.http_bare:fastapi_app"),
        "svc-infra": Contender("bench.http_apps:svc_infra_app"),
        "svc-infra, with CORS and a rate limit": Contender("bench.http_apps:guarded", factory=True),
    }
    rows = compared(contenders, base="the usual middlewares", rounds=given.rounds, seconds=given.seconds)
    table(f"GET {PATH} through uvicorn, median of {given.rounds} interleaved rounds", rows)
    print(", ".join(PEERS))
    write("http_peers", rows, (*SHARED, "svc-infra"))


if __name__ == "__main__":
    main()
