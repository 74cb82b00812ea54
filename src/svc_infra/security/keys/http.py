"""The `/auth/api-keys` routes. Keys are managed by users who are logged in: no key makes another one."""

from base64 import b64encode
from datetime import datetime
from hashlib import sha256
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, FastAPI, Header, Request
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from svc_infra.db.http import DbSession, ReadSession
from svc_infra.security.access import declares
from svc_infra.security.access.http import RequireFreshAuth
from svc_infra.security.http import LoggedIn, PrivateRoute, shared
from svc_infra.security.keys.form import MAX_KEY_CHARACTERS
from svc_infra.security.keys.keys import (
    DEFAULT_OVERLAP_SECONDS,
    DEFAULT_TTL_SECONDS,
    MAX_OVERLAP_SECONDS,
    MAX_RATE_CHARACTERS,
    MAX_SCOPES,
    MAX_TTL_SECONDS,
    ApiKeys,
    KeyRequest,
    NewKey,
    keys_of_services,
    keys_of_user,
)
from svc_infra.security.keys.leaks import LeakedKeys
from svc_infra.security.keys.scanning import GithubReports

_SCHEME = "ApiKey"
_FRESH = [RequireFreshAuth()]
"""A stolen access token is good for minutes, and what it could make for years."""

Scope = Annotated[str, Field(min_length=1, max_length=100)]
KeyRate = Annotated[
    str | None, Field(max_length=MAX_RATE_CHARACTERS, description="How often it may be used, such as 100/minute.")
]


class Body(BaseModel):
    """What a client sends: nothing but the fields named."""

    model_config = ConfigDict(extra="forbid")


class KeyIn(Body):
    """A key to be made."""

    name: Annotated[str, Field(min_length=1, max_length=100)]
    scopes: Annotated[list[Scope], Field(max_length=MAX_SCOPES)] = []
    expires_in_seconds: Annotated[float, Field(ge=60, le=MAX_TTL_SECONDS)] = DEFAULT_TTL_SECONDS
    organization_id: UUID | None = Field(None, description="The only organization that the key is good for.")
    service: bool = Field(False, description="Whether the key is that of a service of the organization.")
    rate: KeyRate = None


class RotateIn(Body):
    """How long the old key and the new one are both good, and how often the new one may be used."""

    overlap_seconds: Annotated[float, Field(ge=0, le=MAX_OVERLAP_SECONDS)] = DEFAULT_OVERLAP_SECONDS
    rate: KeyRate = None


class LeakedIn(Body):
    """A key that was found where it should not be."""

    key: Annotated[SecretStr, Field(min_length=1, max_length=MAX_KEY_CHARACTERS)]


