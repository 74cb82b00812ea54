"""An app behind a real server on a real socket."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
import uvicorn
from fastapi import FastAPI


class Server(uvicorn.Server):
    """Tells when its shutdown begins."""

    def __init__(self, app: FastAPI) -> None:
        super().__init__(uvicorn.Config(app, log_config=None))
        self.stopping = threading.Event()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.stopping.set()
        await super().shutdown(sockets)


def listening() -> socket.socket:
    """A socket on a free port."""
    return socket.create_server(("127.0.0.1", 0))


@contextmanager
def served(app: FastAPI, *, on: socket.socket | None = None) -> Iterator[tuple[Server, httpx2.Client]]:
    """A server of the app on a free port, and a client; a request that comes before the server is ready waits.

    Args:
        app: The app.
        on: A socket of `listening()`, for an app that must know its port.
    """
    with on or listening() as listener:
        server = Server(app)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            with httpx2.Client(base_url=url, timeout=10, trust_env=False) as client:
                yield server, client
        finally:
            server.should_exit = True
            thread.join(timeout=20)
            assert not thread.is_alive()
