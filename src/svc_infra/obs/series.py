"""What metrics are, how the numbers of several workers become one, and how they are told to Prometheus."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Literal, NamedTuple

import orjson
from prometheus_client.core import CounterMetricFamily, Exemplar, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.utils import floatToGoString

from svc_infra.obs.cells import Numbers

MAX_SERIES = 1000
"""Most series of one metric; further label values become "other"."""
OTHER = "other"
PID = "pid"
"""The label that tells workers apart in what cannot be added up."""

EXEMPLAR_NUMBERS = 5
"""Of each bucket: the time, the value, and the trace id in three parts of 48 bits, which a double holds exactly."""
_PART_BITS = 48

Kind = Literal["counter", "gauge", "sum", "histogram", "exemplars", "sample"]
"""`sum` is a gauge whose values in several workers add up; `sample` is a number that another library keeps."""
Labels = tuple[str, ...]


class Described(NamedTuple):
    """What all series of one metric have in common.

    Attributes:
        bounds: Upper bounds of a histogram's buckets. Its numbers are the sum, one for each, and one for what is above.
        type: Of a sample's metric, as Prometheus names it.
    """

    kind: Kind
    name: str
    help: str
    labels: Labels = ()
    bounds: tuple[float, ...] = ()
    type: str = ""

    @property
    def size(self) -> int:
        """Numbers of one series."""
        if self.kind == "exemplars":
            return (len(self.bounds) + 1) * EXEMPLAR_NUMBERS
        return len(self.bounds) + 2 if self.kind == "histogram" else 1

    @property
    def lives(self) -> bool:
        """Whether the numbers of a process end with it."""
        return self.kind in ("gauge", "sum") or (self.kind == "sample" and self.type not in _COUNTING)

    def key(self, values: Labels) -> bytes:
        """The series of these label values, for `key_of`."""
        return orjson.dumps([*self, values])


_COUNTING = ("counter", "histogram", "summary")


@lru_cache(maxsize=65_536)
def key_of(key: bytes) -> tuple[Described, Labels]:
    """The metric and the label values of a key that `Described.key` has made."""
    kind, name, help_text, labels, bounds, of_type, values = orjson.loads(key)
    return Described(kind, name, help_text, tuple(labels), tuple(bounds), of_type), tuple(values)


class Totals:
    """The numbers of several workers in one.

    Counts are added up. What only holds as long as its process lives is dropped with it; it keeps workers apart by the
    label `pid` where it cannot be added up.
    """

    def __init__(self) -> None:
        self.of: dict[Described, dict[Labels, list[float]]] = {}

    def add(self, key: bytes, numbers: Sequence[float], *, pid: str | None) -> None:
        """Add what one process has counted.

        Args:
            pid: The process; None when it has ended.
        """
        described, values = key_of(key)
        if described.lives:
            if pid is None:
                return
            if described.kind != "sum" and PID not in described.labels:
                described, values = described._replace(labels=(*described.labels, PID)), (*values, pid)
        series = self.of.setdefault(described, {})
        so_far = series.get(values)
        if so_far is None:
            if described.kind != "sample" and values and len(series) >= MAX_SERIES - 1:
                values = (OTHER,) * len(values)
            so_far = series.setdefault(values, [0.0] * len(numbers))
        if described.kind == "exemplars":
            _keep_latest(so_far, numbers)
        else:
            for index, number in enumerate(numbers):
                so_far[index] += number

    def metrics(self) -> Iterator[Metric]:
        """The metrics as they are to be shown."""
        foreign: dict[str, Metric] = {}
        for described, series in self.of.items():
            if described.kind == "sample":
                name, *labels = described.labels
                metric = foreign.setdefault(described.name, Metric(described.name, described.help, described.type))
                for values, (number,) in series.items():
                    metric.add_sample(name, dict(zip(labels, values, strict=True)), number)
            elif described.kind != "exemplars":
                traced = described._replace(kind="exemplars")
                yield as_metric(described, series, self.of.get(traced, {}))
        yield from foreign.values()


def as_metric(
    described: Described, series: Mapping[Labels, Sequence[float]], exemplars: Mapping[Labels, Sequence[float]]
) -> Metric:
    """One metric with its series as Prometheus' library has it."""
    if described.kind == "histogram":
        histogram = HistogramMetricFamily(described.name, described.help, labels=described.labels)
        names = [*map(floatToGoString, described.bounds), "+Inf"]
        for values, numbers in series.items():
            traced = _exemplars(exemplars.get(values), len(names))
            buckets = zip(names, accumulate(numbers[1:]), traced, strict=True)
            histogram.add_metric(values, [_bucket(*bucket) for bucket in buckets], numbers[0])
        return histogram
    kind = CounterMetricFamily if described.kind == "counter" else GaugeMetricFamily
    family = kind(described.name, described.help, labels=described.labels)
    for values, numbers in series.items():
        family.add_metric(values, numbers[0])
    return family


def samples_of(metrics: Iterable[Metric]) -> Iterator[tuple[bytes, float]]:
    """Every number of metrics that another library keeps, by its key."""
    for metric in metrics:
        for sample in metric.samples:
            labels = tuple(sorted(sample.labels))
            described = Described("sample", metric.name, metric.documentation, (sample.name, *labels), (), metric.type)
            yield described.key(tuple(sample.labels[label] for label in labels)), float(sample.value)


def write_exemplar(numbers: Numbers, bucket: int, trace_id: int, value: float, at: float) -> None:
    """Note a trace as an example of what is in a bucket; the time, which makes it valid, comes last."""
    first = bucket * EXEMPLAR_NUMBERS
    mask = (1 << _PART_BITS) - 1
    numbers[first] = 0.0
    numbers[first + 1] = value
    for part in range(3):
        numbers[first + 2 + part] = float(trace_id >> part * _PART_BITS & mask)
    numbers[first] = at


def _bucket(name: str, count: float, example: Exemplar | None) -> tuple[str, float] | tuple[str, float, Exemplar]:
    return (name, count) if example is None else (name, count, example)


def _exemplars(numbers: Sequence[float] | None, count: int) -> Iterator[Exemplar | None]:
    for bucket in range(count):
        first = bucket * EXEMPLAR_NUMBERS
        if numbers is None or not numbers[first]:
            yield None
            continue
        at, value, *parts = numbers[first : first + EXEMPLAR_NUMBERS]
        trace_id = sum(int(part) << place * _PART_BITS for place, part in enumerate(parts))
        yield Exemplar({"trace_id": f"{trace_id:032x}"}, value, at)


def _keep_latest(so_far: list[float], numbers: Sequence[float]) -> None:
    for first in range(0, len(numbers), EXEMPLAR_NUMBERS):
        if numbers[first] > so_far[first]:
            so_far[first : first + EXEMPLAR_NUMBERS] = numbers[first : first + EXEMPLAR_NUMBERS]
