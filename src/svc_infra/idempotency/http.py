"""The room over HTTP: what a route declares, and the route class that keeps it."""

from asyncio import CancelledError
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from inspect import isawaitable, iscoroutinefunction, unwrap
from typing import Any, Literal

from fastapi import FastAPI, Request, Response, params
from fastapi.datastructures import DefaultPlaceholder
from fastapi.dependencies.models import Dependant
from fastapi.responses import FileResponse, StreamingResponse
from fastapi.routing import APIRoute, iter_route_contexts
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from svc_infra.db.http import session_of
from svc_infra.errors import (
    ConfigurationError,
    DeadlineExceededError,
    IdempotencyKeyRequiredError,
    SvcInfraError,
    UnauthorizedError,
    UnavailableError,
)
from svc_infra.idempotency.answer import REPLAY_HEADER, Answer
from svc_infra.idempotency.exchange import Exchange
from svc_infra.idempotency.key import KEY_HEADER, KEY_PATTERN, CallersKey, parse_key
from svc_infra.idempotency.store import IdempotencyStore
from svc_infra.middleware._scope import route_template
from svc_infra.obs import logger, metrics
from svc_infra.security.http import OptionalIdentity
from svc_infra.security.principal import Principal
from svc_infra.tenancy.context import TENANT_HEADER, Tenancy
from svc_infra.tenancy.http import resolve_tenant_id
from svc_infra.wiring import wiring_of

__all__ = ["Caller", "Idempotent", "IdempotentRoute"]

Caller = Callable[[Request], str | Awaitable[str | None] | None]
"""`request -> who sends it, or None for nobody known`; plain or async. It has to verify what it goes by."""

METHODS = frozenset({"DELETE", "PATCH", "POST", "PUT"})

