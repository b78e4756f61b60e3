"""Leases of shards for any number of processes and machines on a shared folder, without a server.

Each process has one empty file named after it; a lease is a hard link to that file. Linking is atomic, also on NFS,
and touching the file is the heartbeat of all its leases. Two workers on one shard only waste time, since both write
the same bytes.
"""

import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass
from functools import cache
from pathlib import Path
from typing import Self

from vokens.errors import ConfigError

HEARTBEAT = 20.0  # seconds between touches
STALE = 120.0  # seconds without one after which a worker on another machine is dead
_SWEEP = 0.5  # seconds between checks for expired leases
_WORKER = "worker"


@dataclass(frozen=True)
class Owner:
    """Identity of a process, by which others on its machine see if it is alive; also its file name.

    Fields that are not known are "0".
    """

    pid: int
    start: str  # clock ticks after boot, since pids are reused
    boot: str  # boot id of the machine, 8 hex digits
    space: str  # pid namespace: containers have their own
    host: str

    @classmethod
    def here(cls) -> Self:
        boot, space = _machine()
        return cls(os.getpid(), _start(os.getpid()), boot, space, socket.gethostname().replace("/", "_"))

    @classmethod
    def of(cls, name: str) -> Self:
        """The owner that a file name encodes."""
        _, _, pid, start, boot, space, host = name.split("-", 6)
        return cls(int(pid), start, boot, space, host)

    @property
    def name(self) -> str:
        """A unique file name, also across restarts."""
        return "-".join([_WORKER, uuid.uuid4().hex[:12], *map(str, astuple(self))])

    def ended(self) -> bool:
        """True if the process has certainly ended; False where that is unknown."""
        here = Owner.here()
        if self.host != here.host:
            return False
        if (self.boot, self.space) != (here.boot, here.space):
            return self.boot != here.boot  # the machine has rebooted; else it is in another container
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        return _start(self.pid) != self.start


class Leases:
    """The leases of this process in one folder; a context manager that releases all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = folder / Owner.here().name
        self._swept = 0.0
        self._stop = threading.Event()

    def __enter__(self) -> Self:
        self._enrol()
        self.sweep()
        threading.Thread(target=self._beat, daemon=True, name="vokens-heartbeat").start()
        return self

    def __exit__(self, *_: object) -> None:
        """Release all leases; the last process removes the folder."""
        self._stop.set()
        self.sweep()
        self._reclaim(self._file)
        with suppress(OSError):
            self.folder.rmdir()

    def claim(self, name: str) -> bool:
        """Acquire `name`, taking over an expired lease; return True on success."""
        while True:
            try:
                os.link(self._file, self.folder / name)
                return True
            except FileExistsError:
                if time.monotonic() - self._swept < _SWEEP or not self.sweep():
                    return False
            except FileNotFoundError:  # this process was considered dead, or the last one removed the folder
                self._enrol()
            except OSError as error:
                raise ConfigError(
                    f"{self.folder.parent}: no hard link can be made there ({error.strerror}), which workers "
                    "need to share the work: put --out on a local disk, NFS or Lustre"
                ) from error

    def release(self, name: str) -> None:
        """Release `name`, if this process still holds it."""
        self._unlink(self.folder / name, self._file)

    @contextmanager
    def held(self, name: str) -> Iterator[bool]:
        """Hold `name` inside `with`: True if it could be acquired."""
        claimed = self.claim(name)
        try:
            yield claimed
        finally:
            if claimed:
                self.release(name)

    @contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        """A new empty folder for unfinished files, removed at the end, by others if this process dies."""
        path = self.folder / f"{name}.{self._token(self._file)}"
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def sweep(self) -> int:
        """Remove the files of ended processes; return the number of those."""
        self._swept = time.monotonic()
        files = self.folder.glob(f"{_WORKER}-*")
        expired = [file for file in files if file != self._file and self._expired(file)]
        for file in expired:
            self._reclaim(file)
        return len(expired)

    def _enrol(self) -> None:
        while True:
            self.folder.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # the last process has just removed the folder
                self._file.touch()
                return

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT):
            with suppress(OSError):
                os.utime(self._file)

    def _expired(self, file: Path) -> bool:
        """True if the process of a file has ended, or has missed its heartbeats."""
        if Owner.of(file.name).ended():
            return True
        with suppress(FileNotFoundError):
            os.utime(self._file)  # reads the file system's clock, which may differ from this machine's
            return self._file.stat().st_mtime - file.stat().st_mtime > STALE
        return False

    def _reclaim(self, worker: Path) -> None:
        """Remove a worker's leases, its unfinished files, and its own file last."""
        for entry in list(self.folder.glob("*")):
            if entry.name.endswith(f".{self._token(worker)}"):
                shutil.rmtree(entry, ignore_errors=True)
            elif entry != worker:
                self._unlink(entry, worker)
        worker.unlink(missing_ok=True)

    @staticmethod
    def _unlink(lease: Path, worker: Path) -> None:
        with suppress(FileNotFoundError):
            if os.path.samefile(lease, worker):
                lease.unlink()

    @staticmethod
    def _token(worker: Path) -> str:
        return worker.name.split("-", 2)[1]


@cache
def _machine() -> tuple[str, str]:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
        return boot, os.readlink("/proc/self/ns/pid").strip("pid:[]")
    except OSError:
        return "0", "0"


def _start(pid: int) -> str:
    """Clock ticks from boot to the start of a process; "gone" when it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "gone" if Path("/proc/self/stat").exists() else "0"
    return "gone" if fields[0] in "ZX" else fields[19]  # a zombie holds no files
