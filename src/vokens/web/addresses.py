"""URLs of the page's recent outputs: streams of speech, and result files. The oldest are dropped."""

import secrets
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from urllib.parse import quote

import numpy as np
from fastapi import FastAPI, HTTPException
from fastapi.responses import FileResponse, StreamingResponse

from vokens.serve.sound import Writer

KEPT = 16  # takes of speech (3 MB per minute) and results (12 MB per minute)


class Take:
    """The bytes of one take as a wav file, computed once: players request it twice."""

    def __init__(self, pieces: Iterator[np.ndarray], rate: int) -> None:
        self._pieces, self._writer = pieces, Writer("wav", rate)
        self._bytes: list[bytes] = []
        self._done, self._lock = False, threading.Lock()

    def __iter__(self) -> Iterator[bytes]:
        for place in count():
            with self._lock:
                if place == len(self._bytes) and not self._done:
                    piece = next(self._pieces, None)
                    self._done = piece is None
                    self._bytes.append(self._writer.end() if piece is None else self._writer.write(piece))
            if place == len(self._bytes):
                return
            yield self._bytes[place]


class Addresses:
    """Registry of streams, computed as they are fetched, and files, written when they are fetched."""

    def __init__(self) -> None:
        self._takes: OrderedDict[str, Take] = OrderedDict()
        self._writers: OrderedDict[str, dict[str, Callable[[Path], None]]] = OrderedDict()
        self._folder = tempfile.TemporaryDirectory(prefix="vokens-web-", ignore_cleanup_errors=True)

    def routes(self, app: FastAPI) -> None:

        @app.get("/stream/{ticket}")
        def stream(ticket: str) -> StreamingResponse:
            return StreamingResponse(iter(self.take(ticket)), media_type="audio/wav")

        @app.get("/result/{ticket}/{name}")
        def result(ticket: str, name: str) -> FileResponse:
            return FileResponse(self.file(ticket, name))  # supports Range, which players need to seek

    def add_stream(self, pieces: Iterator[np.ndarray], rate: int) -> str:
        """The address of a stream of waves (T,)."""
        ticket = secrets.token_urlsafe(16)
        self._takes[ticket] = Take(pieces, rate)
        while len(self._takes) > KEPT:
            self._takes.popitem(last=False)
        return f"/stream/{ticket}"

    def add_files(self, writers: dict[str, Callable[[Path], None]]) -> list[str]:
        """The addresses of files, in order, by name and writing function."""
        ticket = secrets.token_urlsafe(16)
        self._writers[ticket] = writers
        while len(self._writers) > KEPT:
            oldest, _ = self._writers.popitem(last=False)
            shutil.rmtree(Path(self._folder.name) / oldest, ignore_errors=True)
        return [f"/result/{ticket}/{quote(name)}" for name in writers]

    def take(self, ticket: str) -> Take:
        """The take of a ticket; HTTP 404 where it was dropped."""
        if ticket not in self._takes:
            raise HTTPException(404, "this speech has expired: press the button again")
        return self._takes[ticket]

    def file(self, ticket: str, name: str) -> Path:
        writer = self._writers.get(ticket, {}).get(name)
        if writer is None:
            raise HTTPException(404, "this result has expired: press the button again")
        path = Path(self._folder.name) / ticket / name
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            writer(path)
        return path
