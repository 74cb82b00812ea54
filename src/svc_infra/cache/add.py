"""Gives an app its cache."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from svc_infra.cache.cache import AfterCommit, Cache
from svc_infra.cache.metrics import CacheCollector
from svc_infra.config import Settings
from svc_infra.obs.metrics import Metrics
from svc_infra.types import Clock
from svc_infra.wiring import Part, Wiring, wiring_of

if TYPE_CHECKING:
    from fastapi import FastAPI


def add_cache(
    app: FastAPI, *, url: str | None = None, cache: Cache | None = None, after_commit: AfterCommit | None = None
) -> None:
    """Share one cache with every room and every cached function of the app.

    The app starts, serves and is ready without Redis: a cache that is away makes it slower and nothing else. Whether it
    is away is told by the log and by the metric `cache_shared_up`.

    Args:
        app: The app; its settings are `CACHE_*`. A second call changes nothing.
        url: Instead of `CACHE_URL`, which is `REDIS_URL` unless it is set; without either there is only memory.
        cache: Instead of a new one; whoever made it closes it.
        after_commit: `svc_infra.db.after_commit`, for invalidation with a `session=`.

    Raises:
        ConfigurationError: The URL or a setting cannot be used.
        MissingExtraError: There is a URL, and redis is not installed.
    """
    wiring = wiring_of(app)
    if wiring.has(Cache):
        return
    clock = wiring.get(Clock) if wiring.has(Clock) else None
    shared = cache or _from_settings(wiring.settings, url, after_commit, clock)
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


def _from_settings(settings: Settings, url: str | None, after_commit: AfterCommit | None, clock: Clock | None) -> Cache:
    given = settings.cache
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
