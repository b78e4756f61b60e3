"""Accepted forms of a recording: those that `load` reads, and those that torchaudio, soundfile and datasets return."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from torch import Tensor

from vokens.errors import AudioError
from vokens.one_or_list import one_or_list, type_name

Readable = str | Path | bytes | BinaryIO | np.ndarray | Tensor
Source = Readable | tuple[np.ndarray | Tensor, int] | Mapping[str, Any]
ACCEPTED = (
    "a path, bytes, a binary file object, an array or tensor, a pair (array, rate), or a row of datasets with "
    '"array" and "sampling_rate" or with "bytes" or "path"'
)


def is_source(given: Any) -> bool:
    """True for one recording in any of the forms, False for a list of them."""
    readable = isinstance(given, str | Path | bytes | bytearray | memoryview | np.ndarray | Tensor | Mapping)
    return readable or hasattr(given, "read") or hasattr(given, "get_all_samples") or _is_pair(given)


def sources(given: Any) -> list[Source]:
    """One recording or a list of them, as a list. Raises AudioError for anything else."""
    return one_or_list(given, is_source, ACCEPTED, AudioError)


def unpacked(given: Source, rate: int | None) -> tuple[Readable, int | None]:
    """The object to read and, of arrays, its rate in Hz: its own, or `rate`. Raises AudioError where both differ."""
    if not is_source(given):
        raise AudioError(f"{type_name(given)} was given as audio: {ACCEPTED} is accepted")
    if isinstance(given, bytearray | memoryview):
        return bytes(given), rate
    if hasattr(given, "get_all_samples"):  # torchcodec's AudioDecoder, which datasets 4 and later give
        samples = cast(Any, given).get_all_samples()
        given = samples.data, samples.sample_rate
    if isinstance(given, Mapping):
        if given.get("array") is not None and given.get("sampling_rate") is not None:
            given = np.asarray(given["array"]), given["sampling_rate"]
        elif given.get("bytes") is not None or given.get("path") is not None:
            return given["path"] if given.get("bytes") is None else given["bytes"], rate
        else:
            raise AudioError(
                f'{type_name(given)} was given as audio: a row has "array" and "sampling_rate", or "bytes" or '
                '"path"; of a whole example pass its audio column, such as row["audio"]'
            )
    if not _is_pair(given):
        return cast(Readable, given), rate
    wave, own = cast(tuple[np.ndarray, int], given)
    if rate not in (None, own):
        raise AudioError(f"audio of {own} Hz was given with the rate {rate}: leave the rate out")
    return wave, int(own)


def _is_pair(given: Any) -> bool:
    """True for (wave, rate), as torchaudio, soundfile and librosa return it."""
    if not isinstance(given, tuple) or len(given) != 2 or isinstance(given[1], bool):
        return False
    return isinstance(given[0], np.ndarray | Tensor) and isinstance(given[1], int | np.integer)
