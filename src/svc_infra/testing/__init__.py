"""The test kit: what the library's own tests use, for the tests of applications too.

- `clock`: `FakeClock`, time that moves when it is told to
- `receiver`: `WebhookReceiver`, a real HTTP server that keeps what it was sent, and can be switched off
"""

from svc_infra.testing.clock import FakeClock
from svc_infra.testing.receiver import Received, WebhookReceiver

__all__ = ["FakeClock", "Received", "WebhookReceiver"]
