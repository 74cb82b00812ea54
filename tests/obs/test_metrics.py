from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import prometheus_client
import pytest
from starlette.applications import Starlette

from svc_infra.errors import ConfigurationError
from svc_infra.obs.add import add_observability
from svc_infra.obs.metrics import BYTES, MAX_LABEL_CHARS, SECONDS, Metrics
from svc_infra.observability import metrics as current_metrics
from svc_infra.wiring import wiring_of


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_dotted_names_become_prometheus_names() -> None:
    metrics = Metrics()
    metrics.increment("orders.created")
    metrics.increment("orders.created", 2)
    metrics.increment("orders.created", amount=0.5)
    metrics.increment("jobs_started_total", task="mail")
    metrics.gauge("queue.depth", 3)
    metrics.gauge("queue.depth", 1)
    metrics.observe("response.size_bytes", 300)
    with metrics.timer("order.create", plan="pro"):
        pass
    assert value(metrics, "orders_created_total") == 3.5
    assert value(metrics, "jobs_started_total", task="mail") == 1
    assert value(metrics, "queue_depth") == 1
    assert value(metrics, "response_size_bytes_count") == 1
    assert value(metrics, "order_create_seconds_count", plan="pro") == 1


def test_names_that_prometheus_writes_alike_are_one_metric() -> None:
    metrics = Metrics()
    for name in ("orders.created", "orders_created", "orders-created", "orders_created_total"):
        metrics.increment(name)
    with metrics.timer("order.create"):
        metrics.observe("order_create_seconds", 1)
    assert value(metrics, "orders_created_total") == 4
    assert value(metrics, "order_create_seconds_count") == 2


def test_a_timer_also_times_a_block_that_raises() -> None:
    metrics = Metrics()
    with pytest.raises(KeyError), metrics.timer("order.create"):
        raise KeyError
    assert value(metrics, "order_create_seconds_count") == 1


@pytest.mark.parametrize(
    ("name", "buckets"), [("wait_seconds", SECONDS), ("size_bytes", BYTES), ("items", (1.0, 2.0, 5.0, 10.0))]
)
def test_buckets_follow_the_unit_in_the_name(name: str, buckets: tuple[float, ...]) -> None:
    metrics = Metrics()
    metrics.observe(name, 0)
    (histogram,) = [metric for metric in metrics.registry.collect() if metric.name == name]
    bounds = [float(sample.labels["le"]) for sample in histogram.samples if "le" in sample.labels]
    assert tuple(bounds[: len(buckets)]) == buckets


@pytest.mark.parametrize("labels", [{}, {"tenant": "a"}, {"plan": "pro", "tenant": "a"}])
def test_other_labels_than_at_first_are_an_error_that_names_both(labels: dict[str, str]) -> None:
    metrics = Metrics()
    metrics.increment("orders.created", plan="pro")
    with pytest.raises(ConfigurationError, match=r"orders_created are plan; here they are") as caught:
        metrics.increment("orders.created", 1, **labels)
    assert (", ".join(labels) or "none") in caught.value.detail
    assert value(metrics, "orders_created_total", plan="pro") == 1


@pytest.mark.parametrize("name", ["", "order created", "1st", "größe", "a{b}"])
def test_a_name_that_prometheus_does_not_know_is_an_error(name: str) -> None:
    with pytest.raises(ConfigurationError, match="no metric name"):
        Metrics().increment(name)


def test_a_label_name_that_prometheus_does_not_know_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="cannot be a metric here"):
        Metrics().observe("size", 1, le="x")


def test_one_name_cannot_be_two_metrics() -> None:
    metrics = Metrics()
    metrics.increment("orders")
    with pytest.raises(ConfigurationError, match="'orders' cannot be a metric here: Duplicated"):
        metrics.gauge("orders", 1)


def test_series_beyond_the_limit_become_other_and_are_counted() -> None:
    metrics = Metrics(max_series=10)
    for number in range(1000):
        metrics.increment("hits", user=number, plan="pro")
    (hits,) = [metric for metric in metrics.registry.collect() if metric.name == "hits"]
    counted = [sample for sample in hits.samples if sample.name == "hits_total"]
    assert len(counted) == 10
    assert sum(sample.value for sample in counted) == 1000
    assert value(metrics, "hits_total", user="other", plan="other") == 991
    assert value(metrics, "metrics_series_overflow_total", metric="hits") == 991


def test_a_long_label_value_is_cut() -> None:
    metrics = Metrics()
    metrics.increment("hits", user="x" * 10_000)
    assert value(metrics, "hits_total", user="x" * MAX_LABEL_CHARS) == 1


def test_threads_lose_no_count_and_open_no_series_too_many() -> None:
    metrics = Metrics(max_series=5)

    def work(_: int) -> None:
        for number in range(200):
            metrics.increment("hits", key=number % 20)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))
    (hits,) = [metric for metric in metrics.registry.collect() if metric.name == "hits"]
    counted = [sample.value for sample in hits.samples if sample.name == "hits_total"]
    assert (len(counted), sum(counted)) == (5, 1600)


def test_the_current_metrics_are_those_of_the_app_that_runs() -> None:
    first, second = Starlette(), Starlette()
    for app in (first, second):
        add_observability(app)
    with wiring_of(first).active():
        current_metrics.increment("orders.created")
        current_metrics.gauge("depth", 2)
        current_metrics.observe("items", 4)
        with current_metrics.timer("order.create"):
            pass
    ours, theirs = wiring_of(first).get(Metrics), wiring_of(second).get(Metrics)
    assert value(ours, "orders_created_total") == 1
    assert value(ours, "depth") == 2
    assert value(ours, "items_count") == 1
    assert value(ours, "order_create_seconds_count") == 1
    assert value(theirs, "orders_created_total") is None


def test_outside_of_an_app_the_current_metrics_are_the_process_own() -> None:
    name = f"outside_{uuid4().hex}"
    current_metrics.increment(name)
    assert prometheus_client.REGISTRY.get_sample_value(f"{name}_total") == 1
