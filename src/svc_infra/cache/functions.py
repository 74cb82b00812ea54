"""Functions whose results are cached."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import replace
from functools import update_wrapper
from queue import Empty, SimpleQueue
from types import MethodType, SimpleNamespace
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, cast, get_type_hints, overload

from svc_infra.cache._memory import MAX_FREQUENCY
from svc_infra.cache.cache import Cache
from svc_infra.cache.codec import codec_of
from svc_infra.cache.keys import MAX_KEY_CHARACTERS, PLAIN, Arguments, Template, shortened
from svc_infra.cache.loading import Call
from svc_infra.cache.policy import DEFAULT_LEASE_SECONDS, Duration, Policy, seconds_of
from svc_infra.errors import ConfigurationError
from svc_infra.obs.context import current
from svc_infra.wiring import Wiring, current_wiring

LOOP_CHECK_SECONDS = 1.0
"""How often a waiting thread looks whether the event loop still runs."""

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
S = TypeVar("S")
T = TypeVar("T")

Tags = Iterable[str] | Callable[..., Iterable[str]]


class _Plan:
    """What a function needs to use one cache, found once."""

    __slots__ = ("cache", "clock", "codec", "entries", "loader", "policy", "prefix", "stats")

    def __init__(self, cache: Cache, name: str, kind: Any, policy: Policy) -> None:
        self.cache = cache
        self.clock = cache.memory.clock
        self.codec = codec_of(kind)
        self.entries = cache.memory.entries
        self.loader = cache.loader
        self.policy = policy
        self.prefix = f"{cache.prefix}f:{name}"
        self.stats = cache.stats_of(name)


class _Cached(Generic[P, R]):
    """What cached functions have in common."""

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        policy: Policy,
        has_ttl: bool,
        has_negative_ttl: bool,
        key: str | Callable[..., str] | None,
        tags: Tags,
        ignore: Iterable[str],
        by_tenant: bool,
        kind: Any,
        cache: Cache | None,
    ) -> None:
        update_wrapper(self, function)
        self.__wrapped__ = function
        self._arguments = Arguments(function, ignore)
        self._arity = self._arguments.arity if key is None else -1
        self._key = Template(key, self._arguments) if isinstance(key, str) else key
        self._tags = tags if callable(tags) else [Template(tag, self._arguments) for tag in tags]
        self._by_tenant = by_tenant
        self._kind = kind
        self._policy, self._has_ttl, self._has_negative_ttl = policy, has_ttl, has_negative_ttl
        self._cache = cache
        self._wiring: Wiring | None = None
        self._plan: _Plan | None = None

    def key(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """The full name of these arguments' result, for the tenant in context."""
        plan = self._planned()
        return self._locate(plan, args, kwargs)

    def tags(self, *args: P.args, **kwargs: P.kwargs) -> tuple[str, ...]:
        """The full names of the result's tags."""
        if not self._tags:
            return ()
        plan = self._planned()
        if callable(self._tags):
            return tuple(plan.cache.tag_name(tag) for tag in self._tags(*args, **kwargs))
        named = self._arguments.named(args, kwargs)
        return tuple(plan.cache.tag_name(tag.fill(named, quoted=False)) for tag in self._tags)

    def _planned(self) -> _Plan:
        """The plan for the cache of the app that runs here, or the one that was given."""
        wiring = current_wiring() if self._cache is None else None
        if self._plan is not None and wiring is self._wiring:
            return self._plan
        if self._cache is not None:
            cache = self._cache
        elif wiring is not None:
            cache = wiring.get(Cache)
        else:
            raise ConfigurationError(
                f"{self._arguments.name} is called outside of an app, so it has no cache: give @cached a cache=, or "
                "call it inside `with wiring.active()`."
            )
        policy, ttl = self._policy, self._policy.ttl_seconds if self._has_ttl else cache.default_ttl_seconds
        negative = policy.negative_ttl_seconds if self._has_negative_ttl else ttl
        policy = replace(policy, ttl_seconds=ttl, negative_ttl_seconds=negative)
        self._plan = _Plan(cache, self._arguments.name, self._returned(), policy)
        self._wiring = wiring
        return self._plan

    def _returned(self) -> Any:
        """What the function says that it returns; anything, when it says nothing."""
        function = inspect.unwrap(self.__wrapped__)
        if self._kind is not None or "return" not in function.__annotations__:
            return Any if self._kind is None else self._kind
        only = SimpleNamespace(__annotations__={"return": function.__annotations__["return"]})
        try:
            return get_type_hints(only, globalns=function.__globals__)["return"]
        except (NameError, TypeError) as error:
            raise ConfigurationError(
                f"What {self._arguments.name} returns is not known when it runs ({error}): give @cached kind=."
            ) from error

    def _locate(self, plan: _Plan, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        tenant = current().tenant_id if self._by_tenant else ""
        if self._key is not None:
            if isinstance(self._key, Template):
                return plan.cache.key_name(self._key.fill(self._arguments.named(args, kwargs), quoted=True), tenant)
            return plan.cache.key_name(self._key(*args, **kwargs), tenant)
        if kwargs or len(args) != self._arity or not PLAIN.issuperset(map(type, args)):
            text = self._arguments.text(args, kwargs)
        else:
            text = repr(args)
        key = f"{plan.prefix}@{tenant!r}{text}" if tenant else f"{plan.prefix}{text}"
        return key if len(key) <= MAX_KEY_CHARACTERS else shortened(key)

    def _call(
        self,
        plan: _Plan,
        key: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        compute: Callable[[], Awaitable[Any]],
        recompute: Callable[[], Awaitable[Any]],
    ) -> Call:
        tags = self.tags(*args, **kwargs) if self._tags else ()
        return Call(key, tags, plan.codec, plan.policy, plan.stats, compute, recompute)


class CachedFunction(_Cached[P, R]):
    """An async function whose results are cached; call it as before. Made by `cached`."""

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The result, from the cache or computed."""
        plan = self._planned()
        key = self._locate(plan, args, kwargs)
        entry = plan.entries.get(key)  # a hit: nothing here waits, locks or allocates more than the key
        if (
            entry is not None
            and plan.clock() < entry.refresh_at
            and entry.codec is plan.codec
            and (not entry.tags or entry.is_alive())
        ):
            plan.stats.hits += 1
            if entry.frequency < MAX_FREQUENCY:
                entry.frequency += 1
            return cast(R, entry.get() if entry.encoded else entry.value)
        return cast(R, await plan.loader.serve(self._asked(plan, key, args, kwargs)))

    async def refresh(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The result, computed anew for every process."""
        plan = self._planned()
        return cast(R, await plan.loader.refresh(self._asked(plan, self._locate(plan, args, kwargs), args, kwargs)))

    async def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Forget the result of these arguments in every process."""
        plan = self._planned()
        await plan.cache.invalidate([self._locate(plan, args, kwargs)])

    @overload
    def __get__(self, instance: None, owner: type) -> CachedFunction[P, R]: ...
    @overload
    def __get__(
        self: CachedFunction[Concatenate[S, Q], T], instance: S, owner: type
    ) -> Callable[Q, Coroutine[Any, Any, T]]: ...
    def __get__(self, instance: Any, owner: type) -> Any:
        """As a method; `invalidate` and the like then take the instance as their first argument."""
        return self if instance is None else MethodType(self, instance)

    def _asked(self, plan: _Plan, key: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        def compute() -> Awaitable[R]:
            return cast(Awaitable[R], self.__wrapped__(*args, **kwargs))

        return self._call(plan, key, args, kwargs, compute, compute)


class CachedSyncFunction(_Cached[P, R]):
    """A plain function whose results are cached; call it as before. Made by `cached`.

    In a thread beside the cache's event loop, such as that of a plain route, it does all that an async function does.
    In the loop's own thread, and where no loop runs, it cannot wait: there it has only the memory, and two threads may
    compute the same.
    """

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The result, from the cache or computed."""
        plan = self._planned()
        key = self._locate(plan, args, kwargs)
        entry = plan.entries.get(key)
        if (
            entry is not None
            and plan.clock() < entry.refresh_at
            and entry.codec is plan.codec
            and (not entry.tags or entry.is_alive())
        ):
            plan.stats.hits += 1
            if entry.frequency < MAX_FREQUENCY:
                entry.frequency += 1
            return cast(R, entry.get() if entry.encoded else entry.value)
        caller = _caller(plan, lambda: self.__wrapped__(*args, **kwargs))
        if caller is not None:
            call = self._asked(plan, key, args, kwargs, caller)
            return cast(R, caller.wait(plan.loader.serve(call)))
        return self._alone(plan, key, args, kwargs)

    def refresh(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The result, computed anew; for every process where that can be waited for."""
        plan = self._planned()
        key = self._locate(plan, args, kwargs)
        caller = _caller(plan, lambda: self.__wrapped__(*args, **kwargs))
        if caller is not None:
            return cast(R, caller.wait(plan.loader.refresh(self._asked(plan, key, args, kwargs, caller))))
        self.invalidate(*args, **kwargs)
        return self._alone(plan, key, args, kwargs)

    def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Forget the result of these arguments; in the loop's own thread the other processes hear of it a bit later."""
        plan = self._planned()
        names = [self._locate(plan, args, kwargs)]
        caller = _caller(plan, lambda: None)
        if caller is not None:
            caller.wait(plan.cache.invalidate(names))
            return
        plan.cache.memory.forget(names)
        if plan.loader.is_here():
            plan.loader.spawn(plan.cache.invalidate(names))

    @overload
    def __get__(self, instance: None, owner: type) -> CachedSyncFunction[P, R]: ...
    @overload
    def __get__(self: CachedSyncFunction[Concatenate[S, Q], T], instance: S, owner: type) -> Callable[Q, T]: ...
    def __get__(self, instance: Any, owner: type) -> Any:
        """As a method; `invalidate` and the like then take the instance as their first argument."""
        return self if instance is None else MethodType(self, instance)

    def _asked(self, plan: _Plan, key: str, args: tuple[Any, ...], kwargs: dict[str, Any], caller: _Caller) -> Call:
        async def recompute() -> Any:
            return await asyncio.to_thread(self.__wrapped__, *args, **kwargs)

        return self._call(plan, key, args, kwargs, caller.compute, recompute)
