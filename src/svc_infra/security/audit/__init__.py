"""Who did what: an append-only trail that whoever can write to the database still cannot change unnoticed.

- `trail`: `record`, the port that every room calls; entries of the caller's transaction, one chain per tenant
- `chain`: what each entry is authenticated with · `reading`: whether all is as it was written; entries as values
- `models`: the tables · `add`: `add_audit`
"""

from svc_infra.security.audit.chain import AuditKeys
from svc_infra.security.audit.models import AuditEntry
from svc_infra.security.audit.reading import Verdict, entries, verify
from svc_infra.security.audit.trail import AuditTrail, record

__all__ = ["AuditEntry", "AuditKeys", "AuditTrail", "Verdict", "entries", "record", "verify"]
