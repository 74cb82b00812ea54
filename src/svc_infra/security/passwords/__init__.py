"""Passwords: which are accepted, and how they are kept.

- `policy`: length, common ones (`common.txt`) · `breached`: those known from a breach
- `hasher`: argon2id in a bounded pool
"""

from svc_infra.security.passwords.breached import BreachedPasswords
from svc_infra.security.passwords.hasher import PasswordHasher, Verification
from svc_infra.security.passwords.policy import (
    MAX_PASSWORD_BYTES,
    MAX_PASSWORD_CHARACTERS,
    MIN_PASSWORD_CHARACTERS,
    PasswordPolicy,
)

__all__ = [
    "MAX_PASSWORD_BYTES", "MAX_PASSWORD_CHARACTERS", "MIN_PASSWORD_CHARACTERS", "BreachedPasswords", "PasswordHasher",
    "PasswordPolicy", "Verification",
]  # fmt: skip
