"""The test kit: what the library's own tests use, for the tests of applications too.

- `clock`: `FakeClock`, time that moves when it is told to
- `policies`: `check_matrix`, who may call what as a table, and `routes_without_policy`
- `receiver`: `WebhookReceiver`, a real HTTP server that keeps what it was sent, and can be switched off
"""

from svc_infra.testing.clock import FakeClock
from svc_infra.testing.policies import Matrix, check_matrix, routes_without_policy
from svc_infra.testing.receiver import Received, WebhookReceiver

__all__ = ["FakeClock", "Matrix", "Received", "WebhookReceiver", "check_matrix", "routes_without_policy"]
