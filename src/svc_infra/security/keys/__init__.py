"""API keys: credentials for programs, limited to scopes, of a user or of a service of an organization.

- `form`: what a key looks like · `keys`: made, verified, rotated, revoked
- `live`: which of them are alive, remembered like logins · `uses`: when they were used, written behind the request
- `leaks`: leaked keys ended, owners told · `scanning`: what GitHub reports of them
- `models`: the table · `http`: the `/auth/api-keys` routes · `add`: `add_api_keys`
"""

from svc_infra.security.keys.form import KeyForm, is_key
from svc_infra.security.keys.keys import ApiKeys, KeyRequest, NewKey
from svc_infra.security.keys.live import LiveKeys
from svc_infra.security.keys.models import ApiKey
from svc_infra.security.keys.uses import KeyUses

__all__ = ["ApiKey", "ApiKeys", "KeyForm", "KeyRequest", "KeyUses", "LiveKeys", "NewKey", "is_key"]
