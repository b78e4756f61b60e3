"""Who works on which shard, for any number of processes and machines on one folder, without a server.

Each process has one file with its name in it; a lease is a hard link to that file. Making the link is atomic, also
on NFS, and one touch of the file is the heartbeat of all its leases. Two workers on one shard by accident waste
time and harm nothing, since both write the same bytes.
"""

import json
import os
import shutil
import socket
import threading
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from vokens.errors import ConfigError

HEARTBEAT = 20.0  # seconds between touches
STALE = 120.0  # seconds without one, after which a worker of another machine counts as dead
_WORKER = "worker-"


@dataclass(frozen=True)
class Owner:
    """A process, so that another of the same machine can tell whether it lives.

    boot: differs after a restart of the machine and between containers. start: of the process, since ids come again.
    """

    host: str
    boot: str
    pid: int
    start: str

    @classmethod
    def here(cls) -> Self:
        return cls(socket.gethostname(), _boot(), os.getpid(), _start(os.getpid()))

    def dead(self) -> bool:
        """Whether it has certainly ended; False where that cannot be seen from here."""
        here = Owner.here()
        if self.host != here.host:
            return False
        if self.boot != here.boot:
            return self.boot.split()[:1] != here.boot.split()[:1]  # after a restart; not another container
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
        self.token = f"{os.getpid()}-{uuid.uuid4().hex[:12]}"
        self._file = folder / f"{_WORKER}{self.token}"
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
        self._bury(self._file)
        with suppress(OSError):
            self.folder.rmdir()

    def claim(self, name: str) -> bool:
        """Whether this process now holds `name`; the leases of the dead are taken over."""
        lease = self.folder / name
        for _ in range(2):
            try:
                os.link(self._file, lease)
                return True
            except FileExistsError:
                if not self._stale(lease):
                    return False
                self.sweep()
            except (
                FileNotFoundError
            ):  # this process was taken for dead, or the folder went with the last one out
                self._enrol()
            except OSError as error:
                raise ConfigError(
                    f"{self.folder.parent}: its file system has no hard links ({error.strerror}), by which workers "
                    "agree on who does what: put --out on a local disk, NFS or Lustre"
                ) from error
        return False

    def release(self, name: str) -> None:
        lease = self.folder / name
        with suppress(FileNotFoundError):
            if os.path.samefile(lease, self._file):
                lease.unlink()

    def scratch(self, name: str) -> Path:
        """A new empty folder for unfinished files, which is swept when this process dies."""
        path = self.folder / f"{name}.{self.token}"
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path

    def sweep(self) -> None:
        """Remove what dead processes left."""
        for file in self.folder.glob(f"{_WORKER}*"):
            if file != self._file and self._stale(file):
                self._bury(file)

    def _enrol(self) -> None:
        draft = self.folder / f".{self.token}"
        while not self._file.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # the last one out removed the folder at this moment
                draft.write_text(json.dumps(asdict(Owner.here())))
                draft.rename(self._file)

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT):
            with suppress(OSError):
                os.utime(self._file)

    def _stale(self, file: Path) -> bool:
        """Whether the owner of a worker's file or lease is dead, or has been silent for too long."""
        try:
            owner = Owner(**json.loads(file.read_text()))
            if owner.dead():
                return True
            with suppress(FileNotFoundError):
                os.utime(self._file)  # the file system's own clock, which may differ from this machine's
                return self._file.stat().st_mtime - file.stat().st_mtime > STALE
        except FileNotFoundError:
            pass
        return False

    def _bury(self, worker: Path) -> None:
        """Remove a worker's leases, its unfinished files and its name."""
        token = worker.name.removeprefix(_WORKER)
        for entry in list(self.folder.glob("*")):
            with suppress(FileNotFoundError):
                if entry.name.endswith(f".{token}"):
                    shutil.rmtree(entry, ignore_errors=True)
                elif entry != worker and os.path.samefile(entry, worker):
                    entry.unlink()
        worker.unlink(missing_ok=True)


def _boot() -> str:
    """Which start of the machine, and which container of it; "" where the system does not say."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _start(pid: int) -> str:
    """Clock ticks from boot to the start of a process; "gone" when it has ended, "" where the system does not say."""
    try:
        fields: list[Any] = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "gone" if Path("/proc/self/stat").exists() else ""
    return "gone" if fields[0] in "ZX" else fields[19]  # a zombie's files are closed
