"""Logging in with other providers: OAuth 2.0 and OpenID Connect, as RFC 9700 says.

- `providers`: Google, Microsoft, LinkedIn, GitHub, any issuer · `discovery`: what a provider says about itself
- `client`: sends browsers there and learns who came back · `id_token`: what is believed of that
- `flow`: logins under way, each bound to its browser · `link`: which accounts belong to whom · `offers`: links by mail
- `login`: all of it in order · `models`: the tables · `http`: the `/oauth` routes, `page` · `add`: `add_oauth`
"""

from svc_infra.security.oauth.client import ProviderTokens
from svc_infra.security.oauth.link import OAuthIdentities
from svc_infra.security.oauth.providers import OAuthProvider, github, google, linkedin, microsoft, oidc

__all__ = ["OAuthIdentities", "OAuthProvider", "ProviderTokens", "github", "google", "linkedin", "microsoft", "oidc"]
