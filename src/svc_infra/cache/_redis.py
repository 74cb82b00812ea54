"""The second level: Redis (6.2 or newer) or Valkey, shared by every process.

Names: `{prefix}k:` keys of the application, `{prefix}f:` results of functions, `{prefix}l:` leases, `{prefix}t:` tags.
A tag is a random token. A value carries the tokens that its tags had before it was computed and counts only as long as
they are still the same, so that deleting a tag invalidates any number of values, and a forgotten tag never revives one.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.resources import files
from itertools import islice
from struct import pack
from typing import TYPE_CHECKING, Any, TypeVar

from svc_infra._optional import need
from svc_infra.cache._channel import Channel
from svc_infra.cache.codec import FORMAT, FRESH_UNTIL_OFFSET_BYTES
from svc_infra.errors import SvcInfraError, UnavailableError
from svc_infra.redis import connect, translated, translating

if TYPE_CHECKING:
    from redis.asyncio import Redis
    from redis.commands.core import AsyncScript

TIMEOUT_SECONDS = 1.0
RETRY_SECONDS = 1.0
LEASE_WAIT_SECONDS = 30.0
MAX_CONNECTIONS = 16
"""Commands under way at once; more wait. Python is busy with fewer, and a cold start makes no storm."""
MAX_NAMES = 1000
"""Names in one command or message; more go in several."""
MAX_PENDING = 10_000
"""Invalidations kept for when Redis is back; with more, everything is invalidated then."""
TAG_MARGIN_SECONDS = 300.0
"""How much longer than its values a tag lives, at least: the time that computing one may take."""

T = TypeVar("T")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to compute a value for every process, for some seconds unless it is renewed.

    Attributes:
        token: Whose lease it is.
        tags: The token of each of the value's tags, from before the computation.
    """

    key: str
    token: str
    seconds: float
    tags: Mapping[str, bytes]


