"""When a failed delivery is tried again."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from svc_infra.config.settings import STANDARD_WEBHOOKS_SCHEDULE_SECONDS

MAX_RETRY_AFTER_SECONDS = 86_400.0  # a receiver may not push an attempt further away than this


@dataclass(frozen=True, slots=True)
class WebhookRetry:
    """Delays between the attempts of one delivery, growing exponentially, with jitter so that receivers recover.

    Attributes:
        schedule_seconds: The delay before the second attempt, the third, and so on; after the last one the delivery
            goes to the dead letter.
        jitter: Up to this share is added to each delay at random.
    """

    schedule_seconds: Sequence[float] = STANDARD_WEBHOOKS_SCHEDULE_SECONDS
    jitter: float = 0.2

    @property
    def max_attempts(self) -> int:
        """The first attempt and one for each delay."""
        return len(self.schedule_seconds) + 1

    def delay_seconds(self, attempts: int, *, retry_after_seconds: float | None = None) -> float | None:
        """How long to wait after this many attempts; None when none is left.

        Args:
            attempts: Attempts made so far, at least 1.
            retry_after_seconds: What the receiver asked for; honoured when it is longer, up to a day.
        """
        if attempts >= self.max_attempts:
            return None
        delay = self.schedule_seconds[attempts - 1]
        delay *= 1 + random.uniform(0, self.jitter)  # noqa: S311 - spreads load, protects nothing
        return max(delay, min(retry_after_seconds or 0.0, MAX_RETRY_AFTER_SECONDS))
