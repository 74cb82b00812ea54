from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.obs.log_capture import kept_logging


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    with kept_logging():
        yield
