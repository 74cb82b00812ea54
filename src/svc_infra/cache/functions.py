"""Functions whose results are cached."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from functools import update_wrapper
from queue import Empty, SimpleQueue
from types import MethodType, SimpleNamespace
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, cast, get_type_hints, overload

from svc_infra.cache._memory import MAX_FREQUENCY, Entry
from svc_infra.cache.cache import Cache
from svc_infra.cache.codec import codec_of
from svc_infra.cache.keys import MAX_KEY_CHARACTERS, PLAIN, Arguments, Template, shortened
from svc_infra.cache.loading import Call, Compute
from svc_infra.cache.policy import DEFAULT_LEASE_SECONDS, Duration, Policy, policies
from svc_infra.errors import ConfigurationError, UnavailableError
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

_Given = tuple[tuple[Any, ...], dict[str, Any]]


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

    def hit(self, key: str) -> Entry | None:
        """The entry, if there is nothing to do about it; this waits for nothing and makes nothing."""
        entry = self.entries.get(key)
        if (
            entry is not None
            and self.clock() < entry.refresh_at
            and entry.codec is self.codec
            and (not entry.tags or entry.is_alive())
        ):
            self.stats.hits += 1
            if entry.frequency < MAX_FREQUENCY:
                entry.frequency += 1
            return entry
        return None


class _Cached(Generic[P, R]):
    """What cached functions have in common."""

    __wrapped__: Callable[..., Any]

    def __init__(
        self,
        function: Callable[..., Any],
        policy_of: Callable[[float], Policy],
        *,
        key: str | Callable[..., str] | None,
        tags: Tags,
        ignore: Iterable[str],
        by_tenant: bool,
        kind: Any,
        cache: Cache | None,
    ) -> None:
        update_wrapper(cast(Any, self), function)
        self._arguments = Arguments(function, ignore)
        self._arity = self._arguments.arity if key is None else -1
        self._key = Template(key, self._arguments) if isinstance(key, str) else key
        self._tags = tags if callable(tags) else [Template(tag, self._arguments) for tag in tags]
        self._by_tenant = by_tenant
        self._kind = kind
        self._policy_of = policy_of
        self._cache = cache
        self._bound: tuple[Wiring | None, _Plan] | None = None  # one value, so that threads of two apps never mix them

    @property
    def stats_name(self) -> str:
        """Under which name its uses are counted: module and function."""
        return self._arguments.name

    def key(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """The full name of these arguments' result, for the tenant in context."""
        return self._find(args, kwargs)[1]

    def tags(self, *args: P.args, **kwargs: P.kwargs) -> tuple[str, ...]:
        """The full names of the result's tags."""
        return self._tag_names(self._find(args, kwargs)[0], args, kwargs)

    def _find(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[_Plan, str]:
        """The plan for the cache that is used here, and the key; one function, as every hit pays for it."""
        wiring = current_wiring() if self._cache is None else None
        bound = self._bound
        plan = bound[1] if bound is not None and bound[0] is wiring else self._bind(wiring)
        tenant = current().tenant_id if self._by_tenant else ""
        if not kwargs and len(args) == self._arity and PLAIN.issuperset(map(type, args)):
            text = repr(args)
        elif self._key is None:
            text = self._arguments.text(args, kwargs)
        elif isinstance(self._key, Template):
            return plan, plan.cache.key_name(self._key.fill(self._arguments.named(args, kwargs), quoted=True), tenant)
        else:
            return plan, plan.cache.key_name(self._key(*args, **kwargs), tenant)
        key = f"{plan.prefix}@{tenant!r}{text}" if tenant else f"{plan.prefix}{text}"
        return plan, key if len(key) <= MAX_KEY_CHARACTERS else shortened(key)

    def _bind(self, wiring: Wiring | None) -> _Plan:
        """The plan for the cache of the app that runs here, or for the one that was given."""
        if self._cache is not None:
            cache = self._cache
        elif wiring is not None:
            cache = wiring.get(Cache)
        else:
            raise ConfigurationError(
                f"{self._arguments.name} is called outside of an app, so it has no cache: give @cached a cache=, or "
                "call it inside `with wiring.active()`."
            )
        policy = self._policy_of(cache.default_ttl_seconds)
        plan = _Plan(cache, self._arguments.name, self._returned(), policy)
        self._bound = (wiring, plan)
        return plan

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

    def _tag_names(self, plan: _Plan, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, ...]:
        if callable(self._tags):
            return tuple(plan.cache.tag_name(tag) for tag in self._tags(*args, **kwargs))
        named = self._arguments.named(args, kwargs)
        return tuple(plan.cache.tag_name(tag.fill(named, quoted=False)) for tag in self._tags)

    def _call(self, plan: _Plan, key: str, given: _Given, compute: Compute, recompute: Compute) -> Call:
        tags = self._tag_names(plan, *given) if self._tags else ()
        return Call(key, tags, plan.codec, plan.policy, plan.stats, compute, recompute)


class CachedFunction(_Cached[P, R]):
    """An async function whose results are cached; call it as before. Made by `cached`."""

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The result, from the cache or computed."""
        plan, key = self._find(args, kwargs)
        entry = plan.hit(key)
        if entry is not None:
            return cast(R, entry.get() if entry.encoded else entry.value)
        return cast(R, await plan.loader.serve(self._asked(plan, key, args, kwargs)))

    async def refresh(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The result, computed anew for every process."""
        plan, key = self._find(args, kwargs)
        return cast(R, await plan.loader.refresh(self._asked(plan, key, args, kwargs)))

    async def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Forget the result of these arguments in every process."""
        plan, key = self._find(args, kwargs)
        await plan.cache.invalidate([key])

    @overload
    def __get__(self, instance: None, owner: type) -> CachedFunction[P, R]: ...
    @overload
    def __get__(
        self: CachedFunction[Concatenate[S, Q], T], instance: S, owner: type
    ) -> Callable[Q, Coroutine[Any, Any, T]]: ...
    def __get__(self, instance: Any, owner: type) -> Any:
        """As a method; `invalidate` and the like still take the instance as their first argument."""
        return self if instance is None else MethodType(self, instance)

    def _asked(self, plan: _Plan, key: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        def compute() -> Awaitable[R]:
            return cast(Awaitable[R], self.__wrapped__(*args, **kwargs))

        return self._call(plan, key, (args, kwargs), compute, compute)


class CachedSyncFunction(_Cached[P, R]):
    """A plain function whose results are cached; call it as before. Made by `cached`.

    In a thread beside the cache's event loop, such as that of a plain route, it does all that an async one does. In the
    loop's own thread, and where none runs, it can wait for nobody: there it has only the memory.
    """

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The result, from the cache or computed."""
        plan, key = self._find(args, kwargs)
        entry = plan.hit(key)
        if entry is not None:
            return cast(R, entry.get() if entry.encoded else entry.value)
        call, caller = self._asked(plan, key, args, kwargs)
        if caller is not None:
            return cast(R, caller.wait(plan.loader.serve(call)))
        return cast(R, plan.loader.serve_alone(call, lambda: self.__wrapped__(*args, **kwargs)))

    def refresh(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The result, computed anew; for every process where that can be waited for."""
        plan, key = self._find(args, kwargs)
        call, caller = self._asked(plan, key, args, kwargs)
        if caller is not None:
            return cast(R, caller.wait(plan.loader.refresh(call)))
        self.invalidate(*args, **kwargs)
        return cast(R, plan.loader.serve_alone(call, lambda: self.__wrapped__(*args, **kwargs)))

    def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Forget the result of these arguments; in the loop's own thread the other processes hear of it a bit later."""
        plan, key = self._find(args, kwargs)
        caller = _caller_of(plan, lambda: None)
        if caller is not None:
            caller.wait(plan.cache.invalidate([key]))
            return
        plan.cache.memory.forget([key])
        if plan.cache.levels.is_here():
            plan.cache.levels.spawn(plan.cache.invalidate([key]))

    @overload
    def __get__(self, instance: None, owner: type) -> CachedSyncFunction[P, R]: ...
    @overload
    def __get__(self: CachedSyncFunction[Concatenate[S, Q], T], instance: S, owner: type) -> Callable[Q, T]: ...
    def __get__(self, instance: Any, owner: type) -> Any:
        """As a method; `invalidate` and the like still take the instance as their first argument."""
        return self if instance is None else MethodType(self, instance)

    def _asked(
        self, plan: _Plan, key: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Call, _Caller | None]:
        async def recompute() -> Any:
            return await asyncio.to_thread(self.__wrapped__, *args, **kwargs)

        caller = _caller_of(plan, lambda: self.__wrapped__(*args, **kwargs))
        compute = recompute if caller is None else caller.compute
        return self._call(plan, key, (args, kwargs), compute, recompute), caller


class _Caller:
    """A thread that waits for a coroutine in the event loop, and meanwhile runs its function when that is asked of it.

    The function runs in the caller's own thread, so no pool of threads can run dry, however deep such calls nest.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, function: Callable[[], Any]) -> None:
        self._loop = loop
        self._function = function
        self._asked: SimpleQueue[asyncio.Future[tuple[Any, BaseException | None]] | None] = SimpleQueue()

    async def compute(self) -> Any:
        """Run in the loop: have the thread call its function."""
        answer: asyncio.Future[tuple[Any, BaseException | None]] = self._loop.create_future()
        self._asked.put(answer)
        value, error = await answer
        if error is not None:
            raise error
        return value

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Run in the thread: what comes out of the coroutine."""
        outcome = asyncio.run_coroutine_threadsafe(work, self._loop)
        outcome.add_done_callback(lambda _: self._asked.put(None))
        while True:
            try:
                answer = self._asked.get(timeout=LOOP_CHECK_SECONDS)
            except Empty:
                if not self._loop.is_running():
                    raise UnavailableError("The event loop has stopped.") from None
                continue
            if answer is None:
                return outcome.result()
            value, error = None, None
            try:
                value = self._function()
            except BaseException as raised:  # noqa: BLE001 - it is raised again where it was asked for
                error = raised
            self._loop.call_soon_threadsafe(_answer, answer, (value, error))


def _answer(answer: asyncio.Future[Any], outcome: tuple[Any, BaseException | None]) -> None:
    if not answer.done():
        answer.set_result(outcome)


def _caller_of(plan: _Plan, function: Callable[[], Any]) -> _Caller | None:
    """A caller in the cache's loop; None when there is none to wait for, or it is the one that would wait."""
    loop = plan.cache.levels.loop
    if loop is None or not loop.is_running():
        return None
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return _Caller(loop, function)
    return None


class CachedDecorator(Protocol):
    """What `cached` gives: an async function becomes a `CachedFunction`, a plain one a `CachedSyncFunction`."""

    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> CachedFunction[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> CachedSyncFunction[P, R]: ...


def cached(
    ttl: Duration | None = None,
    *,
    key: str | Callable[..., str] | None = None,
    tags: Tags = (),
    ignore: Iterable[str] = (),
    negative_ttl: Duration | None = None,
    stale_while_revalidate: Duration = 0.0,
    stale_if_error: Duration = 0.0,
    jitter: float = 0.1,
    early: float = 1.0,
    by_tenant: bool = True,
    share: bool = False,
    kind: Any = None,
    lease_seconds: float = DEFAULT_LEASE_SECONDS,
    cache: Cache | None = None,
) -> CachedDecorator:
    """Cache the results of an async or plain function: `@cached(ttl=300)`.

    Callers who want the same at the same time wait for one computation, also across processes. Results are kept by the
    app's cache (`add_cache`) and stored by type: what the function says that it returns. A caller may change what it
    gets without changing it for others. An exception is given to everybody who waits, and not kept.

    Args:
        ttl: How long a result is fresh, in seconds or a timedelta; `CACHE_DEFAULT_TTL_SECONDS` when left out.
        key: Instead of the function's name and all arguments: a template such as `user:{user_id}`, or a function of the
            same arguments. It is a key as `Cache.get` and `Cache.delete` know it.
        tags: Templates such as `user:{user_id}`, or a function of the same arguments; see `Cache.invalidate_tags`.
        ignore: Arguments that do not change the result, such as a session.
        negative_ttl: The same as `ttl` for the result None; 0 does not keep it.
        stale_while_revalidate: How long after its time a result is still given out while a new one is computed in the
            background (RFC 5861), in seconds or a timedelta. The function must then work after the request has ended.
        stale_if_error: How long after its time a result is given out when the function raises.
        jitter: The part of the time to live that is taken off at random, from 0 to 1.
        early: How eagerly a result that takes long is renewed in the background before it ends; 0 never does.
        by_tenant: Whether each tenant has results of their own.
        share: Hand the same object to all callers, who promise not to change it. What cannot be changed always is.
        kind: What the function returns, where its annotation does not say it.
        lease_seconds: How long other processes wait for one that dies while it computes.
        cache: Instead of the app's.

    Raises:
        ConfigurationError: A number or a template is wrong. At the first call: there is no cache, or what the function
            returns cannot be stored.
    """
    policy_of = policies(ttl, negative_ttl, stale_while_revalidate, stale_if_error, jitter, early, share, lease_seconds)

    def decorate(function: Callable[..., Any]) -> Any:
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise ConfigurationError(f"{function.__qualname__} is a generator: only what returns once can be cached.")
        made = CachedFunction if inspect.iscoroutinefunction(function) else CachedSyncFunction
        return made(function, policy_of, key=key, tags=tags, ignore=ignore, by_tenant=by_tenant, kind=kind, cache=cache)

    return cast(CachedDecorator, decorate)
