"""The test kit: what the library's own tests use, for the tests of applications too.

- `clock`: `FakeClock`, time that moves when it is told to
- `jobs`: `JobTester`, an app's jobs under the test's control · `job_queue`: the queue that it uses
- `policies`: `check_matrix`, who may call what as a table, and `routes_without_policy`
- `receiver`: `WebhookReceiver`, a real HTTP server that keeps what it was sent, and can be switched off
- `plugin`: fixtures for pytest
"""

from svc_infra.testing.clock import FakeClock
from svc_infra.testing.job_queue import TestJobQueue
from svc_infra.testing.jobs import JobTester
from svc_infra.testing.policies import Matrix, check_matrix, routes_without_policy
from svc_infra.testing.receiver import Received, WebhookReceiver

__all__ = [
    "FakeClock", "JobTester", "Matrix", "Received", "TestJobQueue", "WebhookReceiver", "check_matrix",
    "routes_without_policy",
]  # fmt: skip
