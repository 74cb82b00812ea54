"""Acting as a user: one login of an admin stands for somebody else, for a short time and a reason.

- `impersonations`: begun, verified with every request, ended; both are on record · `models`: the table
- `targets`: whom one can act as: accounts, or what the app's own getter finds
- `notice`: the header that tells a front end of it
- `http`: the two routes, and as whom a request acts
"""

from svc_infra.admin.impersonation.impersonations import Impersonations, Terms
from svc_infra.admin.impersonation.models import Impersonation
from svc_infra.admin.impersonation.notice import ImpersonationNotice
from svc_infra.admin.impersonation.targets import Target, Targets, UserGetter

__all__ = ["Impersonation", "ImpersonationNotice", "Impersonations", "Target", "Targets", "Terms", "UserGetter"]
