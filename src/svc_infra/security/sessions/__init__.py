"""Logins: who is logged in, from where, how that was proven, and for how long.

- `sessions`: opened, refreshed, proven again, listed, ended · `refresh`: tokens that are used once
- `second_step`: the port that asks for a second factor · `device`: where a login comes from, what it is given
- `live`: which of them are alive, remembered where every process hears of changes
"""

from svc_infra.security.sessions.device import Device, Ended, Renewed, TokenPair
from svc_infra.security.sessions.live import LiveSessions
from svc_infra.security.sessions.second_step import SecondFactors, SecondStep
from svc_infra.security.sessions.sessions import Sessions

__all__ = ["Device", "Ended", "LiveSessions", "Renewed", "SecondFactors", "SecondStep", "Sessions", "TokenPair"]
