"""A pytest plugin: fixtures for the tests of an application. It is on as soon as svc-infra is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from svc_infra.testing import FakeClock, JobTester


@pytest.fixture
def fake_clock() -> FakeClock:
    """Time that moves when it is told to."""
    from svc_infra.testing import FakeClock

    return FakeClock()


@pytest.fixture
def job_tester(fake_clock: FakeClock) -> type[JobTester]:
    """Makes a `JobTester` on the test's clock: `async with job_tester(app) as jobs:`."""
    from functools import partial

    from svc_infra.testing import JobTester

    return partial(JobTester, clock=fake_clock)  # type: ignore[return-value]
