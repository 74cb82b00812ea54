"""The `/users` paths that clients of an earlier generation know.

- `http`: each of them, and the `/auth` route that answers
"""

from svc_infra.security.aliases.http import aliases_router

__all__ = ["aliases_router"]
