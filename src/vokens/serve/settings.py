"""What a server allows; every limit that a client can meet is one of these."""

import math
import re
from dataclasses import dataclass
from pathlib import Path

from vokens.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Limits of a server.

    Attributes:
        api_key: clients send it as `Authorization: Bearer KEY`; "" asks for none.
        max_upload: bytes of a request. max_seconds: of audio, in or out, of one request.
        max_text: characters of a text to speak.
        max_queue: requests that wait for one model; the next is sent away with 503.
        max_streams: replies that one model makes piece by piece at a time.
        max_batch: requests, and batch_seconds: seconds of audio, that one model computes at a time.
        batch_wait: seconds that a request waits for company.
        voices: folder of voices, NAME.wav (or flac, mp3, …), each with NAME.txt of what it says where known.
        cors: origins whose pages may ask this server from a browser, such as http://localhost:3000; "*" for all.
    """

    api_key: str = ""
    max_upload: int = 25_000_000
    max_seconds: float = 600.0
    max_text: int = 10_000
    max_queue: int = 64
    max_streams: int = 8
    max_batch: int = 16
    batch_seconds: float = 120.0
    batch_wait: float = 0.005
    voices: Path | None = None
    cors: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        counts = {
            name: getattr(self, name)
            for name in ("max_upload", "max_text", "max_queue", "max_streams", "max_batch")
        }
        for name, value in counts.items():
            if value < 1:
                raise ConfigError(f"{name} = {value}: at least 1 is accepted")
        for name in ("max_seconds", "batch_seconds", "batch_wait"):
            value = getattr(self, name)
            if not 0 <= value < math.inf or (value == 0 and name != "batch_wait"):
                raise ConfigError(f"{name} = {value}: seconds above 0 are accepted (batch_wait: 0 too)")
        if self.voices is not None and not self.voices.is_dir():
            raise ConfigError(f"the folder of voices {self.voices} does not exist: put NAME.wav files there")
        for origin in self.cors:
            if not re.fullmatch(r"\*|[a-z][a-z0-9+.-]*://[^/\s]+", origin):
                raise ConfigError(
                    f"cors = {origin!r}: give an origin, SCHEME://HOST or SCHEME://HOST:PORT, or * for all"
                )