_EXCHANGE = "svc_infra.idempotency"
_RESPONSES: dict[int | str, dict[str, Any]] = {
    400: {
        "description": f"The {KEY_HEADER} is missing (`idempotency_key_required`) or not well formed "
        "(`idempotency_key_malformed`), or the request cannot be understood."
    },
    409: {
        "description": f"Another request with this {KEY_HEADER} is being handled (`idempotency_key_in_use`): come back "
        "after Retry-After. Or there is a conflict.",
        "headers": {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer", "minimum": 1}}},
    },
    422: {
        "description": f"The {KEY_HEADER} was sent before with another request (`idempotency_key_reused`), or values "
        "are not acceptable."
    },
}
_USE_THE_ROUTE = "make its router with APIRouter(route_class=IdempotentRoute), or call add_idempotency before @app"


def Idempotent(  # noqa: N802 - reads like what the route is
    *,
    required: bool = True,
    wait_seconds: float = 0,
    headers: tuple[str, ...] = ("content-type",),
    caller: Caller | None = None,
    when_unavailable: Literal["refuse", "run"] = "refuse",
) -> params.Depends:
    """A dependency by which requests with the same `Idempotency-Key` have one effect and get one answer.

    The route must be an `IdempotentRoute`. As a parameter of the handler it gives the key, or None.

    Args:
        required: Refuse requests without a key (400).
        wait_seconds: How long a duplicate waits for the request that holds its key before it is refused (409).
        headers: The headers that, with method, path, query and body, make two requests the same.
        caller: Who sends the request; by default the principal, within its tenant. Keys of different callers never
            meet, and the key of a caller who is not known is refused (401): nothing that an anonymous request says
            proves that it comes from whom the answer was for.
        when_unavailable: What becomes of a request with a key while the store cannot be reached: 503, or, where the
            key is optional, the handler without a guard.

    Raises:
        ConfigurationError: A required key cannot be left unguarded.
    """
    if required and when_unavailable == "run":
        raise ConfigurationError("A required idempotency key cannot be left unguarded: drop when_unavailable='run'.")
    guard = _Guard(required, wait_seconds, headers, when_unavailable == "run")
    return params.Depends(_OfPrincipal(guard) if caller is None else _OfCaller(guard, caller))


class IdempotentRoute(APIRoute):
    """A route whose handler may be guarded by `Idempotent(...)`; any other handler runs as on a plain route.

    Raises:
        ConfigurationError: A guarded route streams its answer, or answers to other methods than DELETE, PATCH, POST
            and PUT.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        guards = list(_guards(self.dependant))
        self.is_guarded = bool(guards)
        if guards:
            _refuse_what_cannot_be_guarded(self, guards)
            self.responses = {**_RESPONSES, **self.responses}
            self.openapi_extra = _with_parameter(self.openapi_extra, required=guards[0].required)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, between the claim and the commit."""
        handle = super().get_route_handler()
        if not any(_guards(self.dependant)):
            return handle
        is_async = iscoroutinefunction(unwrap(self.endpoint))

        async def guarded(request: Request) -> Response:
            exchange: Exchange = request.scope[_EXCHANGE]
            if KEY_HEADER in request.headers:
                await request.body()  # FastAPI reads a form from the stream, and nothing would be left to compare
            try:
                response = await handle(request)
            except _Replay as replay:
                return _replayed(replay.answer)
            except (SvcInfraError, HTTPException):
                raise
            except Exception:
                exchange.leave_undecided()
                raise
            except CancelledError:
                if not is_async:  # its thread cannot be stopped
                    exchange.leave_running()
                raise
            await exchange.conclude(response, session_of(request))
            return response

        return guarded

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if not self.is_guarded:
            await super().handle(scope, receive, send)
            return
        settings = wiring_of(scope["app"]).settings.idempotency
        exchange = scope[_EXCHANGE] = Exchange(send, max_answer_bytes=settings.max_answer_bytes)
        try:
            await super().handle(scope, receive, exchange.send)
        finally:
            await exchange.close()


def use_route(app: FastAPI) -> None:
    """Make the routes that the app itself declares from now on guardable."""
    route_class = app.router.route_class
    if not issubclass(route_class, IdempotentRoute):
        app.router.route_class = type(IdempotentRoute.__name__, (IdempotentRoute, route_class), {})


def check_routes(app: FastAPI) -> None:
    """Check that every guarded handler is on a route that can guard it.

    Raises:
        ConfigurationError: One is not; the message names it.
    """
    for context in iter_route_contexts(app.routes):
        route = context.original_route
        if isinstance(route, APIRoute) and any(_guards(context.dependant)):
            if not isinstance(route, IdempotentRoute):
                raise ConfigurationError(f"{context.path} declares Idempotent() on a plain route: {_USE_THE_ROUTE}.")
            if not route.is_guarded:
                raise ConfigurationError(
                    f"{context.path} gets Idempotent() when it is included: declare it on the route."
                )


class _Replay(Exception):  # noqa: N818 - no error: the way past the handler
    def __init__(self, answer: Answer) -> None:
        self.answer = answer


class _Guard:
    """Claims the key of a request."""

    def __init__(self, required: bool, wait_seconds: float, headers: tuple[str, ...], may_run: bool) -> None:
        self.required = required
        self._wait_seconds = wait_seconds
        self._headers = headers
        self._may_run = may_run

    def key(self, request: Request, *, is_known: bool) -> str | None:
        """The key that the request sends."""
        sent = request.headers.getlist(KEY_HEADER)
        if (sent or self.required) and not is_known:
            raise UnauthorizedError(f"An {KEY_HEADER} needs a caller who is known: send a credential.")
        key = parse_key(sent)
        if key is None and self.required:
            raise IdempotencyKeyRequiredError
        return key

    async def claim(self, request: Request, key: str, caller: str) -> None:
        """Claim it, or leave with the answer that it already has."""
        exchange: Exchange | None = request.scope.get(_EXCHANGE)
        if exchange is None:
            raise ConfigurationError(f"{request.url.path} declares Idempotent() on a plain route: {_USE_THE_ROUTE}.")
        session = session_of(request)
        if session is not None and session.in_transaction():
            raise ConfigurationError(
                "The unit of work was used before the idempotency key was claimed: declare Idempotent() first."
            )
        scope = request.scope
        route = route_template(scope, scope.get("app_root_path", scope.get("root_path", "")))
        owned = CallersKey(caller=caller, method=request.method, route=route, key=key)
        sent = (", ".join(request.headers.getlist(name)).encode("latin-1") for name in self._headers)
        parts = (scope["path"].encode("utf-8", "surrogatepass"), scope["query_string"], *sent, await request.body())
        store = wiring_of(request.app).get(IdempotencyStore)
        try:
            answer = await exchange.begin(
                store, owned.digest(), owned.fingerprint(parts), wait_seconds=self._wait_seconds
            )
        except (UnavailableError, DeadlineExceededError) as error:
            if not self._may_run:
                raise
            metrics.increment("idempotency.requests", outcome="unguarded")
            logger.warning("idempotency.unguarded", exc_info=error)
            return
        if answer is not None:
            raise _Replay(answer)


class _OfPrincipal:
    """The guard of a route whose callers are principals."""

    def __init__(self, guard: _Guard) -> None:
        self.guard = guard

    async def __call__(self, request: Request, principal: OptionalIdentity) -> str | None:
        key = self.guard.key(request, is_known=principal is not None)
        if key is not None and principal is not None:
            await self.guard.claim(request, key, await _named(request, principal))
        return key


class _OfCaller:
    """The guard of a route that knows its callers by other means."""

    def __init__(self, guard: _Guard, caller: Caller) -> None:
        self.guard = guard
        self._caller = caller

    async def __call__(self, request: Request) -> str | None:
        caller = self._caller(request)
        name = await caller if isawaitable(caller) else caller
        key = self.guard.key(request, is_known=bool(name))
        if key is not None:
            await self.guard.claim(request, key, f"caller:{name}")
        return key


async def _named(request: Request, principal: Principal) -> str:
    """The principal within its tenant, and who acts as it; all are of a form that has no spaces."""
    tenant_id = None
    if wiring_of(request.app).has(Tenancy):
        tenant_id = await resolve_tenant_id(request, principal, request.headers.get(TENANT_HEADER))
    actor = f" actor:{principal.actor.id}" if principal.actor is not None else ""
    return f"principal:{principal.id} tenant:{tenant_id or ''}{actor}"


def _guards(dependant: Dependant) -> Iterator[_Guard]:
    for dependency in dependant.dependencies:
        if isinstance(dependency.call, _OfPrincipal | _OfCaller):
            yield dependency.call.guard
        yield from _guards(dependency)


def _refuse_what_cannot_be_guarded(route: APIRoute, guards: list[_Guard]) -> None:
    if len(guards) > 1:
        raise ConfigurationError(f"{route.path} declares Idempotent() twice: once is enough.")
    if other := sorted(set(route.methods or ()) - METHODS):
        raise ConfigurationError(
            f"{route.path} answers {', '.join(other)}, which needs no idempotency key: take it off."
        )
    kind = route.response_class
    kind = kind.value if isinstance(kind, DefaultPlaceholder) else kind
    if route.is_sse_stream or route.is_json_stream or issubclass(kind, StreamingResponse | FileResponse):
        raise ConfigurationError(f"{route.path} streams its answer, which cannot be kept: take Idempotent() off.")


def _with_parameter(extra: dict[str, Any] | None, *, required: bool) -> dict[str, Any]:
    parameter = {
        "name": KEY_HEADER,
        "in": "header",
        "required": required,
        "description": "A value of the client's own, new for each request and the same when a request is sent again: "
        "then it has no second effect, and the first answer is given again.",
        "schema": {"type": "string", "pattern": KEY_PATTERN},
    }
    return {**(extra or {}), "parameters": [*(extra or {}).get("parameters", ()), parameter]}


def _replayed(answer: Answer) -> Response:
    response = Response(answer.body, answer.status)
    response.raw_headers = [*answer.headers, REPLAY_HEADER]
    return response
