"""Which traces are kept."""

from __future__ import annotations

from random import Random

import pytest
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased

from svc_infra.obs.tracing.sampling import Sampler, SamplerName


@pytest.mark.parametrize(
    ("name", "ratio", "parent", "kept"),
    [
        ("always_on", 1.0, False, True),
        ("always_off", 1.0, True, False),
        ("parentbased_always_on", 1.0, None, True),
        ("parentbased_always_on", 1.0, False, False),
        ("parentbased_always_off", 1.0, True, True),
        ("parentbased_always_off", 1.0, None, False),
        ("parentbased_traceidratio", 0.0, True, True),
        ("parentbased_traceidratio", 0.0, None, False),
        ("parentbased_traceidratio", 1.0, None, True),
        ("traceidratio", 0.0, True, False),
        ("traceidratio", 1.0, False, True),
    ],
)
def test_samplers_decide_as_opentelemetry_does(
    name: SamplerName, ratio: float, parent: bool | None, kept: bool
) -> None:
    assert Sampler(name, ratio).keeps("f" * 32, parent) is kept


def test_a_ratio_keeps_the_traces_that_other_services_keep_at_it() -> None:
    random = Random(3)
    theirs, ours = TraceIdRatioBased(0.1), Sampler("traceidratio", 0.1)
    ids = [random.getrandbits(128) for _ in range(5000)]
    kept = [ours.keeps(f"{one:032x}", None) for one in ids]
    assert kept == [theirs.should_sample(None, one, "").decision.is_sampled() for one in ids]
    assert 400 < sum(kept) < 600
