"""Audio in and out: any common file, bytes or array to float32 mono, and waves to wav, flac, ogg, opus, mp3.

libsndfile reads what it can, by content and not by suffix; PyAV (extra `media`) reads m4a, aac, webm and wma.
Truncated files are refused, though libsndfile itself reads them without a word.
"""

import io
import re
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soundfile
import torch

from vokens.atomic import atomic_write
from vokens.audio.containers import streams
from vokens.audio.resample import check_rate, resample, stream_resampler
from vokens.audio.source import Source, sources, unpacked
from vokens.audio_suffixes import ENCODINGS
from vokens.errors import AudioError, file_errors, needs_extra

MAX_CHANNELS = 8  # 7.1; an array with more rows is a batch
_PCM_CENTRE_AND_SCALE = {"uint8": (128.0, 128.0), "int16": (0.0, 32768.0), "int32": (0.0, 2147483648.0)}
# First bytes of the containers that PyAV may open. No others: FFmpeg's playlists could name further files.
_MEDIA = re.compile(rb"....ftyp|\x1aE\xdf\xa3|0&\xb2u\x8ef\xcf\x11|\xff[\xf0\xf1\xf8\xf9]", re.DOTALL)
_BLOCK = 1 << 16  # samples per call: libsndfile 1.2 overflows its stack on minutes of Vorbis at once


def load(
    source: Source,
    sample_rate: int | None = None,
    *,
    source_rate: int | None = None,
    offset: float = 0.0,
    duration: float | None = None,
) -> tuple[np.ndarray, int]:
    """Read audio as float32 mono (T,) and its sample rate in Hz; channels are averaged.

    source: a path, the bytes of a file, a binary file object, or an array or tensor (T,), (C, T) or (T, C) of
    floats in [-1, 1] or of uint8, int16, int32 PCM; arrays need their `source_rate`. Also (array, rate), and rows
    of datasets: {"array", "sampling_rate"}, {"bytes", "path"}.
    sample_rate: resample to this (soxr HQ); None keeps the rate of the source.
    offset, duration: read only this part, in seconds; it may end early with the audio. Only the part is
    decoded, except that mp3 is decoded from its start, and m4a, aac, webm and wma whole.
    Raises AudioError with a remedy for what cannot be read, is empty, truncated or holds NaN or infinity,
    and MissingExtra where PyAV is needed. Floats beyond 1 are kept as they are.
    """
    if not (offset >= 0.0 and np.isfinite(offset)) or (duration is not None and not duration > 0.0):
        raise AudioError(f"offset must be 0 s or more and duration above 0 s; got {offset} and {duration}")
    source, source_rate = unpacked(source, source_rate)
    if isinstance(source, np.ndarray | torch.Tensor):
        if source_rate is None:
            raise AudioError(
                "an array was given without its rate: pass it in Hz, sample_rate= of a model, source_rate= of "
                "audio.load, or a pair (array, rate)"
            )
        check_rate(source_rate)
        name, rate = "array", source_rate
        wave = _cut(_mono(source), rate, offset, duration)
    else:
        with _open(source) as (file, name):
            wave, rate = _decode(file, name, offset, duration)
        _check_rate_of(name, rate, source_rate)
    if wave.size == 0:
        raise AudioError(f"{name} holds no audio{f' after {offset} s' if offset else ''}")
    _check_finite(wave, name)
    if sample_rate is not None:
        wave, rate = resample(wave, rate, sample_rate), sample_rate
    return np.ascontiguousarray(wave), rate  # torch refuses negative strides


def duration(source: str | Path | bytes | BinaryIO) -> float:
    """Seconds of a recording by its container; decoded only where that states no length. Raises as `load` does."""
    with _open(source) as (file, name):
        return sum(_seconds(stream, name) for stream in streams(file, name))


def load_all(
    given: Source | Iterable[Source], sample_rate: int, source_rate: int | None = None
) -> list[np.ndarray]:
    """Read one recording or each of a list as `load` does: float32 mono (T,) each, at `sample_rate`."""
    return [load(source, sample_rate, source_rate=source_rate)[0] for source in sources(given)]


