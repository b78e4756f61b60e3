"""Limits of a server, which are options of the command line too; without torch, so that its --help is fast."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from vokens.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Limits of a server."""

    api_key: str = ""
    """Clients must send it as `Authorization: Bearer KEY` (default: $VOKENS_API_KEY, else none)."""
    voices: Path | None = None
    """Folder of voices: NAME.wav (or flac, mp3, …), each with its transcript NAME.txt if known."""
    cors: Annotated[tuple[str, ...], tyro.conf.arg(metavar="ORIGIN ...")] = ()
    """Allowed CORS origins, such as http://localhost:3000; * for all (default: none)."""
    max_upload: int = 25_000_000
    """Bytes of a request."""
    max_seconds: float = 600.0
    """Seconds of audio, in or out, of one request."""
    max_text: int = 10_000
    """Characters of a text to speak."""
    max_queue: int = 64
    """Queued requests per model; the next one gets 503."""
    max_streams: int = 8
    """Concurrent streamed replies per model."""
    max_batch: int = 16
    """Requests in one batch."""
    batch_seconds: float = 120.0
    """Seconds of audio in one batch, padding included."""
    batch_wait: float = 0.005
    """Seconds that a request waits to be batched with others."""

    def check(self) -> None:
        """Raise ConfigError for what no server can keep; not on construction, where the parser would print a box."""
        for name in ("max_upload", "max_text", "max_queue", "max_streams", "max_batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)}: at least 1 is accepted")
        for name in ("max_seconds", "batch_seconds", "batch_wait"):
            value = getattr(self, name)
            if not 0 <= value < math.inf or (value == 0 and name != "batch_wait"):
                raise ConfigError(f"{name} = {value}: seconds above 0 are accepted (batch_wait: 0 too)")
        if self.voices is not None and not self.voices.is_dir():
            raise ConfigError(f"the folder of voices {self.voices} does not exist: put NAME.wav files there")
        for origin in self.cors:
            if not re.fullmatch(r"\*|[a-z][a-z0-9+.-]*://[^/\s]+", origin):
                raise ConfigError(f"cors = {origin!r}: give an origin, SCHEME://HOST[:PORT], or * for all")