class Shared:
    """What one process does with Redis.

    While Redis is away every command fails at once with `UnavailableError`, so that nobody waits for it; this object
    tries it again in the background, brings it the invalidations that it has missed, and only then lets commands pass.

    Args:
        url: As for `svc_infra.redis.connect`.
        prefix: What all names begin with.
        on_names, on_gap: See `Channel`.
        timeout_seconds: Longest wait for an answer.
        retry_seconds: How often Redis is tried while it is away.
        lease_wait_seconds: Longest wait for a process that computes the same value.
        listen: Whether to hear what other processes invalidate.
    """

    def __init__(
        self,
        url: str,
        prefix: str,
        *,
        on_names: Callable[[list[str]], None],
        on_gap: Callable[[], None],
        timeout_seconds: float = TIMEOUT_SECONDS,
        retry_seconds: float = RETRY_SECONDS,
        lease_wait_seconds: float = LEASE_WAIT_SECONDS,
        listen: bool = True,
    ) -> None:
        self.prefix = prefix
        self.lease_wait_seconds = lease_wait_seconds
        self.channel = Channel(f"{prefix}changes", on_names, on_gap)
        self._url = url
        self._timeout_seconds = timeout_seconds
        self._retry_seconds = retry_seconds
        self._listen = listen
        self._pending: dict[str, None] = {}
        self._all_pending = False
        self._recovery: asyncio.Task[None] | None = None
        self._listener: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._scripts: dict[tuple[str, ...], AsyncScript] = {}
        errors = need("redis.exceptions")
        self._closed, self._answers, self._failures = errors.ConnectionError, errors.ResponseError, errors.RedisError
        self._reading: list[Any] = []  # connections that wait for the next question
        self._client: Redis = self._connect()  # reads the URL now; the connections are made by the loop that uses them

    @property
    def is_up(self) -> bool:
        """Whether Redis answered last time."""
        return self._recovery is None

    def lease_name(self, key: str) -> str:
        """Under which name a key's lease is kept."""
        return f"{self.prefix}l:{key[len(self.prefix) :]}"

    def attach(self) -> None:
        """Work in the running event loop; another one's connections are left behind."""
        loop = asyncio.get_running_loop()
        if loop is self._loop:
            return
        if self._loop is not None:
            self.channel.lost()
            self._client = self._connect()
        self._loop = loop
        self._reading = []
        self._slots = asyncio.Semaphore(MAX_CONNECTIONS)
        self._recovery = None
        self._listener = loop.create_task(self.channel.listen(self._client)) if self._listen else None

    async def close(self) -> None:
        """Close every connection; the next command opens new ones."""
        if self._loop is not asyncio.get_running_loop():
            return
        tasks = {task for task in (self._listener, self._recovery) if task is not None}
        while tasks:
            for task in tasks:
                task.cancel()
            _, tasks = await asyncio.wait(tasks, timeout=0.1)  # redis-py can swallow one that comes while it connects
        self._listener = self._recovery = None
        if self._pending or self._all_pending:
            _log.warning("cache.invalidations_undelivered", extra={"names": len(self._pending)})
        await self._client.aclose()
        await asyncio.sleep(0)  # connections that were dropped without waiting end here, and not after the loop
        self._loop = None
        self._client = self._connect()

    async def read(self, names: Sequence[str]) -> list[bytes | None]:
        """The values of these names, in one command."""
        if len(names) == 1:
            return [await self._fetch("GET", _raw(names[0]))]
        found: list[Any] = []
        for some in _chunks(names):
            found += await self._fetch("MGET", *[_raw(name) for name in some])
        return found

    async def _fetch(self, *words: str | bytes) -> Any:
        """Ask on a connection kept for that, as the pool would cost half as much again; and again if it was closed."""
        self._check()
        async with self._slots:
            try:
                if self._reading:
                    try:
                        return await self._exchange(self._reading.pop(), words)
                    except self._closed:
                        pass  # by the server, perhaps long ago
                return await self._exchange(await self._pool.get_connection(), words)
            except self._failures as error:
                told = translated(error)
                if not isinstance(error, self._answers):
                    self._lost(told)
                raise told from error

    async def _exchange(self, connection: Any, words: tuple[str | bytes, ...]) -> Any:
        try:
            await connection.send_command(*words)
            answer = await connection.read_response()
        except BaseException:
            await connection.disconnect(nowait=True)  # or it could have the answer to another question
            await self._pool.release(connection)
            raise
        self._reading.append(connection)
        return answer

    async def acquire(
        self, key: str, tags: Sequence[str], *, seconds: float, keep_seconds: float, force: bool = False
    ) -> tuple[Lease | None, bytes | None, Mapping[str, bytes]]:
        """Ask for the right to compute a value.

        Returns:
            The lease, unless another process has it; the value as it is now; the tokens of the tags.
        """
        token = secrets.token_hex(8)
        names = [_raw(name) for name in (key, self.lease_name(key), *tags)]
        terms = [token, _millis(keep_seconds + TAG_MARGIN_SECONDS), _millis(seconds), int(force)]
        granted, raw, tokens = await self._script(("tokens", "acquire"), names, terms)
        found = dict(zip(tags, tokens, strict=True))
        return (Lease(key, token, seconds, found) if granted else None), raw, found

    async def tokens(self, tags: Sequence[str], keep_seconds: float) -> dict[str, bytes]:
        """The tokens of tags, made where there are none, for values that are kept this long."""
        if not tags:
            return {}
        terms = [secrets.token_hex(8), _millis(keep_seconds + TAG_MARGIN_SECONDS)]
        return dict(zip(tags, await self._script(("tokens", "tag"), [_raw(tag) for tag in tags], terms), strict=True))

    @asynccontextmanager
    async def renewing(self, lease: Lease) -> AsyncIterator[None]:
        """Keep the lease while this block runs."""
        task = asyncio.create_task(self._renew(lease))
        try:
            yield
        finally:
            task.cancel()

    async def store(self, lease: Lease, raw: bytes, keep_seconds: float, *, tell: bool) -> bool:
        """Store a computed value and give the lease back.

        Args:
            lease: What `acquire` gave.
            raw: The value.
            keep_seconds: How long.
            tell: Whether other processes are to drop what they have.

        Returns:
            Whether it was stored; not when it was invalidated meanwhile, or the lease has ended.
        """
        message = self.channel.message([lease.key]) if tell else b""
        names = [_raw(lease.key), _raw(self.lease_name(lease.key))]
        terms = [lease.token, raw, _millis(keep_seconds), self.channel.name, message]
        return bool(await self._script(("store",), names, terms))

    async def release(self, lease: Lease) -> None:
        """Give the lease back without a value."""
        try:
            await self._script(("release",), [_raw(self.lease_name(lease.key))], [lease.token])
        except SvcInfraError as error:
            _log.debug("cache.lease_not_released", exc_info=error)  # it ends by itself

    async def write(self, values: Mapping[str, bytes], keep_seconds: float) -> None:
        """Store values over whatever is there or being computed, and tell the other processes."""
        for names in _chunks(list(values)):

            def store(client: Redis, names: list[str] = names) -> Awaitable[Any]:
                pipe = client.pipeline(transaction=True)
                for name in names:
                    pipe.set(_raw(name), values[name], px=_millis(keep_seconds))
                pipe.unlink(*[_raw(self.lease_name(name)) for name in names])
                pipe.publish(self.channel.name, self.channel.message(names))
                return pipe.execute()

            await self._ask(store)

    async def invalidate(self, names: Sequence[str]) -> int | None:
        """Forget keys and tags, tell the other processes, and say how many there were; None when that has to wait."""
        removed = 0
        try:
            for some in _chunks(names):
                removed += await self._ask(lambda client, some=some: self._forget(client, some))  # type: ignore[misc]
        except SvcInfraError as error:
            self._remember(names)
            self._lost(error)  # whatever it was: until this has been said, what Redis has is not to be used
            return None
        return removed

    async def add(self, key: str, by: int, ttl_seconds: float) -> int:
        """Add to a counter; one that does not exist begins at 0 and lives this long."""
        return int(await self._script(("add",), [_raw(key)], [by, _millis(ttl_seconds)]))

    async def expire(self, key: str, ttl_seconds: float, fresh_until: float) -> bool:
        """Let a value live this long from now."""
        header = [FORMAT, FRESH_UNTIL_OFFSET_BYTES, pack(">d", fresh_until)]
        terms = [_millis(ttl_seconds), *header, self.channel.name, self.channel.message([key])]
        return bool(await self._script(("expire",), [_raw(key)], terms))

    async def clear(self) -> bool:
        """Forget everything under the prefix, in time that grows with all that Redis holds."""
        try:
            await self._ask(self._clear)
        except SvcInfraError as error:
            self._all_pending = True
            self._lost(error)
            return False
        return True

    @property
    def _pool(self) -> Any:
        return self._client.connection_pool

    def _connect(self) -> Redis:
        return connect(
            self._url,
            timeout_seconds=self._timeout_seconds,
            max_connections=2 * MAX_CONNECTIONS + 2,  # for reading, for the rest, the listener's and the recovery's
            client_name="svc-infra-cache",
        )

    async def _script(self, parts: tuple[str, ...], names: Sequence[bytes], terms: Sequence[Any]) -> Any:
        """Run one script: by its hash, and again with its text when the server does not know it."""
        if parts not in self._scripts:
            folder = files("svc_infra.cache") / "_lua"
            text = "\n".join((folder / f"{part}.lua").read_text() for part in parts)
            self._scripts[parts] = self._client.register_script(text)
        return await self._ask(lambda client: self._scripts[parts](keys=names, args=terms, client=client))

    async def _ask(self, command: Callable[[Redis], Awaitable[T]]) -> T:
        self._check()
        async with self._slots:
            try:
                with translating():
                    return await command(self._client)
            except SvcInfraError as error:
                if not isinstance(error.__cause__, self._answers):
                    self._lost(error)
                raise

    def _check(self) -> None:
        self.attach()
        if self._recovery is not None:
            raise UnavailableError("Redis is away.", retry_after_seconds=self._retry_seconds)

    def _lost(self, error: SvcInfraError) -> None:
        if self._recovery is None:
            _log.warning("cache.redis_lost", extra={"reason": error.detail})
            self._recovery = asyncio.create_task(self._recover())

    async def _recover(self) -> None:
        while True:
            await asyncio.sleep(self._retry_seconds)
            try:
                with translating():
                    await self._client.ping()
                    await self._catch_up(self._client)
            except Exception as error:  # noqa: BLE001 - whatever it is, Redis is not back; the outage was logged
                _log.debug("cache.redis_still_lost", exc_info=error)
            else:
                self._recovery = None
                _log.info("cache.redis_back")
                return

    async def _catch_up(self, client: Redis) -> None:
        if self._all_pending:
            await self._clear(client)
            self._all_pending = False
            self._pending.clear()
        while self._pending:
            names = list(islice(self._pending, MAX_NAMES))
            await self._forget(client, names)
            for name in names:
                self._pending.pop(name, None)

    def _remember(self, names: Collection[str]) -> None:
        self._pending.update(dict.fromkeys(names))
        if len(self._pending) > MAX_PENDING:
            self._pending.clear()
            self._all_pending = True

    async def _forget(self, client: Redis, names: list[str]) -> int:
        tag = f"{self.prefix}t:"
        leases = [self.lease_name(name) for name in names if not name.startswith(tag)]
        pipe = client.pipeline(transaction=True)
        pipe.unlink(*[_raw(name) for name in names])
        if leases:
            pipe.unlink(*[_raw(name) for name in leases])
        pipe.publish(self.channel.name, self.channel.message(names))
        counts = await pipe.execute()
        return int(counts[0])

    async def _clear(self, client: Redis) -> None:
        batch: list[bytes] = []
        async for name in client.scan_iter(match=f"{self.prefix}*", count=MAX_NAMES):
            batch.append(name)
            if len(batch) == MAX_NAMES:
                await client.unlink(*batch)
                batch.clear()
        if batch:
            await client.unlink(*batch)
        await client.publish(self.channel.name, self.channel.message([self.prefix]))

    async def _renew(self, lease: Lease) -> None:
        name = [_raw(self.lease_name(lease.key))]
        while True:
            await asyncio.sleep(lease.seconds / 3)
            try:
                if not await self._script(("renew",), name, [lease.token, _millis(lease.seconds)]):
                    return
            except SvcInfraError as error:
                _log.debug("cache.lease_not_renewed", exc_info=error)


def _raw(name: str) -> bytes:
    return name.encode(errors="surrogatepass")


def _millis(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _chunks(names: Sequence[str]) -> list[list[str]]:
    return [list(names[start : start + MAX_NAMES]) for start in range(0, len(names), MAX_NAMES)]
