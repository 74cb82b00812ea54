"""What an app has been given: its settings, the objects its rooms share, and what starts and stops with it.

Every `add_<room>(app, ...)` registers here and nowhere else, so rooms find each other without importing each other's
wiring, can be added in any order, and two apps in one process share nothing. Works on any Starlette or FastAPI app.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar, cast

from svc_infra.config import Settings
from svc_infra.errors import ConfigurationError

T = TypeVar("T")

_VERBS = {  # where it is not `add_<room>`
    "jobs.flows": "add_flows",
    "obs": "add_observability",
    "ops": "add_probes",
    "security": "add_auth_users",
    "security.access": "add_strict_routes",
    "security.audit": "add_audit",
    "security.keys": "add_api_keys",
    "security.mfa": "add_mfa",
    "security.oauth": "add_oauth",
    "security.organizations": "add_organizations",
}

_log = logging.getLogger(__name__)


class Phase(StrEnum):
    """Where an app is in its life; readiness is `READY` and nothing else."""

    NEW = "new"
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Part:
    """Something that lives as long as the app does.

    Attributes:
        name: The room's name; one part per name.
        run: Makes a context manager entered at start-up and left at shutdown, or None.
        check: Raises when the part cannot do its work now; asked by `/_ops/ready`. None when there is nothing to ask.
        after: Names of the parts that must start before this one and stop after it, where the app has them.
        uses_app: Starts after the app's own lifespan has, and stops before it; for what runs the app's code by itself.
    """

    name: str
    run: Callable[[], AbstractAsyncContextManager[object]] | None = None
    check: Callable[[], Awaitable[None]] | None = None
    after: tuple[str, ...] = ()
    uses_app: bool = False


class Wiring:
    """One app's settings, shared objects and parts."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.phase = Phase.NEW
        self.in_flight = 0
        self.parts: dict[str, Part] = {}
        self._objects: dict[type, object] = {}
        self._idle: asyncio.Event | None = None

    def provide(self, kind: type[T], instance: T) -> None:
        """Share an object under its type (a port's Protocol or a class)."""
        self._objects[kind] = instance

    def has(self, kind: type) -> bool:
        """Whether something is shared under this type."""
        return kind in self._objects

    def get(self, kind: type[T]) -> T:
        """The object shared under this type.

        Raises:
            ConfigurationError: Nothing is; the message names the room to add.
        """
        try:
            return cast(T, self._objects[kind])
        except KeyError:
            room, *inner = kind.__module__.removeprefix("svc_infra.").split(".")
            verb = _VERBS.get(".".join([room, *inner[:1]])) or _VERBS.get(room, f"add_{room}")
            raise ConfigurationError(f"This app has no {kind.__name__}: call {verb}(app) first.") from None

    def add(self, part: Part) -> None:
        """Register a part. A second part of the same name is ignored, so every `add_*` is idempotent.

        Raises:
            ConfigurationError: The app has already started.
        """
        if part.name in self.parts:
            return
        if self.phase not in (Phase.NEW, Phase.STOPPED):
            raise ConfigurationError(f"{part.name!r} was added after the app started: add it before.")
        self.parts[part.name] = part

    @contextmanager
    def active(self) -> Iterator[None]:
        """Make this the wiring that `current_wiring` finds in this block: the worker and scripts do."""
        token = activate(self)
        try:
            yield
        finally:
            deactivate(token)

    def request_started(self) -> None:
        """Count a request in; the edge calls it."""
        self.in_flight += 1

    def request_finished(self) -> None:
        """Count a request out; the edge calls it."""
        self.in_flight -= 1
        if self.in_flight == 0 and self._idle is not None:
            self._idle.set()

    @asynccontextmanager
    async def running(
        self, innermost: Callable[[], AbstractAsyncContextManager[T]] | None = None
    ) -> AsyncIterator[T | None]:
        """Start every part in order; at the end drain the requests, then stop the parts, last in first out.

        Args:
            innermost: Started after every part but those that use it and stopped before them, such as an app's own
                lifespan; what it yields is yielded here.
        """
        self.phase = Phase.STARTING
        try:
            async with AsyncExitStack() as stack:
                ordered = self._ordered()
                for part in ordered:
                    if part.run is not None and not part.uses_app:
                        await stack.enter_async_context(part.run())
                state = None if innermost is None else await stack.enter_async_context(innermost())
                for part in ordered:
                    if part.run is not None and part.uses_app:
                        await stack.enter_async_context(part.run())
                self.phase = Phase.READY
                try:
                    yield state
                finally:
                    self.phase = Phase.DRAINING
                    await self._drain()
        finally:
            self.phase = Phase.STOPPED

    async def _drain(self) -> None:
        if not self.in_flight:
            return
        self._idle = asyncio.Event()  # made here, because each run of the app may have an event loop of its own
        try:
            async with asyncio.timeout(self.settings.app.shutdown_grace_seconds):
                await self._idle.wait()
        except TimeoutError:
            _log.warning("shutdown.requests_abandoned", extra={"in_flight": self.in_flight})

    def _ordered(self) -> list[Part]:
        ordered: list[Part] = []
        visiting: list[str] = []

        def visit(part: Part) -> None:
            if part in ordered:
                return
            if part.name in visiting:
                raise ConfigurationError(f"Parts wait for each other: {' -> '.join([*visiting, part.name])}.")
            visiting.append(part.name)
            for name in part.after:
                if name in self.parts:
                    visit(self.parts[name])
            visiting.pop()
            ordered.append(part)

        for part in self.parts.values():
            visit(part)
        return ordered


_active: ContextVar[Wiring | None] = ContextVar("svc_infra_wiring", default=None)


activate: Callable[[Wiring], Token[Wiring | None]] = _active.set
"""The beginning of `Wiring.active`, for the edge, which has a block already; give the token to `deactivate`."""
deactivate: Callable[[Token[Wiring | None]], None] = _active.reset
"""The end of `Wiring.active`."""


def current_wiring() -> Wiring | None:
    """The wiring of the app whose request, job or script is running here; None outside of any."""
    return _active.get()


def wiring_of(app: Any, *, settings: Settings | None = None) -> Wiring:
    """The app's wiring, made on first use around the lifespan that the app already has.

    Args:
        app: A FastAPI or Starlette app, or a request's `app`.
        settings: Used on first use only; read from the environment when left out.
    """
    existing = _wiring_on(app)
    if existing is not None:
        return existing
    wiring = Wiring(settings if settings is not None else Settings())
    app.state.svc_infra = wiring
    inner = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(scope_app: Any) -> AsyncIterator[Any]:
        async with wiring.running(lambda: inner(scope_app)) as state:
            yield state

    app.router.lifespan_context = lifespan
    return wiring


def share_wiring(app: Any, mounted: Any) -> bool:
    """Let an app that is mounted in another use its wiring.

    Returns:
        Whether it does now; False when it has wiring of its own.
    """
    if _wiring_on(mounted) is not None:
        return False
    mounted.state.svc_infra = wiring_of(app)
    return True


def _wiring_on(app: Any) -> Wiring | None:
    wiring = getattr(app.state, "svc_infra", None)
    return wiring if isinstance(wiring, Wiring) else None
