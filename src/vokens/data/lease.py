"""Leases of shards, for any number of processes and machines on one folder, without a server.

Each process has one empty file whose name says who it is; a lease is a hard link to that file. Making the link is
atomic, also on NFS, and one touch of the file is the heartbeat of all its leases. Two workers on one shard by accident
waste time and harm nothing, since both write the same bytes.
"""

import os
import shutil
import socket
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import astuple, dataclass
from functools import cache
from pathlib import Path
from typing import Self

from vokens.errors import ConfigError

HEARTBEAT = 20.0  # seconds between touches
STALE = 120.0  # seconds without one, after which a worker of another machine counts as dead
_SWEEP = 0.5  # seconds between looks for expired leases while shards are contended
_WORKER = "worker"


@dataclass(frozen=True)
class Owner:
    """A process, so that another of the same machine can tell whether it lives; its file is named by it.

    boot: of the machine, 8 hex digits. space: in which process ids count (containers have their own).
    start: of the process in clock ticks after boot, since ids come again. Each is "0" where the system does not say.
    """

    pid: int
    start: str
    boot: str
    space: str
    host: str

    @classmethod
    def here(cls) -> Self:
        boot, space = _machine()
        return cls(os.getpid(), _start(os.getpid()), boot, space, socket.gethostname().replace("/", "_"))

    @classmethod
    def of(cls, name: str) -> Self:
        """The owner that a file is named by."""
        _, _, pid, start, boot, space, host = name.split("-", 6)
        return cls(int(pid), start, boot, space, host)

    @property
    def name(self) -> str:
        """A file name that no other process has, nor this one again."""
        return "-".join([_WORKER, uuid.uuid4().hex[:12], *map(str, astuple(self))])

    def ended(self) -> bool:
        """Whether it has certainly ended; False where that cannot be seen from here."""
        here = Owner.here()
        if self.host != here.host:
            return False
        if (self.boot, self.space) != (here.boot, here.space):
            return self.boot != here.boot  # the machine has started anew; else it is in another container
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        return _start(self.pid) != self.start


class Leases:
    """The leases of this process in one folder; a context manager that gives all back."""

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
        """Give back what is held; the last one out removes the folder."""
        self._stop.set()
        self.sweep()
        self._reclaim(self._file)
        with suppress(OSError):
            self.folder.rmdir()

    def claim(self, name: str) -> bool:
        """Whether this process now holds `name`; expired leases are taken over."""
        while True:
            try:
                os.link(self._file, self.folder / name)
                return True
            except FileExistsError:
                if time.monotonic() - self._swept < _SWEEP or not self.sweep():
                    return False
            except (
                FileNotFoundError
            ):  # this process was taken for dead, or the folder went with the last one out
                self._enrol()
            except OSError as error:
                raise ConfigError(
                    f"{self.folder.parent}: no hard link can be made there ({error.strerror}), and by them workers "
                    "agree on who does what: put --out on a local disk, NFS or Lustre"
                ) from error

    def release(self, name: str) -> None:
        """Give `name` back, if it is still this process's."""
        self._unlink(self.folder / name, self._file)

    def scratch(self, name: str) -> Path:
        """A new empty folder for unfinished files, which is swept when this process dies."""
        path = self.folder / f"{name}.{self._token(self._file)}"
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path

    def sweep(self) -> int:
        """Remove what ended processes left; how many of them there were."""
        self._swept = time.monotonic()
        expired = [
            file for file in self.folder.glob(f"{_WORKER}-*") if file != self._file and self._expired(file)
        ]
        for file in expired:
            self._reclaim(file)
        return len(expired)

    def _enrol(self) -> None:
        while True:
            self.folder.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # the last one out has just removed the folder
                self._file.touch()
                return

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT):
            with suppress(OSError):
                os.utime(self._file)

    def _expired(self, file: Path) -> bool:
        """Whether the process that a file is named by has ended, or has been silent for too long."""
        if Owner.of(file.name).ended():
            return True
        with suppress(FileNotFoundError):
            os.utime(self._file)  # asks the clock of the file system, which may differ from this machine's
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