def save(path: str | Path, wave: np.ndarray | torch.Tensor | Iterator[np.ndarray], sample_rate: int) -> None:
    """Write a wave (T,) or (C, T), or an iterator over pieces of one, clipped to [-1, 1], in the format of the suffix.

    .wav and .flac (16 bit), .ogg (Vorbis), .opus, .mp3. The file appears under its name only when whole; a
    failure leaves an older file unchanged. Raises AudioError for other suffixes, rates that the format lacks,
    empty or non-finite waves, and folders that cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in ENCODINGS:
        raise AudioError(f"cannot write {path.name!r}: the suffix must be one of {', '.join(ENCODINGS)}")
    check_rate(sample_rate)
    container, encoding = ENCODINGS[path.suffix.lower()]
    pieces = (_frames(piece, path) for piece in (wave if isinstance(wave, Iterator) else [wave]))
    first = next(pieces, None)
    if first is None:
        raise AudioError(f"cannot write {path.name!r}: the iterator over pieces was empty; give one or more")
    channels = first.shape[1]
    try:
        with (
            file_errors(AudioError, f"cannot write {str(path)!r}"),
            atomic_write(path) as temporary,
            open(temporary, "wb") as raw,
            soundfile.SoundFile(raw, "w", sample_rate, channels, encoding, None, container) as file,
        ):
            for frames in chain([first], pieces):
                for start in range(0, len(frames), _BLOCK):
                    file.write(frames[start : start + _BLOCK])
    except soundfile.LibsndfileError as error:
        raise AudioError(
            f"cannot write {path.name!r} at {sample_rate} Hz, {channels} channels "
            f"({error.error_string}): opus takes 8, 12, 16, 24 or 48 kHz, mp3 up to 48 kHz and 2 channels; "
            "resample, or write .wav"
        ) from error


def _frames(wave: np.ndarray | torch.Tensor, path: Path) -> np.ndarray:
    """Samples to write, (T, C) in [-1, 1], of a wave (T,) or (C, T)."""
    frames = np.atleast_2d(_floats(wave)).T
    if frames.ndim != 2 or frames.size == 0 or frames.shape[1] > MAX_CHANNELS:
        raise AudioError(f"a wave to save is (T,) or (C, T), C <= {MAX_CHANNELS}; got {np.shape(wave)}")
    if not np.isfinite(frames).all():
        raise AudioError(f"cannot write {path.name!r}: the wave holds NaN or infinite samples")
    return frames.clip(-1.0, 1.0)


@contextmanager
def _open(source: str | Path | bytes | BinaryIO) -> Generator[tuple[BinaryIO, str], None, None]:
    """A seekable binary file, and its name in errors."""
    if isinstance(source, str | Path):
        try:
            file = open(source, "rb")  # noqa: SIM115  (errors of reading it are not of opening it)
        except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
            reason = error.strerror if isinstance(error, OSError) else error
            raise AudioError(f"cannot open {str(source)!r}: {reason}; give the path of audio") from error
        with file:
            yield file, repr(str(source))
    elif isinstance(source, bytes):
        yield io.BytesIO(source), "bytes"
    else:
        name = repr(str(getattr(source, "name", "file object")))
        if isinstance(source, io.TextIOBase):
            raise AudioError(f"{name} is open as text: open it in binary mode ('rb')")
        yield (source if source.seekable() else io.BytesIO(source.read())), name


def blocks(source: Source, sample_rate: int, source_rate: int | None = None) -> Iterator[np.ndarray]:
    """A recording as `load` gives it, float32 mono at `sample_rate`, in consecutive pieces (t,).

    Of formats that libsndfile reads, one piece is in memory at a time. Damage raises AudioError when it is reached.
    """
    source, source_rate = unpacked(source, source_rate)
    if isinstance(source, np.ndarray | torch.Tensor):
        yield load(source, sample_rate, source_rate=source_rate)[0]
        return
    resampler, count = None, 0
    with _open(source) as (file, name):
        for piece, rate in _pieces(file, name, size=_BLOCK):
            _check_rate_of(name, rate, source_rate)
            _check_finite(piece, name)
            count += len(piece)
            if rate != sample_rate:
                resampler = resampler or stream_resampler(rate, sample_rate)
                piece = resampler.resample_chunk(piece)
            yield piece
    if count == 0:
        raise AudioError(f"{name} holds no audio")
    if resampler is not None:
        yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)


def _check_rate_of(name: str, rate: int, source_rate: int | None) -> None:
    if source_rate not in (None, rate):
        raise AudioError(f"{name} has {rate} Hz, not source_rate={source_rate}: leave it out for files")


def _check_finite(wave: np.ndarray, name: str) -> None:
    if not np.isfinite(wave).all():
        raise AudioError(f"{name} holds NaN or infinite samples: repair or replace them (numpy.nan_to_num)")


def _decode(file: BinaryIO, name: str, offset: float, duration: float | None) -> tuple[np.ndarray, int]:
    """Float32 mono (T,) of a part, and its rate."""
    pieces, rates = zip(*_pieces(file, name, offset, duration), strict=True)
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces), rates[0]


def _pieces(
    file: BinaryIO, name: str, offset: float = 0.0, duration: float | None = None, size: int | None = None
) -> Iterator[tuple[np.ndarray, int]]:
    """Consecutive pieces of a part, float32 mono (t,) of at most `size`, each with its rate."""
    rate, skip, remaining = 0, 0, None  # samples before the part, and samples of it still to read
    for stream in streams(file, name):
        with _opened(stream, name) as (frames, stream_rate, read):
            if not rate:
                rate, skip = stream_rate, round(offset * stream_rate)
                remaining = None if duration is None else round(duration * rate)
            elif rate != stream_rate:
                raise AudioError(f"{name} holds streams of {rate} and of {stream_rate} Hz: split it")
            start = min(skip, frames)
            count = frames - start if remaining is None else min(remaining, frames - start)
            for piece in read(start, count, size or max(1, start + count)):
                yield piece, rate
        skip -= start
        remaining = None if remaining is None else remaining - count
        if remaining == 0:
            break


# Samples, their rate, and the pieces (start, count, size) of a part, at least one
_Opened = tuple[int, int, Callable[[int, int, int], Iterable[np.ndarray]]]


@contextmanager
def _opened(stream: BinaryIO, name: str) -> Generator[_Opened, None, None]:
    """One stream, by libsndfile, or by PyAV where libsndfile does not know the container."""
    if _is_media(stream):
        wave, rate = _decode_media(stream, name)
        yield len(wave), rate, lambda start, count, size: [wave[start : start + count]]
        return
    try:
        with _Forwards(stream) as audio:
            yield audio.frames, audio.samplerate, partial(_read, audio, name)
    except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: a file object named *.raw
        reason = getattr(error, "error_string", error)
        raise AudioError(
            f"{name} is not readable audio, or is damaged ({reason}): wav, flac, ogg, opus, mp3 and aiff "
            "are read, and m4a, aac, webm and wma with the extra 'media'"
        ) from error


class _Forwards(soundfile.SoundFile):
    """A SoundFile that does not seek to its own position after each read: in mp3 the next frames would be wrong."""

    def seekable(self) -> bool:
        return False


def _read(audio: soundfile.SoundFile, name: str, start: int, count: int, size: int) -> Iterator[np.ndarray]:
    """Samples of a part, averaged over channels, in pieces of at most `size`: (t,)."""
    # mp3 frames use bits of earlier frames (bit reservoir): after a seek the first ones would be wrong.
    position = 0 if audio.format == "MP3" or not soundfile.SoundFile.seekable(audio) else start
    if position:
        audio.seek(position)
    while True:
        block = min(size, start + count - position)
        frames = audio.read(block, dtype="float32", always_2d=True)  # (t, C)
        if len(frames) < block:
            present = max(0, position + len(frames) - start)
            raise AudioError(f"{name} is truncated: {present} of {count} samples are present")
        frames = frames[max(0, start - position) :]
        position += block
        yield frames[:, 0] if frames.shape[1] == 1 else frames.mean(axis=1)
        if position >= start + count:
            return


def _seconds(stream: BinaryIO, name: str) -> float:
    if _is_media(stream):
        with _track(stream, name) as (container, track):
            if track.duration:
                return float(track.duration * track.time_base)
            if container.duration:
                return container.duration / 1e6  # FFmpeg's AV_TIME_BASE
    with _opened(stream, name) as (frames, rate, _):
        return frames / rate


def _decode_media(file: BinaryIO, name: str) -> tuple[np.ndarray, int]:
    """The first audio track through PyAV, averaged over channels: (T,) and its rate."""
    with _track(file, name) as (container, track):
        from av import AudioResampler

        planar = AudioResampler(format="fltp")  # only the sample format: float32 (C, T)
        pieces = [
            piece.to_ndarray().mean(axis=0)
            for frame in chain(container.decode(track), [None])
            for piece in planar.resample(frame)
        ]
        return np.concatenate(pieces) if pieces else np.zeros(0, np.float32), track.rate


@contextmanager
def _track(file: BinaryIO, name: str) -> Generator[tuple[Any, Any], None, None]:
    """A container opened by PyAV, and its first audio track."""
    with needs_extra("av", "media", f"reading {name} (m4a, aac, webm or wma)"):
        import av
    try:
        with av.open(file, "r", metadata_errors="replace") as container:
            if not container.streams.audio:
                raise AudioError(f"{name} has no audio track")
            yield container, container.streams.audio[0]
    except av.FFmpegError as error:
        raise AudioError(f"{name} is not readable audio, or is damaged ({error.strerror})") from error


def _is_media(stream: BinaryIO) -> bool:
    stream.seek(0)
    head = stream.read(16)
    stream.seek(0)
    return _MEDIA.match(head) is not None


def _floats(wave: np.ndarray | torch.Tensor) -> np.ndarray:
    """Float32 of the same shape; PCM integers are scaled to [-1, 1]."""
    if isinstance(wave, torch.Tensor):
        wave = wave.detach().cpu()
        wave = wave.float().numpy() if wave.is_floating_point() else wave.numpy()  # numpy has no bfloat16
    wave = np.asarray(wave)
    if wave.dtype.kind == "f":
        return wave.astype(np.float32, copy=False)
    if wave.dtype.name not in _PCM_CENTRE_AND_SCALE:
        accepted = ", ".join(_PCM_CENTRE_AND_SCALE)
        raise AudioError(f"samples of {wave.dtype} are no audio: give floats in [-1, 1] or PCM in {accepted}")
    centre, scale = _PCM_CENTRE_AND_SCALE[wave.dtype.name]
    return ((wave.astype(np.float64) - centre) / scale).astype(np.float32)


def _mono(wave: np.ndarray | torch.Tensor) -> np.ndarray:
    """(T,), (C, T) or (T, C) to (T,): the shorter axis of two is the channels."""
    floats = _floats(wave)
    if floats.ndim == 1:
        return floats
    if floats.ndim != 2 or min(floats.shape) > MAX_CHANNELS:
        raise AudioError(
            f"audio of shape {tuple(wave.shape)}: give (T,), or (C, T) with C <= {MAX_CHANNELS}; "
            "pass the items of a batch one by one"
        )
    if floats.size == 0:
        return floats.reshape(-1)
    return floats.mean(axis=0 if floats.shape[0] <= floats.shape[1] else 1)


def _cut(wave: np.ndarray, rate: int, offset: float, duration: float | None) -> np.ndarray:
    start = round(offset * rate)
    return wave[start:] if duration is None else wave[start : start + round(duration * rate)]
