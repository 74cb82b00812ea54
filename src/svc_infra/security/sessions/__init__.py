"""Logins: who is logged in, from where, and for how long.

- `sessions`: opened, refreshed by tokens that are used once, listed, ended
- `live`: which of them are alive, remembered where every process hears of changes
"""

from svc_infra.security.sessions.live import LiveSessions
from svc_infra.security.sessions.sessions import Device, Ended, Sessions, TokenPair

__all__ = ["Device", "Ended", "LiveSessions", "Sessions", "TokenPair"]