class KeyOut(BaseModel):
    """A key as who manages it sees it."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID
    name: str
    hint: str = Field(description="Its last characters.")
    scopes: list[str]
    rate: str | None
    user_id: UUID | None
    organization_id: UUID | None
    created_at: datetime
    expires_at: datetime
    replaced_at: datetime | None
    last_used_at: datetime | None


class NewKeyOut(KeyOut):
    """A key just made, which is shown only now."""

    key: str


class Judged(BaseModel):
    """What became of something that GitHub has found."""

    token_hash: str = Field(description="SHA-256 of it, in base64.")
    token_type: str
    label: Literal["true_positive", "false_positive"]


@declares("possession of the key")
async def _possession() -> None: ...


@declares("signature of GitHub")
async def _signature() -> None: ...


def api_keys_router(prefix: str, *, github_secret_scanning: bool = False) -> APIRouter:
    """The routes of keys.

    Args:
        prefix: Where they are.
        github_secret_scanning: Whether one of them takes the reports of GitHub.
    """
    router = APIRouter(prefix=prefix, tags=["auth"], route_class=PrivateRoute)
    _add_management(router)
    _add_leaks(router)
    if github_secret_scanning:
        _add_reports(router)
    return router


def _add_management(router: APIRouter) -> None:
    @router.post("", status_code=201, responses={404: {}}, dependencies=_FRESH)
    async def create_key(body: KeyIn, request: Request, user: LoggedIn, session: DbSession) -> NewKeyOut:
        """Make a key. Its scopes are among what its maker may do; the login must be a fresh one."""
        wanted = KeyRequest(
            name=body.name,
            scopes=body.scopes,
            ttl_seconds=body.expires_in_seconds,
            organization_id=body.organization_id,
            service=body.service,
            rate=body.rate,
        )
        keys = shared(request, ApiKeys)
        keys.check_rate(body.rate)
        return _shown(await keys.create(session, user, wanted))

    @router.get("", responses={404: {}})
    async def list_keys(
        request: Request, user: LoggedIn, session: ReadSession, organization_id: UUID | None = None
    ) -> list[KeyOut]:
        """The caller's keys that are alive; or those of an organization's services."""
        keys = shared(request, ApiKeys)
        owner = keys_of_user(user.id)
        if organization_id is not None:
            await keys.require_manager(session, user, organization_id)
            owner = keys_of_services(organization_id)
        return [KeyOut.model_validate(row) for row in await keys.list(session, owner)]

    @router.post("/{key_id:uuid}/rotate", status_code=201, dependencies=_FRESH)
    async def rotate_key(
        key_id: UUID, request: Request, user: LoggedIn, session: DbSession, body: RotateIn | None = None
    ) -> NewKeyOut:
        """Put a new key in the place of one, which stays good for a while; the login must be a fresh one."""
        keys, wanted = shared(request, ApiKeys), body or RotateIn()
        keys.check_rate(wanted.rate)
        row = await keys.managed(session, user, key_id)
        made = await keys.rotate(session, user, row, overlap_seconds=wanted.overlap_seconds, rate=wanted.rate)
        return _shown(made)

    @router.delete("/{key_id:uuid}", status_code=204)
    async def revoke_key(key_id: UUID, request: Request, user: LoggedIn, session: DbSession) -> None:
        """End a key."""
        keys = shared(request, ApiKeys)
        await keys.revoke(session, await keys.managed(session, user, key_id), reason="revoked")


def _add_leaks(router: APIRouter) -> None:
    @router.post("/leaked", status_code=204, dependencies=[Depends(_possession)])
    async def report_leaked(body: LeakedIn, request: Request) -> None:
        """End a key that was found where it should not be. The answer is the same for one that is none."""
        await shared(request, LeakedKeys).report(body.key.get_secret_value())


def _add_reports(router: APIRouter) -> None:
    @router.post("/leaked/github", dependencies=[Depends(_signature)])
    async def report_from_github(
        request: Request,
        github_public_key_identifier: Annotated[str, Header()] = "",
        github_public_key_signature: Annotated[str, Header()] = "",
    ) -> list[Judged]:
        """End the keys that GitHub has found in public code, as its secret scanning reports them."""
        reports, leaks = shared(request, GithubReports), shared(request, LeakedKeys)
        found = await reports.read(
            await request.body(), key_id=github_public_key_identifier, signature=github_public_key_signature
        )
        return [
            Judged(
                token_hash=b64encode(sha256(match.token.encode("utf-8", "surrogatepass")).digest()).decode(),
                token_type=match.kind,
                label="true_positive" if await leaks.report(match.token, found_at=match.url) else "false_positive",
            )
            for match in found
        ]


def _shown(made: NewKey) -> NewKeyOut:
    return NewKeyOut(**KeyOut.model_validate(made.row).model_dump(), key=made.key)


def document_keys(app: FastAPI) -> None:
    """Say in the app's OpenAPI document that a key opens what an access token does."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        schema = generate()
        schemes = schema.get("components", {}).get("securitySchemes", {})
        if "Bearer" in schemes and _SCHEME not in schemes:
            schemes[_SCHEME] = {"type": "apiKey", "in": "header", "name": "X-API-Key"}
            for operations in schema["paths"].values():
                for operation in operations.values():
                    if isinstance(operation, dict) and {"Bearer": []} in operation.get("security", ()):
                        operation["security"].append({_SCHEME: []})
        return schema

    app.openapi = openapi  # type: ignore[method-assign]
