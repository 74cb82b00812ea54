"""Things with an id: what is read of one is cached, and what changes it forgets exactly that one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.cache.cache import Cache
from svc_infra.cache.functions import CachedDecorator, cached
from svc_infra.cache.keys import Arguments, Template
from svc_infra.cache.policy import Duration
from svc_infra.errors import ConfigurationError
from svc_infra.wiring import current_wiring

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Resource:
    """A kind of thing, such as a user; made by `resource`.

    Attributes:
        name: Its tag is `{name}:{id}`.
        id_field: The parameter that holds the id, in every function that is decorated.
    """

    name: str
    id_field: str

    def cache_read(self, ttl: Duration | None = None, *, tags: Iterable[str] = (), **options: Any) -> CachedDecorator:
        """Cache what this function reads about one of them; the arguments are those of `cached`."""
        return cached(ttl, tags=[self._tag, *tags], **options)

    def cache_write(
        self, *, tags: Iterable[str] = (), cache: Cache | None = None
    ) -> Callable[[Callable[P, Coroutine[Any, Any, R]]], Callable[P, Coroutine[Any, Any, R]]]:
        """Forget everything about the one that this async function changes.

        A function that takes a session changes it when the session's transaction is committed. Any other has changed
        it when it returns, and may have when it raises.

        Args:
            tags: More tags to invalidate, as templates.
            cache: Instead of the app's.

        Raises:
            ConfigurationError: The function is not async, or does not take the id.
        """

        def decorate(function: Callable[P, Coroutine[Any, Any, R]]) -> Callable[P, Coroutine[Any, Any, R]]:
            if not inspect.iscoroutinefunction(function):
                raise ConfigurationError(f"{function.__qualname__} is not async: call invalidate_tags in it instead.")
            arguments = Arguments(function)
            templates = [Template(tag, arguments) for tag in (self._tag, *tags)]

            @wraps(function)
            async def changing(*args: P.args, **kwargs: P.kwargs) -> R:
                named = arguments.named(args, kwargs)
                changed = [template.fill(named, quoted=False) for template in templates]
                session = next((value for value in named.values() if isinstance(value, AsyncSession)), None)
                if session is not None:
                    await invalidate_tags(*changed, session=session, cache=cache)
                    return await function(*args, **kwargs)
                try:
                    return await function(*args, **kwargs)
                finally:
                    await invalidate_tags(*changed, cache=cache)

            return changing

        return decorate

    @property
    def _tag(self) -> str:
        return f"{self.name}:{{{self.id_field}}}"


def resource(name: str, *, id_field: str = "id") -> Resource:
    """A kind of thing: `user = resource("user", id_field="user_id")`, then `@user.cache_read(300)`.

    Args:
        name: What it is called.
        id_field: The parameter that holds the id.

    Raises:
        ConfigurationError: The name or the parameter is none.
    """
    if not name or not id_field.isidentifier() or {"{", "}"} & set(name):
        raise ConfigurationError(f"{name!r} with the id {id_field!r} is no resource: use two plain names.")
    return Resource(name, id_field)


async def invalidate_tags(*tags: str, session: Any = None, cache: Cache | None = None) -> None:
    """Forget every value that has one of these tags; see `Cache.invalidate_tags`.

    Args:
        *tags: The tags.
        session: Do so once its transaction is committed.
        cache: Instead of the app's.

    Raises:
        ConfigurationError: There is no app here and no cache was given.
    """
    if cache is None:
        wiring = current_wiring()
        if wiring is None:
            raise ConfigurationError("invalidate_tags is called outside of an app: give it cache=.")
        cache = wiring.get(Cache)
    await cache.invalidate_tags(*tags, session=session)
