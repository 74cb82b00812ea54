"""The first level: its bounds, what it puts out, and what it does not take in."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from svc_infra.cache._memory import ENTRY_OVERHEAD_BYTES, MAX_CHANGES, Entry, Memory
from svc_infra.cache.codec import codec_of

ANY = codec_of(Any)
FOREVER = 1e18


def entry(key: str, size_bytes: int = 0, value: Any = None) -> Entry:
    return Entry(key, value, ANY, size_bytes=size_bytes, fresh_until=FOREVER, refresh_at=FOREVER, dead_at=FOREVER)


def memory(max_entries: int = 100, max_bytes: int = 10**9) -> Memory:
    return Memory(max_entries, max_bytes, lambda: 0.0)


class Bounded(RuleBasedStateMachine):
    """Whatever is done to it, it holds no more than it may, and knows how much that is."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = memory(max_entries=8, max_bytes=8 * (ENTRY_OVERHEAD_BYTES + 50))

    keys = st.integers(0, 30).map(str)

    @rule(key=keys, size=st.integers(0, 1000), tags=st.lists(st.sampled_from("xyz"), max_size=2))
    def put(self, key: str, size: int, tags: list[str]) -> None:
        self.memory.put(entry(key, size), tags)

    @rule(key=keys, times=st.integers(1, 5))
    def get(self, key: str, times: int) -> None:
        for _ in range(times):
            self.memory.get(key, ANY)

    @rule(key=keys)
    def count(self, key: str) -> None:
        if key not in self.memory.entries or type(self.memory.entries[key].value) is int:
            self.memory.add(key, 1, ANY, 60)

    @rule(names=st.lists(keys | st.sampled_from("xyz"), max_size=4))
    def forget(self, names: list[str]) -> None:
        self.memory.forget(names)
        assert not any(self.memory.get(name, ANY) for name in names)

    @rule()
    def flush(self) -> None:
        self.memory.flush()
        assert not self.memory.entries

    @invariant()
    def it_keeps_its_bounds(self) -> None:
        kept = self.memory.entries.values()
        assert len(kept) <= self.memory.max_entries
        assert self.memory.bytes == sum(one.size_bytes for one in kept) <= self.memory.max_bytes
        assert self.memory._small.keys() | self.memory._main.keys() == self.memory.entries.keys()
        assert not self.memory._small.keys() & self.memory._main.keys()
        assert self.memory._small_bytes == sum(one.size_bytes for one in self.memory._small.values())
        assert len(self.memory._ghosts) <= self.memory.max_entries


TestBounded = Bounded.TestCase
TestBounded.settings = settings(deadline=None, max_examples=60)


@pytest.mark.parametrize(("entries", "size"), [(0, 10**6), (10, 0), (10, ENTRY_OVERHEAD_BYTES)])
def test_a_memory_without_room_keeps_nothing(entries: int, size: int) -> None:
    none = memory(entries, size)
    assert not none.put(entry("key"))
    assert none.add("count", 3, ANY, 60) == 3
    assert none.add("count", 3, ANY, 60) == 3
    assert not none.entries


def test_what_is_larger_than_everything_replaces_nothing_but_itself() -> None:
    small = memory(max_bytes=3 * ENTRY_OVERHEAD_BYTES)
    small.put(entry("a"))
    small.put(entry("b"))
    assert not small.put(entry("a", 10**6))
    assert list(small.entries) == ["b"]


def test_the_size_of_an_entry_is_about_what_it_takes() -> None:
    many = [entry(f"a key of some length {number}") for number in range(1000)]
    store = memory(max_entries=1000)
    for one in many:
        store.put(one)
    measured = sys.getsizeof(many[0]) + sys.getsizeof(store.entries) / 1000 + 2 * sys.getsizeof(store._small) / 1000
    assert measured < ENTRY_OVERHEAD_BYTES < 2 * measured


def test_what_is_read_once_does_not_push_out_what_is_read_often() -> None:
    store = memory(max_entries=100)
    for number in range(50):
        store.put(entry(f"often {number}"))
    for _ in range(3):
        for number in range(50):
            assert store.get(f"often {number}", ANY)
    for number in range(10_000):
        store.put(entry(f"once {number}"))
    assert sum(f"often {number}" in store.entries for number in range(50)) == 50
    assert store.evictions == 10_050 - 100


def test_it_hits_more_often_than_one_that_keeps_what_was_used_last() -> None:
    random = Random(7)
    population = [str(number) for number in range(1, 10_001)]
    keys = random.choices(population, weights=[1 / int(key) for key in population], k=50_000)
    store, recent = memory(max_entries=100), dict[str, None]()
    hits = recent_hits = 0
    for key in keys:
        if store.get(key, ANY):
            hits += 1
        else:
            store.put(entry(key))
        if key in recent:
            recent_hits += 1
            del recent[key]
        elif len(recent) == 100:
            del recent[next(iter(recent))]
        recent[key] = None
    assert hits / len(keys) > recent_hits / len(keys) + 0.05


def test_what_was_put_out_and_comes_back_is_believed() -> None:
    store = memory(max_entries=10)
    for number in range(11):
        store.put(entry(str(number)))
    assert "0" not in store.entries
    store.put(entry("0"))
    for number in range(100, 150):
        store.put(entry(str(number)))
    assert "0" in store.entries


def test_what_was_invalidated_since_is_not_taken_in() -> None:
    store = memory()
    for name in ("key", "tag"):
        mark = store.mark()
        store.forget([name, "another"])
        assert not store.put(entry("key"), ["tag"], since=mark)
        assert store.put(entry("other"), ["others"], since=mark)
    assert store.put(entry("key"), ["tag"], since=store.mark())


def test_after_a_flush_nothing_older_is_taken_in() -> None:
    store = memory()
    mark = store.mark()
    store.flush()
    store.forget(["another"])
    assert not store.put(entry("key"), since=mark)


def test_what_is_no_longer_known_counts_as_invalidated() -> None:
    store = memory()
    mark = store.mark()
    store.forget([str(number) for number in range(MAX_CHANGES)])
    assert store.unchanged(mark, ["key"])
    store.forget(["one more"])
    assert not store.unchanged(mark, ["key"])


@settings(deadline=None)
@given(st.lists(st.lists(st.sampled_from("abcd"), max_size=3), max_size=8), st.integers(0, 8), st.sampled_from("abcd"))
def test_the_row_of_invalidations_forgets_none(events: list[list[str]], begin: int, name: str) -> None:
    store, mark = memory(), None
    for number, names in enumerate(events):
        if number == begin:
            mark = store.mark()
        store.note(names)
    if mark is not None:
        assert store.unchanged(mark, [name]) == all(name not in names for names in events[begin:])


def test_a_tag_costs_nothing_once_nothing_has_it() -> None:
    store = memory(max_entries=10)
    for number in range(1000):
        store.put(entry(str(number)), [f"tag {number}"])
    assert len(store._tags) == 10


def test_threads_cannot_break_it() -> None:
    store = memory(max_entries=20)
    errors: list[Exception] = []
    works: list[Callable[[str], object]] = [
        lambda key: store.put(entry(key), ["tag"]),
        lambda key: store.forget([key, "tag"]),
        lambda key: store.get(key, ANY),
        lambda key: store.add("count", 1, ANY, 60),
    ]

    def work_on(seed: int) -> None:
        random = Random(seed)
        try:
            for _ in range(2000):
                work = random.choice(works)
                work(str(random.randrange(50)))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what the test looks for
            errors.append(error)

    threads = [threading.Thread(target=work_on, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(store.entries) <= 20
    assert store.bytes == sum(one.size_bytes for one in store.entries.values())
