"""The metrics of several worker processes on one machine, summed up by whichever of them is asked.

Each worker keeps its numbers in a file of its own, in a folder that all share, and holds a lock on that file as long as
it lives: the kernel gives it up when the process ends, however it ends. Whoever reads the folder first adds the numbers
of those that have ended to `ended.cells` and removes their files, so there are never more files than workers. One
process at a time does that, behind the folder's own lock.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from hashlib import sha256
from itertools import count
from pathlib import Path
from secrets import token_hex

from svc_infra.errors import ConfigurationError
from svc_infra.obs.cells import Block, CellFile, read_cells
from svc_infra.obs.logging import logger
from svc_infra.obs.metrics import Metrics
from svc_infra.obs.series import Totals, samples_of

if sys.platform != "win32":
    from fcntl import LOCK_EX, LOCK_NB, LOCK_UN, flock

MIRROR_SECONDS = 5.0
"""How old the numbers may be that other libraries keep in another worker, such as a process's memory."""

_SUFFIX = ".cells"
_ENDED = f"ended{_SUFFIX}"
_MERGED = b"merged:"  # begins the key of a file that `ended.cells` holds already
_NAME = re.compile(r"[^A-Za-z0-9_.-]+")


class Workers:
    """This worker among the others.

    Args:
        metrics: Its metrics.
        folder: Of all workers of one service, on this machine.

    Raises:
        OSError: The folder cannot be made or written.
    """

    def __init__(self, metrics: Metrics, folder: Path) -> None:
        self._metrics = metrics
        self._mirrored: dict[bytes, Block] = {}
        for number in count():
            self._folder = folder.with_name(f"{folder.name}-{number}")
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._locked():
                if any(_is_held(file) for file in self._folder.glob(f"{os.getpid()}-*{_SUFFIX}")):
                    continue  # another app in this process has it
                self._file = CellFile(self._folder / f"{os.getpid()}-{token_hex(4)}{_SUFFIX}")
                flock(self._file.descriptor, LOCK_EX)
                self._bury()
                break
        metrics.cells.share(self._file)

    def totals(self) -> Totals:
        """What all workers have counted, those that have ended included.

        Raises:
            OSError: The folder cannot be read.
        """
        self._mirror()
        totals = Totals()
        with self._locked():
            self._bury()
            for file in self._folder.glob(f"*{_SUFFIX}"):
                for key, numbers in read_cells(file):
                    if not key.startswith(_MERGED):  # and those that have ended have left nothing that needs a pid
                        totals.add(key, numbers, pid=file.name.partition("-")[0])
        return totals

    async def mirror(self) -> None:
        """Show the other workers what other libraries count in this one, until cancelled."""
        while True:
            try:
                await asyncio.to_thread(self._mirror)
            except Exception:  # noqa: BLE001 - another library's metric may raise anything; the others are shown later
                logger.exception("metrics.not_mirrored")
            await asyncio.sleep(MIRROR_SECONDS)

    def leave(self) -> None:
        """Leave what was counted to the others."""
        self._mirror()
        self._metrics.cells.unshare()
        flock(self._file.descriptor, LOCK_UN)
        self._file.close()

    def _mirror(self) -> None:
        cells = self._metrics.cells
        for key, number in samples_of(self._metrics.foreign()):
            with cells.lock:
                if key not in self._mirrored:
                    self._mirrored[key] = cells.block(key, 1)
                self._mirrored[key].numbers[0] = number

    @contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            flock(descriptor, LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _bury(self) -> None:
        """Add what ended workers have counted to the file of all that have ended.

        That file is replaced in one step, and names those that it holds: a process that is killed before it has removed
        them leaves nothing that would be counted twice.
        """
        for draft in self._folder.glob("*.draft"):  # of a process that was killed over it
            draft.unlink()
        files = sorted(self._folder.glob(f"*{_SUFFIX}"))
        dead = [file for file in files if file.name != _ENDED and not _is_held(file)]
        if not dead:
            return
        ended, totals, merged = self._folder / _ENDED, Totals(), set()
        if ended.exists():
            for key, numbers in read_cells(ended):
                if key.startswith(_MERGED):
                    merged.add(key.removeprefix(_MERGED).decode())
                else:
                    totals.add(key, numbers, pid=None)
        new = [file for file in dead if file.name not in merged]
        for file in new:
            for key, numbers in read_cells(file):
                totals.add(key, numbers, pid=None)
        if new:
            written = CellFile(self._folder / "ended.draft")
            try:
                for described, series in totals.of.items():
                    for values, sums in series.items():
                        written.add(described.key(values), sums)
                for file in dead:
                    written.add(_MERGED + file.name.encode(), ())
            finally:
                written.close()
            written.path.replace(ended)
        for file in dead:
            file.unlink()


@asynccontextmanager
async def sharing(workers: Workers) -> AsyncIterator[None]:
    """Keep a worker's numbers among those of the others."""
    mirror = asyncio.create_task(workers.mirror(), name="metrics-mirror")
    try:
        yield
    finally:
        mirror.cancel()
        await asyncio.wait([mirror])
        await asyncio.to_thread(workers.leave)


def joined(metrics: Metrics, *, service: str, folder: Path | None) -> Workers | None:
    """This process among the workers of its service.

    Workers that one parent has started through `multiprocessing`, as those of uvicorn, find each other by a secret that
    the parent has given to them all.

    Args:
        metrics: Its metrics.
        service: The service's name.
        folder: Where the workers meet; found out when left out.

    Returns:
        None where the process is its service's only one, or cannot share: then a line in the log says why.

    Raises:
        ConfigurationError: The folder was given and cannot be used.
    """
    given = folder is not None
    parent = multiprocessing.parent_process()
    if folder is None and parent is None:
        return None
    try:
        if sys.platform == "win32":
            raise OSError("Windows has no lock that ends with its process.")
        if folder is None:
            folder = _meeting_place(f"{parent.pid if parent else 0}")
        return Workers(metrics, folder / _NAME.sub("_", service))
    except OSError as error:
        if given:
            raise ConfigurationError(f"METRICS_DIR cannot be used: {error.strerror or error}.") from error
        reason = error.strerror or str(error)
        logger.warning("metrics.not_shared", reason=reason, effect="each worker shows its own metrics only")
        return None


def _meeting_place(parent: str) -> Path:
    """A folder for the children of one parent; those of parents that are gone are removed.

    A parent of another container, where one folder for temporary files is shared, is not to be seen; its workers are.
    """
    root = Path(tempfile.gettempdir()) / f"svc-infra-metrics-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    found = root.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise OSError(f"{root} is not this user's own.")
    for other in root.iterdir():
        if not _is_alive(other.name.partition("-")[0]) and not any(map(_is_held, other.glob(f"*/*{_SUFFIX}"))):
            shutil.rmtree(other, ignore_errors=True)  # another worker may be at it, too
    secret = sha256(b"svc-infra metrics" + bytes(multiprocessing.current_process().authkey)).hexdigest()
    return root / f"{parent}-{secret[:16]}"


def _is_alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _is_held(file: Path) -> bool:
    with suppress(FileNotFoundError):
        descriptor = os.open(file, os.O_RDWR | os.O_CLOEXEC)
        try:
            flock(descriptor, LOCK_EX | LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
    return False
