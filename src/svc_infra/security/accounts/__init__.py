"""Accounts: register, log in, recover.

- `accounts`: who has one, logging in, what is done to a whole account
- `credentials`: passwords and addresses, and how they are changed · `email`: the one form of an address
- `proof`: the port that proves a login again by another factor
- `links`: what mailed links may do · `mailing`: the port through which mail is sent
- `http`: the `/auth` routes · `schemas`: what they take and give
"""

from svc_infra.security.accounts.accounts import Accounts, Desk
from svc_infra.security.accounts.credentials import Credentials
from svc_infra.security.accounts.email import MAX_EMAIL_CHARACTERS, normalized_email
from svc_infra.security.accounts.links import AccountLinks, LinkKind
from svc_infra.security.accounts.mailing import LoggedMail, MailQueue
from svc_infra.security.accounts.proof import FactorProof, ProvesFactors

__all__ = [
    "MAX_EMAIL_CHARACTERS", "AccountLinks", "Accounts", "Credentials", "Desk", "FactorProof", "LinkKind", "LoggedMail",
    "MailQueue", "ProvesFactors", "normalized_email",
]  # fmt: skip
