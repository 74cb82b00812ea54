"""Offers to link an identity to the account that has its address: taken by who has the browser and the mailbox both.

The link that is mailed carries the identity, sealed, and which login under way has proven it. It is good only in the
browser that has the cookie of that login, and once: who lures an owner into opening somebody else's link has no such
cookie there, and who has only proven an identity has no mailbox.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from uuid import UUID

from svc_infra.errors import BadRequestError
from svc_infra.security.cookies import Cookies
from svc_infra.security.oauth.flow import Flows, hashed_state

MAX_OFFER_CHARACTERS = 4096

_NAME = "oauth-offer"
_PAGE = "/link-account"


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """An identity that was proven, and the account that it may be linked to.

    Attributes:
        provider, issuer, subject: Who the identity is.
        email: The address of both.
        account_id: The account.
        state_hash: Of the login that has proven the identity.
    """

    provider: str
    issuer: str
    subject: str
    email: str
    account_id: str
    state_hash: str

    @property
    def user_id(self) -> UUID:
        """The account's id."""
        return UUID(self.account_id)


class LinkOffers:
    """The offers of one app. Nothing is stored of them until one is taken.

    Args:
        cookies: What seals them.
        flows: The logins under way.
        ttl_seconds: How long one can be taken.
    """

    def __init__(self, cookies: Cookies, flows: Flows, *, ttl_seconds: float) -> None:
        self._cookies = cookies
        self._flows = flows
        self._ttl_seconds = ttl_seconds

    def link(self, offer: Offer) -> str:
        """The path of the page that an offer's link leads to, with the offer behind the `#`."""
        return f"{_PAGE}#{self._cookies.seal(_NAME, json.dumps(asdict(offer)), max_age_seconds=self._ttl_seconds)}"

    async def take(self, token: str, cookies: Mapping[str, str]) -> Offer:
        """What a link offers, once, in the browser that began the login.

        Args:
            token: What the link carries.
            cookies: Those of the browser.

        Raises:
            BadRequestError: It is none of ours, too old, was used before, or is for another browser.
        """
        text = self._cookies.open(_NAME, token)
        offer = Offer(**json.loads(text)) if text is not None else None
        if offer is None or not self._flows.began_in(offer.state_hash, cookies):
            raise BadRequestError("Open this link soon, in the browser that you began the login in: start it again.")
        if not await self._flows.spend(f"offer:{hashed_state(token)}"):
            raise BadRequestError("This link was used before.")
        return offer
