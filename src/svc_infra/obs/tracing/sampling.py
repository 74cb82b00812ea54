"""Which traces are kept, decided before anything of them exists."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SamplerName = Literal[
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
]

_PARENT_BASED = "parentbased_"


@dataclass(frozen=True, slots=True)
class Sampler:
    """Decides by OpenTelemetry's rules, as its SDKs in every language do.

    Args:
        name: Of `OTEL_TRACES_SAMPLER`. The parent-based ones do as the caller does, who says so in `traceparent`, and
            decide about traces that begin here.
        ratio: Of the traces that a `traceidratio` keeps, from 0 to 1. The trace's id decides, so services that ask the
            same ratio keep the same traces.
    """

    name: SamplerName = "parentbased_always_on"
    ratio: float = 1.0

    def keeps(self, trace_id: str, parent: bool | None) -> bool:
        """Whether a trace is kept.

        Args:
            trace_id: Its id.
            parent: Whether the caller keeps it; None when it begins here.
        """
        if parent is not None and self.name.startswith(_PARENT_BASED):
            return parent
        rule = self.name.removeprefix(_PARENT_BASED)
        if rule == "traceidratio":
            return int(trace_id[16:], 16) < round(self.ratio * 2**64)
        return rule == "always_on"
