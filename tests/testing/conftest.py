"""The plugin's fixtures, as they are where svc-infra is installed."""

from svc_infra.testing.plugin import fake_clock, job_tester

__all__ = ["fake_clock", "job_tester"]
