"""Second factors, and passkeys instead of passwords.

- `totp`: authenticator apps · `passkeys`: passkeys and security keys · `recovery`: codes for when all is lost
- `email_codes`: codes by mail, weak and off by default
- `gate`: who needs a second factor, and the step that asks for it · `login`: proving one, in that step and again later
- `enrolment`: how a factor comes to count · `factors`: which an account has, and how they go
- `challenges`: what is under way · `models`: the tables
- `http`: the `/auth/mfa` routes · `schemas`: what they take and give · `add`: `add_mfa`
"""

from svc_infra.security.mfa.factors import Factors
from svc_infra.security.mfa.gate import Requirement, required_for_members

__all__ = ["Factors", "Requirement", "required_for_members"]
