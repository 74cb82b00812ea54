"""What the operators of a service do to its users, and as its users.

- `impersonation`: acting as a user: the cookie, the guardrails, what ends it
- `users`: searching accounts · `trail`: searching the audit trail · `rank`: nobody touches who may do more
- `http`: `admin_router`, the routes below `/admin` · `add`: `add_admin`
"""
