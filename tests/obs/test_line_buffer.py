"""The buffer of the access log: nothing blocks, nothing is lost silently."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from svc_infra.obs.line_buffer import BATCH_LINES, LineBuffer

NEVER = 3600.0

Made = Callable[..., LineBuffer[bytes]]


class Stream:
    """Standard error that can be held up or broken."""

    def __init__(self) -> None:
        self.buffer = self
        self.written: list[bytes] = []
        self.free = threading.Event()
        self.free.set()
        self.came = threading.Event()
        self.broken = False

    def write(self, content: bytes) -> None:
        self.came.set()
        self.free.wait()
        if self.broken:
            raise BrokenPipeError
        self.written.append(content)

    def flush(self) -> None: ...

    @property
    def lines(self) -> list[bytes]:
        return b"".join(self.written).splitlines()


@pytest.fixture
def stream() -> Iterator[Stream]:
    held = Stream()
    yield held
    held.free.set()


@pytest.fixture
def buffer(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> Made:
    def made(**options: Any) -> LineBuffer[bytes]:
        monkeypatch.setattr(sys, "stderr", stream)  # not in `stream`: pytest sets it for each phase
        options = {"flush_seconds": NEVER, **options}
        return LineBuffer(bytes, lambda count: b"dropped %d\n" % count, **options)

    return made


def wait_for(event: threading.Event) -> None:
    assert event.wait(20)


def test_lines_wait_and_are_written_together_in_their_order(stream: Stream, buffer: Made) -> None:
    lines = buffer()
    for number in range(1000):
        lines.put(b"%d\n" % number)
    assert stream.written == []
    lines.flush()
    assert stream.lines == [b"%d" % number for number in range(1000)]
    assert len(stream.written) < 10


def test_a_line_waits_no_longer_than_it_may(stream: Stream, buffer: Made) -> None:
    lines = buffer(flush_seconds=0.01)
    for line in (b"one\n", b"two\n", b"three\n"):
        stream.came.clear()
        lines.put(line)
        wait_for(stream.came)


def test_many_lines_do_not_wait_at_all(stream: Stream, buffer: Made) -> None:
    lines = buffer(flush_lines=BATCH_LINES)
    for _ in range(BATCH_LINES):
        lines.put(b"four\n")
    wait_for(stream.came)


def test_a_blocked_output_blocks_nobody_and_every_line_is_written_or_counted(stream: Stream, buffer: Made) -> None:
    stream.free.clear()
    lines = buffer(max_lines=100, flush_lines=BATCH_LINES)
    for number in range(1000):
        lines.put(b"%09d\n" % number)
    wait_for(stream.came)
    assert lines.dropped > 0
    stream.free.set()
    lines.flush()
    kept = [line for line in stream.lines if not line.startswith(b"dropped")]
    told = sum(int(line.split()[1]) for line in stream.lines if line.startswith(b"dropped"))
    assert len(kept) + lines.dropped == 1000
    assert told == lines.dropped


def test_an_output_that_is_gone_is_survived_and_counted(stream: Stream, buffer: Made) -> None:
    lines = buffer()
    stream.broken = True
    lines.put(b"one\n")
    lines.flush()
    assert lines.dropped == 1
    stream.broken = False
    lines.put(b"two\n")
    lines.flush()
    assert stream.lines == [b"two", b"dropped 1"]


def test_a_process_without_standard_error_only_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    lines = LineBuffer(bytes, lambda count: b"", flush_seconds=NEVER)
    lines.put(b"one\n")
    lines.flush()
    assert lines.dropped == 1


def test_threads_lose_and_double_nothing(stream: Stream, buffer: Made) -> None:
    lines = buffer(flush_lines=10, flush_seconds=0.001)

    def write(writer: int) -> None:
        for number in range(2000):
            lines.put(b"%d-%d\n" % (writer, number))

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines.flush()
    for writer in range(4):
        own = [line for line in stream.lines if line.startswith(b"%d-" % writer)]
        assert own == [b"%d-%d" % (writer, number) for number in range(2000)]
    assert lines.dropped == 0


def test_a_text_stream_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    text = io.StringIO()
    monkeypatch.setattr(sys, "stderr", text)
    lines = LineBuffer(bytes, lambda count: b"", flush_seconds=NEVER)
    lines.put("grün\n".encode())
    lines.flush()
    assert text.getvalue() == "grün\n"


PROGRAM = """
import os, sys
from svc_infra.config import Settings
from svc_infra.obs.logging import Answered, log_request, setup_logging
setup_logging("INFO", "json", settings=Settings(app={"env": "test"}))
def line(number):
    log_request(Answered("GET", "/", "/", 200, number, 0.001, None, ""))
for number in range(100):
    line(number)
%s
"""


@pytest.mark.parametrize(
    ("ending", "count"),
    [
        ("", 100),
        ("raise SystemExit(3)", 100),
        ("raise KeyError", 100),
        ("if os.fork() == 0: line(100)\nelse: os.wait()", 101),
    ],
    ids=["end", "exit", "crash", "fork"],
)
def test_a_process_that_ends_by_itself_writes_every_line_once(ending: str, count: int) -> None:
    environment = {"PYTHONPATH": os.pathsep.join(sys.path), "PATH": os.environ["PATH"]}
    command = [sys.executable, "-c", PROGRAM % ending]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    written = [json.loads(line) for line in result.stderr.splitlines() if line.startswith("{")]
    assert sorted(line["bytes"] for line in written) == list(range(count))
