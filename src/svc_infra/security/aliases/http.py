"""The routes of accounts once more, under `/users`."""

from typing import Annotated

from fastapi import APIRouter, Form, Request, Response
from fastapi.routing import APIRoute
from pydantic import SecretStr

from svc_infra.security.access.http import public
from svc_infra.security.accounts import MAX_EMAIL_CHARACTERS, Accounts
from svc_infra.security.accounts.http import SECOND_STEP, answered, device_of
from svc_infra.security.accounts.schemas import CookieTokens, Tokens
from svc_infra.security.http import PrivateRoute, shared
from svc_infra.security.passwords import MAX_PASSWORD_CHARACTERS

PREFIX = "/users"

_ALIASES = {  # the path here: the method and path of the route of accounts that answers
    ("POST", "/register"): ("POST", "/register"),
    ("POST", "/logout"): ("POST", "/logout"),
    ("POST", "/request-verify-token"): ("POST", "/verify/request"),
    ("POST", "/verify"): ("POST", "/verify"),
    ("POST", "/forgot-password"): ("POST", "/forgot-password"),
    ("POST", "/reset-password"): ("POST", "/reset-password"),
    ("GET", "/me"): ("GET", "/me"),
    ("PATCH", "/me"): ("PATCH", "/me"),
    ("PATCH", "/disable"): ("POST", "/disable"),
    ("DELETE", "/delete"): ("DELETE", "/me"),
    ("GET", "/sessions/me"): ("GET", "/sessions"),
    ("POST", "/sessions/{session_id:uuid}/revoke"): ("DELETE", "/sessions/{session_id:uuid}"),
}


def aliases_router(accounts: APIRouter) -> APIRouter:
    """The aliases; they are not part of the app's OpenAPI document, which names each operation once.

    Args:
        accounts: What `accounts_router` gave.
    """
    router = APIRouter(prefix=PREFIX, include_in_schema=False, route_class=PrivateRoute)
    routes = {
        (method, route.path.removeprefix(accounts.prefix)): route
        for route in accounts.routes
        if isinstance(route, APIRoute)
        for method in route.methods or ()
    }
    for (method, path), original in _ALIASES.items():
        route = routes[original]
        router.add_api_route(
            path,
            route.endpoint,
            methods=[method],
            status_code=route.status_code,
            response_model=route.response_model,
            dependencies=route.dependencies,
        )

    @router.post("/login", response_model=Tokens, responses=SECOND_STEP, dependencies=[public()])
    async def login(
        username: Annotated[str, Form(min_length=3, max_length=MAX_EMAIL_CHARACTERS)],
        password: Annotated[SecretStr, Form(min_length=1, max_length=MAX_PASSWORD_CHARACTERS)],
        request: Request,
        response: Response,
    ) -> Tokens | CookieTokens | Response:
        """Exchange the form of the OAuth 2 password grant for tokens; the address is the user name."""
        device = device_of(request)
        outcome = await shared(request, Accounts).login(
            email=username, password=password.get_secret_value(), device=device
        )
        return answered(outcome, request, response, device=device)

    return router
