"""Redis and Valkey: one way to connect, one way to say what went wrong."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from svc_infra._optional import need
from svc_infra.config.url import mask_url
from svc_infra.errors import ConfigurationError, SvcInfraError, UnavailableError

if TYPE_CHECKING:
    from redis.asyncio import Redis

_SCHEMES = ("redis", "rediss", "unix", "valkey", "valkeys")


def connect(
    url: str, *, timeout_seconds: float = 5.0, max_connections: int = 50, client_name: str = "svc-infra"
) -> Redis:
    """A client with its own bounded pool; nothing is sent before the first command. Close it with `aclose()`.

    A command is sent once. A connection that the server has closed is replaced before it is used, but a lost answer is
    never asked for again: only the caller knows whether the command may run twice.

    Args:
        url: `redis://`, `rediss://`, `valkey://`, `valkeys://` (TLS with the final s) or `unix://`.
        timeout_seconds: Longest wait for a free connection, for connecting, and for each answer; a blocking command
            must ask for less.
        max_connections: Connections at most; further callers wait for one.
        client_name: What `CLIENT LIST` shows.

    Returns:
        A client that answers in bytes.

    Raises:
        ConfigurationError: The URL cannot be understood.
        MissingExtraError: redis is not installed.
    """
    redis = need("redis.asyncio")
    once = need("redis.asyncio.retry").Retry(need("redis.backoff").NoBackoff(), 0)
    # With its maintenance notifications on, redis-py hands out connections that the server has closed.
    quiet = need("redis.maint_notifications").MaintNotificationsConfig(enabled=False)
    try:
        pool = redis.BlockingConnectionPool.from_url(
            _checked(url),
            max_connections=max_connections,
            timeout=timeout_seconds,
            socket_timeout=timeout_seconds,
            socket_connect_timeout=timeout_seconds,
            client_name=client_name,
            retry=once,
            maint_notifications_config=quiet,
        )
        if sys.version_info < (3, 12):
            pool.connection_class = _cancellable(pool.connection_class)
        pool.connection_class(**pool.connection_kwargs)  # an option that does not exist is told now, not at first use
    except (TypeError, ValueError, need("redis").RedisError):
        raise ConfigurationError(
            f"REDIS_URL is {mask_url(url)!r}, which is no address of Redis or Valkey: use redis://user:password@host:6379/0."
        ) from None
    client: Redis = redis.Redis.from_pool(pool)
    return client


def translated(error: Exception) -> SvcInfraError:
    """The library's error for one of redis-py; its text, which may hold keys and values, stays out of the message."""
    redis = need("redis.exceptions")
    if isinstance(error, redis.AuthenticationError | redis.AuthorizationError | redis.NoPermissionError):
        return ConfigurationError("Redis refuses these credentials: check REDIS_URL.")
    if isinstance(error, redis.ConnectionError):
        return UnavailableError("Redis cannot be reached.", retry_after_seconds=1)
    if isinstance(error, redis.TimeoutError):
        return UnavailableError("Redis did not answer in time.", retry_after_seconds=1)
    if isinstance(error, redis.OutOfMemoryError):
        return UnavailableError("Redis is out of memory.", retry_after_seconds=5)
    if isinstance(error, redis.ReadOnlyError | redis.ClusterDownError | redis.TryAgainError):
        return UnavailableError("Redis is failing over.", retry_after_seconds=1)
    return SvcInfraError("Redis refused a command.")


@contextmanager
def translating() -> Iterator[None]:
    """Turn what redis-py raises in this block into the library's errors.

    Raises:
        UnavailableError: Redis cannot be reached, is loading, out of memory or failing over, or does not answer.
        ConfigurationError: It refuses the credentials.
        SvcInfraError: It refuses a command.
    """
    try:
        yield
    except need("redis.exceptions").RedisError as error:
        raise translated(error) from error


def _cancellable(connection: type[Any]) -> type[Any]:
    """Send without redis-py's `asyncio.wait_for`, which before Python 3.12 can swallow a cancellation (gh-86296)."""
    late: type[Exception] = need("redis.exceptions").TimeoutError

    class Cancellable(connection):  # type: ignore[misc]
        async def send_packed_command(self, *args: Any, **kwargs: Any) -> None:
            limit: float | None = self.socket_timeout
            self.socket_timeout: float | None = None
            try:
                async with asyncio.timeout(limit):
                    await super().send_packed_command(*args, **kwargs)
            except TimeoutError:
                raise late("Timeout writing to socket") from None
            finally:
                self.socket_timeout = limit

    return Cancellable


def _checked(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in _SCHEMES:
        raise ValueError(parts.scheme)
    if parts.scheme == "unix":
        return url
    if parts.path.strip("/") and not parts.path.strip("/").isdigit():
        raise ValueError(parts.path)  # redis-py would take such a database number for 0
    return "redis" + url[len("valkey") :] if parts.scheme.startswith("valkey") else url
