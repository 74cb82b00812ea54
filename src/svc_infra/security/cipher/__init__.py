"""Secrets at rest that must be readable again.

- `cipher`: sealed under a ring of keys, and columns that seal themselves
- `rotation`: sealed anew with the newest key
"""

from svc_infra.security.cipher.cipher import EncryptedField, FieldCipher
from svc_infra.security.cipher.rotation import SealedColumns

__all__ = ["EncryptedField", "FieldCipher", "SealedColumns"]
