"""Logging in with a provider, from the first redirect to the login."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from uuid import UUID

from svc_infra.errors import NotFoundError, SvcInfraError
from svc_infra.obs.metrics import metrics
from svc_infra.security.accounts.schemas import MAX_REFRESH_TOKEN_CHARACTERS
from svc_infra.security.cookies import REFRESH_COOKIE
from svc_infra.security.oauth.client import ProviderClient
from svc_infra.security.oauth.flow import Flow, Flows, checked_next
from svc_infra.security.oauth.link import OAuthIdentities
from svc_infra.security.sessions import Device, SecondStep, TokenPair
from svc_infra.types import Clock


@dataclass(frozen=True, slots=True)
class Begun:
    """A login under way.

    Attributes:
        url: Where the browser goes.
        flow: The login.
        cookie: The value of its cookie.
        superfluous: Names of cookies that the browser must forget.
    """

    url: str
    flow: Flow
    cookie: str = field(repr=False)
    superfluous: list[str]


@dataclass(frozen=True, slots=True)
class Ended:
    """A login, or a link, that has come about.

    Attributes:
        flow: What was under way.
        outcome: The login's tokens, or its second step; None after a link.
    """

    flow: Flow
    outcome: TokenPair | SecondStep | None


class OAuthLogin:
    """Logging in to one app with providers.

    Args:
        clients: By the names of the providers.
        flows: The logins under way.
        identities: Which accounts belong to whom.
        next_origins: Other origins to whose pages one may go afterwards.
        clock: Where the time comes from.
    """

    def __init__(
        self,
        clients: Mapping[str, ProviderClient],
        flows: Flows,
        identities: OAuthIdentities,
        *,
        next_origins: tuple[str, ...],
        clock: Clock,
    ) -> None:
        self._clients = clients
        self._flows = flows
        self._identities = identities
        self._next_origins = next_origins
        self._clock = clock

    @property
    def providers(self) -> list[str]:
        """The names of the providers, in the order in which the app named them."""
        return list(self._clients)

    async def begin(
        self,
        provider: str,
        *,
        redirect_uri: str,
        next_page: str,
        cookies: Mapping[str, str],
        links_to: tuple[UUID, UUID] | None = None,
    ) -> Begun:
        """Begin a login.

        Args:
            provider: Its name.
            redirect_uri: Where the browser comes back to.
            next_page: Where it goes then.
            cookies: Those of the browser.
            links_to: The account to link the identity to and the login that asks for it, instead of logging in.

        Raises:
            NotFoundError: There is no such provider.
            ValidationError: One may not go there afterwards.
            UpstreamError: The provider cannot be reached.
        """
        client = self._client(provider)
        user_id, session_id = map(str, links_to) if links_to is not None else ("", "")
        held_token = cookies.get(REFRESH_COOKIE, "")
        flow = Flow(
            provider=provider,
            redirect_uri=redirect_uri,
            next=checked_next(next_page, self._next_origins),
            began=int(self._clock.now().timestamp()),
            user_id=user_id,
            session_id=session_id,
            held_token=held_token if len(held_token) <= MAX_REFRESH_TOKEN_CHARACTERS else "",
        )
        url = await client.authorization_url(
            redirect_uri=redirect_uri, state=flow.state, nonce=flow.nonce, verifier=flow.verifier
        )
        return Begun(url, flow, self._flows.sealed(flow), self._flows.superfluous(cookies))

    async def end(
        self,
        *,
        state: str,
        code: str | None,
        error: str | None,
        issuer: str | None,
        cookies: Mapping[str, str],
        device: Device,
    ) -> Ended:
        """End a login with what the browser came back with.

        Args:
            state, code, error, issuer: The parameters of the answer (RFC 6749, 4.1.2; RFC 9207).
            cookies: Those of the browser.
            device: Where the login comes from.

        Raises:
            BadRequestError: This browser has begun no such login, or the provider has refused it.
            ForbiddenError, ConflictError, UnauthorizedError, ValidationError: As `OAuthIdentities` says.
            InvalidTokenError: What the provider says about the user is not to be believed.
            UpstreamError: The provider cannot be reached, or answers nonsense.
        """
        try:
            flow = await self._flows.end(state, cookies)
        except SvcInfraError:
            metrics.increment("oauth.unknown_state")  # not on record: anybody could fill the trail with these
            raise
        client, linked = self._client(flow.provider), flow.links_to
        try:
            good = await client.check_answer(code=code, error=error, issuer=issuer)
            proven = await client.identity(
                good, redirect_uri=flow.redirect_uri, nonce=flow.nonce, verifier=flow.verifier
            )
            if linked is not None:
                await self._identities.link(proven, *linked)
                return Ended(flow, None)
            here = replace(device, held_token=device.held_token or flow.held_token)
            return Ended(flow, await self._identities.log_in(proven, here, state=flow.state))
        except SvcInfraError as refusal:
            await self._identities.refused(flow.provider, refusal.detail, linked[0] if linked is not None else None)
            raise

    def _client(self, provider: str) -> ProviderClient:
        client = self._clients.get(provider)
        if client is None:
            raise NotFoundError("Provider", provider)
        return client
