"""Where the numbers of metrics lie: in this process's memory, or in a file that the other workers can read.

A file holds records one after the other: how long the record is and how long its key (two 32-bit numbers), the key,
and the key's numbers as doubles at addresses that are multiples of eight, so that a reader never sees half a number.
The first length is written last; until then nothing is there for a reader. What a process has written is in the
kernel's hands: it outlives the process, however that ends, but not the machine.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from mmap import ACCESS_READ, mmap
from pathlib import Path
from threading import Lock
from typing import TypeAlias
from weakref import ref

SEGMENT_BYTES = 256 * 1024
"""A file grows by so much, and no record crosses from one such part into the next: none ever moves."""
MAX_FILE_BYTES = 64 * 1024 * 1024
"""The numbers of further series are kept, but only this process knows them."""

_LENGTHS = struct.Struct("=II")
_NUMBER_BYTES = 8

Numbers: TypeAlias = "list[float] | memoryview[float]"


class Block:
    """The numbers of one series. They move when sharing begins or ends: ask for `numbers` anew after that."""

    __slots__ = ("key", "numbers")

    def __init__(self, key: bytes, numbers: Numbers) -> None:
        self.key = key
        self.numbers = numbers


class Cells:
    """All numbers of one app in this process.

    The event loop's thread may add to a block as it is; whoever is in any other thread holds `lock` meanwhile.
    """

    def __init__(self) -> None:
        self.lock = Lock()
        self.unshared = 0
        """Series that found no room in the file."""
        self._blocks: list[Block] = []
        self._file: CellFile | None = None
        self._when_moved: list[Callable[[], None]] = []
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=partial(_forget, ref(self)))

    def block(self, key: bytes, size: int) -> Block:
        """A new block of zeros; hold `lock` unless nothing else has these cells yet."""
        block = Block(key, self._place(key, [0.0] * size))
        self._blocks.append(block)
        return block

    def when_moved(self, then: Callable[[], None]) -> None:
        """Be told when the numbers lie elsewhere."""
        self._when_moved.append(then)

    def share(self, file: CellFile) -> None:
        """Keep the numbers in this file from now on."""
        self._move(file)

    def unshare(self) -> None:
        """Keep the numbers in memory from now on; those in the file stay there."""
        self._move(None)

    def start_over(self) -> None:
        """Begin at zero, in the child of a fork: the numbers, and the file, are the parent's."""
        self.lock = Lock()
        self._file = None
        for block in self._blocks:
            block.numbers = [0.0] * len(block.numbers)
        self._tell()

    def _move(self, file: CellFile | None) -> None:
        with self.lock:
            self._file = file
            for block in self._blocks:
                block.numbers = self._place(block.key, list(block.numbers))
        self._tell()

    def _place(self, key: bytes, numbers: list[float]) -> Numbers:
        if self._file is None:
            return numbers
        try:
            return self._file.add(key, numbers)
        except OSError:  # the disk or the file is full: this worker's own page still shows them, and the number of them
            self.unshared += 1
            return numbers

    def _tell(self) -> None:
        for then in self._when_moved:
            then()


class CellFile:
    """A file that one process writes.

    Args:
        path: Must not exist.

    Raises:
        OSError: It cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._bytes = 0
        self._used = SEGMENT_BYTES
        self._segment: mmap

    def add(self, key: bytes, numbers: Sequence[float]) -> memoryview[float]:
        """Append a record; the returned numbers are those in the file.

        Raises:
            OSError: There is no room.
        """
        begin = _LENGTHS.size + _padded(len(key))
        size = begin + len(numbers) * _NUMBER_BYTES
        if self._used + size > SEGMENT_BYTES:
            self._grow(size)
        start, self._used = self._used, self._used + size
        with memoryview(self._segment) as raw:
            raw[start + _LENGTHS.size : start + _LENGTHS.size + len(key)] = key
            cells = memoryview(self._segment)[start + begin : start + size].cast("d")
            for index, number in enumerate(numbers):
                cells[index] = number
            raw[start + 4 : start + 8] = _LENGTHS.pack(size, len(key))[4:]
            raw[start : start + 4] = _LENGTHS.pack(size, len(key))[:4]
        return cells

    def close(self) -> None:
        """Close the file; memory that is still used stays mapped."""
        os.close(self.descriptor)

    def _grow(self, size: int) -> None:
        if size > SEGMENT_BYTES or self._bytes + SEGMENT_BYTES > MAX_FILE_BYTES:
            raise OSError("The file of the metrics is full.")
        if hasattr(os, "posix_fallocate"):  # a full disk is an error here; later it would be the end of the process
            os.posix_fallocate(self.descriptor, self._bytes, SEGMENT_BYTES)
        else:
            os.ftruncate(self.descriptor, self._bytes + SEGMENT_BYTES)
        self._segment = mmap(self.descriptor, SEGMENT_BYTES, offset=self._bytes)
        self._bytes += SEGMENT_BYTES
        self._used = 0


def read_cells(path: Path) -> Iterator[tuple[bytes, tuple[float, ...]]]:
    """Every key in a file with its numbers as they are now.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            return
        with closing(mmap(file.fileno(), size, access=ACCESS_READ)) as content:
            for segment in range(0, size - size % SEGMENT_BYTES, SEGMENT_BYTES):
                at, end = segment, segment + SEGMENT_BYTES
                while at + _LENGTHS.size <= end:
                    length, key_bytes = _LENGTHS.unpack_from(content, at)
                    begin = at + _LENGTHS.size + _padded(key_bytes)
                    if length == 0 or at + length > end or begin > at + length:
                        break
                    key = content[at + _LENGTHS.size : at + _LENGTHS.size + key_bytes]
                    yield key, struct.unpack_from(f"{(at + length - begin) // _NUMBER_BYTES}d", content, begin)
                    at += length


def _padded(count: int) -> int:
    return -count % _NUMBER_BYTES + count


def _forget(cells: ref[Cells]) -> None:
    alive = cells()
    if alive is not None:
        alive.start_over()
