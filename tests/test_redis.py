"""Connecting to Valkey, and what is said when it fails."""

from __future__ import annotations

import asyncio
import socket

import pytest
import redis.exceptions as driver
from redis.asyncio import SSLConnection

from svc_infra.errors import ConfigurationError, SvcInfraError, UnavailableError
from svc_infra.redis import connect, translated, translating


@pytest.fixture
def closed_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


async def test_a_client_speaks_to_a_real_server_in_bytes(valkey_url: str) -> None:
    async with connect(valkey_url, client_name="shop") as client:
        assert await client.set("key", "value")
        assert await client.get("key") == b"value"
        assert (await client.client_info())["name"] == "shop"


async def test_valkeys_own_scheme_is_understood(valkey_url: str) -> None:
    async with connect(valkey_url.replace("redis://", "valkey://")) as client:
        assert await client.ping()


def test_the_final_s_of_valkeys_means_tls() -> None:
    pools = [connect(url).connection_pool for url in ("valkeys://host:1/2", "rediss://host:1/2")]
    assert all(issubclass(pool.connection_class, SSLConnection) for pool in pools)
    assert [pool.connection_kwargs["db"] for pool in pools] == [2, 2]


def test_a_unix_socket_is_understood() -> None:
    assert connect("unix:///run/valkey.sock?db=3").connection_pool.connection_kwargs["path"] == "/run/valkey.sock"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:6379",
        "http://user:s3cr3t@localhost",
        "redis://user:s3cr3t@localhost:port",
        "redis://user:s3cr3t@localhost:99999",
        "redis://user:s3cr3t@localhost/first",
        "redis://user:s3cr3t@localhost?nonsense=1",
        "redis://user:s3cr3t@localhost?max_connections=many",
        "redis://user:s3cr3t@[::1",
    ],
)
def test_a_wrong_url_names_the_setting_and_hides_the_password(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"REDIS_URL is .* use redis://user:password@host:6379/0") as raised:
        connect(url)
    assert "s3cr3t" not in str(raised.value)


async def test_a_server_that_is_away_is_unavailable(closed_port: int) -> None:
    async with connect(f"redis://127.0.0.1:{closed_port}") as client:
        with pytest.raises(UnavailableError, match="cannot be reached") as raised, translating():
            await client.ping()
    assert raised.value.retry_after_seconds == 1
    assert isinstance(raised.value.__cause__, driver.ConnectionError)


async def test_a_server_that_says_nothing_is_unavailable() -> None:
    connected = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        await reader.read()
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with connect(f"redis://127.0.0.1:{port}", timeout_seconds=0.5) as client:
            with pytest.raises(UnavailableError, match="did not answer in time"), translating():
                await client.ping()
    assert connected.is_set()


async def test_wrong_credentials_are_a_matter_of_configuration(valkey_url: str) -> None:
    async with connect(valkey_url.replace("redis://", "redis://user:wrong@")) as client:
        with pytest.raises(ConfigurationError, match="check REDIS_URL"), translating():
            await client.ping()


async def test_a_full_server_is_unavailable(valkey_url: str) -> None:
    async with connect(valkey_url) as client:
        await client.config_set("maxmemory", "1")
        try:
            with pytest.raises(UnavailableError, match="out of memory"), translating():
                await client.set("key", "value")
        finally:
            await client.config_set("maxmemory", "0")


async def test_a_refused_command_shows_neither_key_nor_value(valkey_url: str) -> None:
    async with connect(valkey_url) as client:
        await client.set("key", "s3cr3t")
        with pytest.raises(SvcInfraError, match="refused a command") as raised, translating():
            await client.lpush("key", "s3cr3t")
    assert type(raised.value) is SvcInfraError
    assert "key" not in str(raised.value)


async def test_callers_beyond_the_pools_size_wait_and_then_are_told(valkey_url: str) -> None:
    async with connect(valkey_url, max_connections=1, timeout_seconds=0.5) as client, client.client() as held:
        await held.ping()
        with pytest.raises(UnavailableError), translating():
            await client.ping()
        await held.aclose()  # gives its connection back
        assert await client.ping()


async def test_a_connection_that_the_server_closed_is_replaced(valkey_url: str) -> None:
    async with connect(valkey_url) as client, connect(valkey_url) as other:
        first = await client.client_id()
        await other.client_kill_filter(_id=str(first))
        await other.ping()  # the server has hung up before it answers this
        assert await client.client_id() != first


async def test_a_cancellation_is_never_swallowed(valkey_url: str) -> None:
    cancelled = 0
    for turns in range(40):
        async with connect(valkey_url) as client:
            command = asyncio.ensure_future(client.client_id())
            for _ in range(turns):
                await asyncio.sleep(0)
            asked = command.cancel()
            await asyncio.wait({command})
            assert command.cancelled() is asked
            cancelled += asked
    assert cancelled > 10


async def test_a_server_that_reads_nothing_is_given_up() -> None:
    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while b"PING" not in await reader.read(4096):
            writer.write(b"+OK\r\n" * 3)
        writer.write(b"+PONG\r\n")
        await done.wait()
        writer.close()

    done = asyncio.Event()
    async with await asyncio.start_server(deaf, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with connect(f"redis://127.0.0.1:{port}?protocol=2", timeout_seconds=0.2) as client:
            await client.ping()
            with pytest.raises(UnavailableError, match="in time"), translating():
                await client.set("key", b"x" * 2**26)
            done.set()


async def test_a_command_whose_answer_was_lost_is_not_sent_again() -> None:
    received: list[bytes] = []

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(4096):
            commands = data.count(b"*")
            received.append(data)
            if b"INCR" in data:
                break
            writer.write(b"+OK\r\n" * commands)
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with connect(f"redis://127.0.0.1:{port}?protocol=2") as client:
            with pytest.raises(UnavailableError), translating():
                await client.incr("sold")
    assert b"".join(received).count(b"INCR") == 1


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (driver.BusyLoadingError("LOADING"), UnavailableError),
        (driver.ReadOnlyError("READONLY"), UnavailableError),
        (driver.OutOfMemoryError("OOM"), UnavailableError),
        (driver.MaxConnectionsError("Too many"), UnavailableError),
        (driver.NoPermissionError("NOPERM"), ConfigurationError),
        (driver.DataError("bad"), SvcInfraError),
        (driver.WatchError("changed"), SvcInfraError),
    ],
)
def test_each_driver_error_has_a_home_in_the_tree(error: driver.RedisError, kind: type[SvcInfraError]) -> None:
    assert type(translated(error)) is kind


def test_other_errors_pass_through() -> None:
    with pytest.raises(KeyError), translating():
        raise KeyError("mine")
