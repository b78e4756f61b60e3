"""A reference voice for S3Gen: from a recording to what the flow needs of it, `ref_dict`.

S3 tokens and the 24 kHz mel of what was said, so that the flow continues it, and CAM++'s vector of the voice. Both
rates are resampled from the recording as given, by the published Hann-windowed sinc; rows of a batch are independent.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vokens.audio import LogMel, sinc_resample
from vokens.audio.mel import MEL_24K_80
from vokens.errors import AudioError
from vokens.models.s3tokenizer import S3Tokenizer
from vokens.nn.campplus import CAMPPlus
from vokens.nn.masks import padding_mask

SHORTEST = 0.08  # seconds: one window of the mel, 1920 samples at 24 kHz
RATES = (4000, 768_000)  # Hz; below stand rates in kHz and frame rates
_SILENT, _LOUD = 1e-4, 8.0  # peaks: -80 dB is below 16-bit noise, above 8 are integers that were not scaled
RefDict = dict[str, Any]


@torch.inference_mode()
def embed_ref(
    ref_wav: Tensor | np.ndarray,
    ref_sr: int,
    *,
    tokenizer: S3Tokenizer,
    speaker_encoder: CAMPPlus,
    mel: LogMel | None = None,
    lengths: Tensor | None = None,
    cut_mel: bool = True,
    allow_silent: bool = False,
) -> RefDict:
    """A voice as S3Gen keeps it; made once, used for any number of sentences.

    Args:
        ref_wav: (N,) or (B, N) samples in [-1, 1] at any rate ref_sr.
        tokenizer: S3Tokenizer v2 at 25 Hz; its device is that of the result. mel: `LogMel(MEL_24K_80)`, to keep one.
        lengths: (B,) samples of each row; padding after them has no influence.
        cut_mel: give 2 frames for each token, as CosyVoice does. False cuts tokens only, as Chatterbox does: where a
            recording has an odd number of frames, its speech then starts one frame, 20 ms, late.
        allow_silent: accept recordings of nothing, whose voice means nothing.

    Returns:
        prompt_token (B, P) int64, prompt_token_len (B,), prompt_feat (B, F, 80) float32 log-mels, prompt_feat_len (B,),
        embedding (B, 192) float32, not normalised; zero beyond each row's length. tokenizer: its name.

    Raises:
        AudioError: no floats, other shapes, NaN, shorter than 80 ms, silent, or a rate that is none.
    """
    wave, counts = _check(ref_wav, ref_sr, lengths, allow_silent)
    wave, counts = wave.to(tokenizer.device), counts.to(tokenizer.device)
    wave = wave * padding_mask(counts, wave.shape[1])
    wave16, counts16 = _resample(wave, counts, ref_sr, tokenizer.sample_rate)
    wave24, counts24 = _resample(wave, counts, ref_sr, MEL_24K_80.sample_rate)
    mel = LogMel(MEL_24K_80).to(wave.device) if mel is None else mel
    feat = mel(wave24, counts24).transpose(1, 2)  # (B, F, 80)
    tokens, token_counts = tokenizer.encode_batch(wave16, counts16, 1)
    voices = speaker_encoder.embed([row[:n] for row, n in zip(wave16, counts16.tolist(), strict=True)])
    frames = MEL_24K_80.frames(counts24)
    pairs = torch.minimum(frames // 2, token_counts)
    if cut_mel:
        frames = 2 * pairs
    return {
        "prompt_token": _cut(tokens[:, 0], pairs),
        "prompt_token_len": pairs,
        "prompt_feat": _cut(feat, frames),
        "prompt_feat_len": frames,
        "embedding": voices,
        "tokenizer": tokenizer.name,
    }


def move_ref(ref: Mapping[str, Any], device: torch.device | str, dtype: torch.dtype) -> RefDict:
    """A ref_dict on a device, its floating-point values in dtype; token ids stay integers, `ref` stays as it is.

    In half precision only 3689 (float16) or 846 (bfloat16) of the 6561 ids would survive.
    """
    return {
        key: value.to(device, dtype if value.is_floating_point() else None)
        if isinstance(value, Tensor)
        else value
        for key, value in ref.items()
    }


def _resample(wave: Tensor, counts: Tensor, source: int, target: int) -> tuple[Tensor, Tensor]:
    counts = -(-counts * target // source)
    resampled = sinc_resample(wave, source, target)
    return resampled * padding_mask(counts, resampled.shape[1]), counts  # a filter rings beyond a row's end


def _cut(x: Tensor, counts: Tensor) -> Tensor:
    """(B, T, ...) up to the longest row, zero beyond each row's end."""
    x = x[:, : int(counts.max())]
    inside = padding_mask(counts, x.shape[1])
    return x * inside.reshape(*inside.shape, *(1,) * (x.dim() - 2))


def _check(
    ref_wav: Tensor | np.ndarray, ref_sr: int, lengths: Tensor | None, allow_silent: bool
) -> tuple[Tensor, Tensor]:
    """Samples (B, N) float32 and the length of each row (B,)."""
    if (
        isinstance(ref_sr, bool)
        or not isinstance(ref_sr, int | np.integer)
        or not RATES[0] <= ref_sr <= RATES[1]
    ):
        raise AudioError(f"ref_sr={ref_sr!r} was given: a whole number of Hz from {RATES[0]} to {RATES[1]}")
    wave = torch.as_tensor(ref_wav)
    if wave.dim() not in (1, 2) or not wave.is_floating_point():
        raise AudioError(
            f"a reference of shape {tuple(wave.shape)}, {wave.dtype} was given: (samples,) or (batch, samples) of "
            "floats in [-1, 1] are accepted"
        )
    wave = torch.atleast_2d(wave).float()
    counts = torch.full((len(wave),), wave.shape[1]) if lengths is None else lengths.cpu().long()
    if len(counts) != len(wave) or bool((counts > wave.shape[1]).any()):
        raise AudioError(
            f"lengths {counts.tolist()} were given for references of shape {tuple(wave.shape)}: one for each row, "
            "at most its samples"
        )
    for row, n in enumerate(counts.tolist()):
        if n < SHORTEST * ref_sr:
            raise AudioError(
                f"reference {row} has {n} samples, {n / ref_sr:.3f} s at {ref_sr} Hz: at least {SHORTEST} s are "
                "needed, and 3 s to 10 s serve best"
            )
        samples = wave[row, :n]
        if not bool(samples.isfinite().all()):
            raise AudioError(f"reference {row} holds NaN or infinite samples: read or record it again")
        peak = float(samples.abs().max())
        if peak < _SILENT and not allow_silent:
            raise AudioError(f"reference {row} is silent (peak {peak:.1e}): a recording of a voice is needed")
        if peak > _LOUD:
            raise AudioError(
                f"reference {row} has a peak of {peak:.0f}: samples in [-1, 1] are accepted, so divide 16-bit ones by "
                "32768"
            )
    return wave, counts
