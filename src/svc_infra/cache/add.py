"""Gives an app its cache."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from svc_infra.cache.cache import Cache
from svc_infra.cache.metrics import CacheCollector
from svc_infra.errors import ConfigurationError
from svc_infra.obs.metrics import Metrics
from svc_infra.types import AfterCommit, Clock
from svc_infra.wiring import Part, Wiring, wiring_of

if TYPE_CHECKING:
    from fastapi import FastAPI


def add_cache(app: FastAPI, *, url: str | None = None, cache: Cache | None = None) -> None:
    """Share one cache with every room and every cached function of the app.

    The app starts, serves and is ready without Redis: a cache that is away makes it slower and nothing else. Whether it
    is away is told by the log and by the metric `cache_shared_up`. Where the app has a database (`add_db`, before or
    after), what is invalidated with a `session=` is so after its commit.

    Args:
        app: The app; its settings are `CACHE_*`. A second call changes nothing.
        url: Instead of `CACHE_URL`, which is `REDIS_URL` unless it is set; without either there is only memory.
        cache: Instead of a new one; whoever made it closes it.

    Raises:
        ConfigurationError: The URL or a setting cannot be used.
        MissingExtraError: There is a URL, and redis is not installed.
    """
    wiring = wiring_of(app)
    if wiring.has(Cache):
        return
    clock = wiring.get(Clock) if wiring.has(Clock) else None
    shared = cache or _from_settings(wiring, url, clock)
    wiring.provide(Cache, shared)
    wiring.add(Part("cache", lambda: _running(wiring, shared, owned=cache is None), after=("logging",)))


@asynccontextmanager
async def _running(wiring: Wiring, cache: Cache, *, owned: bool) -> AsyncIterator[None]:
    registry = wiring.get(Metrics).registry if wiring.has(Metrics) else None
    collector = CacheCollector(cache)
    if registry is not None:
        registry.register(collector)
    await cache.start()
    try:
        yield
    finally:
        if registry is not None:
            registry.unregister(collector)
        if owned:
            await cache.close()


def _from_settings(wiring: Wiring, url: str | None, clock: Clock | None) -> Cache:
    settings, given = wiring.settings, wiring.settings.cache

    def after_commit(session: Any, callback: Callable[[], Awaitable[object]]) -> None:
        if not wiring.has(AfterCommit):
            raise ConfigurationError("This app knows no sessions: call add_db(app), or invalidate after the commit.")
        wiring.get(AfterCommit)(session, callback)

    return Cache(
        url or given.url or settings.redis.url,
        namespace=given.namespace or re.sub(r"[^A-Za-z0-9_.-]+", "-", settings.app.name)[:64],
        version=given.version,
        default_ttl=given.default_ttl_seconds,
        max_entries=given.max_entries,
        max_bytes=given.max_bytes,
        memory_ttl=given.memory_ttl_seconds,
        after_commit=after_commit,
        clock=clock,
        timeout_seconds=given.timeout_seconds,
        retry_seconds=given.retry_seconds,
    )
