"""Resampling: soxr for arrays, a windowed-sinc filter bank for tensors.

The sinc filter is bit-equal to torchaudio's `transforms.Resample` at its defaults (`functional.resample`
rounds its kernel more, by up to 2.3e-6). Published tokenizers were fed by it: another flips some tokens.
It is one strided convolution whose output channels are the phases of the reduced ratio.
"""

import math
from functools import lru_cache
from typing import overload

import numpy as np
import soxr
import torch
from torch import Tensor
from torch.nn import functional

from vokens.errors import AudioError

ZERO_CROSSINGS = 6  # of the sinc, each side: torchaudio's lowpass_filter_width
MAX_RATE = 10_000_000  # Hz; higher ones come from damaged headers and would fill the memory
ROLLOFF = 0.99  # cutoff, as a share of the lower Nyquist frequency
# Output samples of one convolution, per row: beyond the cache of a CPU nothing is gained, and an hour of
# audio would need its padded copy and its transposed phases at once.
_BLOCK = 1 << 18
_MAX_TAPS = 1 << 25  # 128 MB of float32; the usual rates, 8 to 192 kHz, need less than 2^20


@overload
def resample(wave: np.ndarray, source_rate: int, target_rate: int) -> np.ndarray: ...
@overload
def resample(wave: Tensor, source_rate: int, target_rate: int) -> Tensor: ...
def resample(wave: np.ndarray | Tensor, source_rate: int, target_rate: int) -> np.ndarray | Tensor:
    """Change the sample rate, in Hz, of a wave (..., T).

    Arrays go through soxr (HQ) in float32, tensors through `sinc_resample`.
    Raises AudioError for rates below 1 and for integer waves.
    """
    if isinstance(wave, Tensor):
        return sinc_resample(wave, source_rate, target_rate)
    check_rate(source_rate)
    check_rate(target_rate)
    _check_floating(wave.dtype, wave.dtype.kind == "f")
    wave = wave.astype(np.float32, copy=False)
    if source_rate == target_rate or wave.size == 0:
        return wave
    columns = np.ascontiguousarray(wave.reshape(-1, wave.shape[-1]).T)  # soxr's layout: (T, channels)
    columns = soxr.resample(columns, source_rate, target_rate, quality="HQ")
    return np.ascontiguousarray(columns.T).reshape(*wave.shape[:-1], -1)


def stream_resampler(source_rate: int, target_rate: int) -> soxr.ResampleStream:
    """Streaming soxr resampler of one channel: its `resample_chunk(piece, last)` outputs concatenate to `resample`."""
    check_rate(source_rate)
    check_rate(target_rate)
    return soxr.ResampleStream(source_rate, target_rate, 1, dtype="float32", quality="HQ")


def sinc_resample(wave: Tensor, source_rate: int, target_rate: int) -> Tensor:
    """Resample (..., T) to (..., ceil(T * target_rate / source_rate)) by a Hann-windowed sinc.

    Differentiable, on the device and in the dtype of the wave (half precisions are computed in float32).
    Raises AudioError for rates below 1 or with too small a common divisor, and for integer waves.
    """
    check_rate(source_rate)
    check_rate(target_rate)
    divisor = math.gcd(source_rate, target_rate)
    source, target = source_rate // divisor, target_rate // divisor
    _check_floating(wave.dtype, wave.is_floating_point())
    if source == target or wave.numel() == 0:
        return wave
    dtype = torch.promote_types(wave.dtype, torch.float32)
    rows = wave.reshape(-1, 1, wave.shape[-1]).to(dtype)
    kernel = sinc_kernel(source, target).to(wave.device, dtype)
    width = (kernel.shape[-1] - source) // 2
    hops = wave.shape[-1] // source + 1  # each consumes `source` samples and gives `target`
    step = max(1, _BLOCK // target)
    spans = [(first, min(first + step, hops)) for first in range(0, hops, step)]
    with torch.autocast(wave.device.type, enabled=False):
        blocks = [_filter(rows, kernel, width, *span) for span in spans]
    length = -(-target * wave.shape[-1] // source)
    return torch.cat(blocks, dim=-1)[:, :length].reshape(*wave.shape[:-1], length).to(wave.dtype)


def _filter(rows: Tensor, kernel: Tensor, width: int, first: int, last: int) -> Tensor:
    """Hops first..last of (R, 1, T), with `width` samples of context on both sides: (R, hops * target)."""
    source = kernel.shape[-1] - 2 * width
    start, stop = first * source - width, last * source + width
    window = rows[..., max(start, 0) : stop]
    window = functional.pad(window, (max(-start, 0), stop - max(start, 0) - window.shape[-1]))
    return functional.conv1d(window, kernel, stride=source).transpose(1, 2).flatten(1)


@lru_cache
def sinc_kernel(source: int, target: int) -> Tensor:
    """The filter of each output phase, (target, 1, 2 * width + source), for a ratio in lowest terms."""
    cutoff = ROLLOFF * min(source, target)
    width = math.ceil(ZERO_CROSSINGS * source / cutoff)
    if target * (2 * width + source) > _MAX_TAPS:
        raise AudioError(
            f"the rates share too small a divisor: a ratio of {target}/{source} needs {target} filters of "
            f"{2 * width + source} taps; resample as a numpy array (soxr), or to a rounder rate"
        )
    # The phases are rounded to float32 before the float64 grid is added, as in torchaudio: at 44.1 kHz
    # exact phases move the output by 7e-6.
    phases = (-np.arange(target, dtype=np.float32) / np.float32(target)).astype(np.float64)
    grid = np.arange(-width, width + source) / source
    time = np.clip((phases[:, None] + grid) * cutoff, -ZERO_CROSSINGS, ZERO_CROSSINGS)
    window = np.cos(np.pi * time / (2 * ZERO_CROSSINGS)) ** 2
    kernel = np.sinc(time) * window * (cutoff / source)
    return torch.from_numpy(kernel.astype(np.float32))[:, None]


def check_rate(rate: int) -> None:
    """Raise AudioError unless `rate` is a sample rate in Hz."""
    if not isinstance(rate, int | np.integer) or not 1 <= rate <= MAX_RATE:
        raise AudioError(f"a sample rate is a whole number of Hz from 1 to {MAX_RATE}; got {rate!r}")


def _check_floating(dtype: np.dtype | torch.dtype, floating: bool) -> None:
    if not floating:
        raise AudioError(f"resampling needs floating point samples in [-1, 1], got {dtype}: scale PCM first")
