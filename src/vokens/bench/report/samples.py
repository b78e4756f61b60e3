"""Players and spectrograms of a recording through every codec, as data URLs inside the page.

Sound is FLAC: lossless, so that artefacts are the codec's. Pictures are PNG files of 256 colours, written here.
"""

import io
import struct
import zlib
from base64 import b64encode
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from vokens.audio import load
from vokens.bench.options import Measure
from vokens.bench.tasks.codecs import labels, resynthesis, token_path
from vokens.bench.tasks.items import NoRecordings, find_items, spaced
from vokens.data.items import Clip
from vokens.errors import VokensError
from vokens.models.codec import Codec
from vokens.picture import log_mel
from vokens.tokens import Tokens

RATE = 16000  # Hz, of all sounds on the page: that of the metrics
_RANGE = 70.0  # dynamic range of a picture in dB
_COLORS = (  # dark to bright, eight stops of a perceptually uniform scale, interpolated linearly
    (0, 0, 4), (40, 17, 89), (101, 26, 128), (158, 47, 127), (213, 72, 104), (246, 118, 92), (254, 183, 122),
    (252, 253, 191),
)  # fmt: skip


# A recording, and the addresses of the sound and the picture of each row; of the recording itself first.
Sample = tuple[Clip, dict[str, tuple[str, str]]]


def samples_of(folder: Path, summary: dict[str, Any], count: int, seconds: float) -> Iterator[Sample]:
    """Recordings of the reconstruction benchmark, evenly spaced; rows that can no longer be opened are left out."""
    chosen = spaced(_items(folder, summary), count)
    waves: dict[str, dict[str, np.ndarray]] = {}
    for item in chosen:
        with suppress(VokensError):  # reported by the benchmark
            waves[item.id] = {"original": load(item.path, RATE)[0]}
    chosen = [item for item in chosen if item.id in waves]
    for model in dict.fromkeys(row["model"] for row in summary["rows"]):
        rows = [row["row"] for row in summary["rows"] if row["model"] == model and row["row"] != "original"]
        if rows:
            _decode(folder, summary, model, rows, chosen, waves)
    for item in chosen:
        outputs = waves[item.id]
        loudest = float(log_mel(outputs["original"][: int(seconds * RATE)], RATE).max())
        yield item, {row: _sound(wave[: int(seconds * RATE)], loudest) for row, wave in outputs.items()}


def _items(folder: Path, summary: dict[str, Any]) -> list[Clip]:
    data, chosen = summary["settings"]["data"], dict(summary["selection"])
    chosen["models"] = ",".join(chosen["models"])
    path = Path(data) if Path(data).exists() else None
    if path is None and data.startswith("/"):
        return []  # the corpus no longer exists
    with suppress(NoRecordings):
        return find_items(Measure(out=folder, data=path, **chosen))
    return []


def _decode(
    folder: Path,
    summary: dict[str, Any],
    model: str,
    rows: list[str],
    items: list[Clip],
    waves: dict[str, dict[str, np.ndarray]],
) -> None:
    """Add the resynthesis of each of a model's rows, from saved tokens, else encoded again."""
    options = Measure(out=folder, models=",".join(summary["selection"]["models"]))
    try:
        codec = Codec.from_pretrained(labels(options).get(model, model), local_files_only=True)
    except (VokensError, OSError):
        return
    for item in items:
        kept = token_path(options, model, item)
        original = waves[item.id]["original"]
        tokens = Tokens.load(kept) if kept.is_file() else None
        if tokens is None or tokens.fingerprint != codec.fingerprint:
            tokens = codec.encode(original, RATE)
        for row in rows:
            waves[item.id][row] = resynthesis(codec, _books(tokens, model, row), len(original))


def _books(tokens: Tokens, model: str, row: str) -> Tokens:
    """The codebooks of a row's label, such as "mini 2-8"; all for a label without."""
    first, _, last = row.removeprefix(model).strip().partition("-")
    if not first.isdigit():
        return tokens
    return tokens.select(int(first) - 1, int(last or first))


def _sound(wave: np.ndarray, loudest: float) -> tuple[str, str]:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(wave, -1, 1), RATE, format="FLAC", subtype="PCM_16")
    picture = png(_shades(log_mel(wave, RATE), loudest))
    return _address("audio/flac", buffer.getvalue()), _address("image/png", picture)


def _shades(mel: np.ndarray, loudest: float) -> np.ndarray:
    """(bands, frames) dB to 0..255, the highest band first, at most 600 frames."""
    step = max(1, -(-mel.shape[1] // 600))
    mel = mel[::-1, : mel.shape[1] // step * step].reshape(len(mel), -1, step).mean(-1)
    return np.clip(255 * (mel - loudest + _RANGE) / _RANGE, 0, 255).round().astype(np.uint8)


def png(shades: np.ndarray) -> bytes:
    """A PNG file of (rows, columns) uint8, through the palette. RFC 2083."""
    height, width = shades.shape
    anchors, places = np.array(_COLORS, float), np.linspace(0, 255, len(_COLORS))
    palette = np.stack([np.interp(np.arange(256), places, column) for column in anchors.T], 1).round()
    lines = b"".join(b"\0" + line.tobytes() for line in shades)
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
        (b"PLTE", palette.astype(np.uint8).tobytes()),
        (b"IDAT", zlib.compress(lines, 9)),
        (b"IEND", b""),
    )
    chunks = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _address(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{b64encode(data).decode()}"
