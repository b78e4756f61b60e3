"""A voice as users keep it: made once of a recording, with the state of streams after its prompt.

S3 tokens and the 24 kHz mel of what was said, so that the flow continues it, and CAM++'s vector of the voice. Both
rates are resampled from the recording as given, by the published Hann-windowed sinc; rows of a batch are independent.
Published code hands voices around as a dict of tensors, `ref_dict`; both directions stand here.
"""

from collections.abc import Hashable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from vokens.audio import LogMel, sinc_resample
from vokens.audio.mel import MEL_24K_80
from vokens.errors import AudioError, ConfigError, TokensError
from vokens.models.s3gen.flow import MelState, MelStream, TokenToMel, Voice
from vokens.models.s3tokenizer import S3Tokenizer
from vokens.nn.campplus import CAMPPlus
from vokens.nn.masks import padding_mask

SHORTEST = 0.08  # seconds: one window of the mel, 1920 samples at 24 kHz
REFERENCE_SECONDS = 10.0  # of a recording that a voice is made of, as in Chatterbox
RATES = (4000, 768_000)  # Hz; below stand rates in kHz and frame rates
_SILENT, _LOUD = 1e-4, 8.0  # peaks: -80 dB is below 16-bit noise, above 8 are integers that were not scaled
_KEYS = ("prompt_token", "prompt_feat", "embedding")
RefDict = dict[str, Any]


class ReferenceVoice:
    """A voice that remembers its prompt: the second stream of one plan starts without computing it again.

    The memory is of states, each as large as a stream's (`MelState.nbytes`); `forget` frees it.

    tokens: name of the tokenizer of the prompt's tokens, "" where unknown.
    """

    def __init__(self, voice: Voice, tokens: str = "") -> None:
        self.voice, self.tokens = voice, tokens
        # A state's keys are layers: a voice shall not hold a model that nobody else does.
        self._starts: WeakKeyDictionary[TokenToMel, dict[Hashable, MelState]] = WeakKeyDictionary()

    def __reduce__(self) -> tuple[type, tuple[Voice, str]]:
        return type(self), (self.voice, self.tokens)

    @property
    def seconds(self) -> float:
        """Length of the prompt, at 50 mel frames a second."""
        return len(self.voice.mel) / 50

    @property
    def ref_dict(self) -> RefDict:
        """The published form, a batch of one."""
        return {
            "prompt_token": self.voice.tokens[None],
            "prompt_token_len": torch.tensor([len(self.voice.tokens)]),
            "prompt_feat": self.voice.mel[None],
            "prompt_feat_len": torch.tensor([len(self.voice.mel)]),
            "embedding": self.voice.speaker[None],
            "tokenizer": self.tokens,
        }

    def start(self, stream: MelStream) -> MelState:
        """The state after this prompt for streams of this plan; computed once."""
        flow, plan = stream.flow, stream.schedule
        grid = tuple(plan.grid.tolist()), plan.solver, tuple(plan.guidance)
        key = (flow.dtype, flow.device, stream.chunks, stream.noise, grid)
        starts = self._starts.setdefault(flow, {})
        if key not in starts:
            starts[key] = stream.start(self.voice)
        return starts[key]

    def forget(self) -> None:
        """Free the states; also needed after training changed the weights."""
        self._starts.clear()


VoiceLike = ReferenceVoice | Voice | Mapping[str, Any]


def voices_of(given: VoiceLike, spoken: str = "") -> list[ReferenceVoice]:
    """The voices of a ref_dict, one for each row; numpy arrays are accepted in it.

    Raises AudioError for entries that are missing, of other shapes, or of different counts of rows; TokensError for a
    voice whose prompt is known to be of other tokens than those spoken.
    """
    if isinstance(given, Voice):
        return [ReferenceVoice(given)]
    voices = [given] if isinstance(given, ReferenceVoice) else _of_dict(given)
    name = voices[0].tokens if voices else ""
    if name and spoken and name != spoken:
        raise TokensError(
            f"a voice in tokens of {name!r} was given to a model that speaks those of {spoken!r}: tokenize the "
            "recording again with this model's voice()"
        )
    return voices


def _of_dict(given: Mapping[str, Any]) -> list[ReferenceVoice]:
    """Each row of a ref_dict; where it names a tokenizer, as those of `embed_ref` do, so does each voice."""
    if not isinstance(given, Mapping) or any(given.get(key) is None for key in _KEYS):
        keys = sorted(given) if isinstance(given, Mapping) else type(given).__name__
        raise AudioError(f"a voice of {keys} was given: embed_ref makes ref_dict, which has {list(_KEYS)}")
    tokens, mel, speaker = (_tensor(given, key) for key in _KEYS)
    if (tokens.dim(), mel.dim(), speaker.dim()) != (2, 3, 2) or not len(tokens) == len(mel) == len(speaker):
        raise AudioError(
            f"prompt_token {tuple(tokens.shape)}, prompt_feat {tuple(mel.shape)} and embedding "
            f"{tuple(speaker.shape)} were given: (B, P), (B, F, bands) and (B, width) are accepted"
        )
    if tokens.is_floating_point() and bool((tokens != tokens.round()).any()):
        raise AudioError("prompt_token holds fractions: token ids are whole numbers")
    sizes = []
    for key, whole in (("prompt_token_len", tokens.shape[1]), ("prompt_feat_len", mel.shape[1])):
        counts = [whole] * len(tokens) if given.get(key) is None else _tensor(given, key).flatten().tolist()
        if len(counts) != len(tokens) or not all(0 <= n <= whole for n in counts):
            raise AudioError(f"{key} is {counts}: one for each of {len(tokens)} rows, at most {whole}")
        sizes.append([int(n) for n in counts])
    name = given.get("tokenizer") or ""
    return [
        ReferenceVoice(Voice(tokens[row, :n].long(), mel[row, :frames], speaker[row]), name)
        for row, (n, frames) in enumerate(zip(*sizes, strict=True))
    ]


def one_voice(given: VoiceLike, spoken: str = "") -> ReferenceVoice:
    """The only voice of what was given."""
    voices = voices_of(given, spoken)
    if len(voices) != 1:
        raise AudioError(
            f"{len(voices)} voices were given: one is accepted; embed_ref and speak take a batch"
        )
    return voices[0]


def broadcast_voices(voices: list[ReferenceVoice], count: int) -> list[ReferenceVoice]:
    """One voice for each of count utterances."""
    if len(voices) not in (1, count):
        raise ConfigError(f"{len(voices)} voices for {count} utterances: one for all, or one for each")
    return voices * count if len(voices) == 1 else voices


def _tensor(given: Mapping[str, Any], key: str) -> Tensor:
    value = given[key]
    if not isinstance(value, Tensor | np.ndarray):
        raise AudioError(f"{key} is a {type(value).__name__}: a tensor or an array is accepted")
    return torch.as_tensor(value)


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

    Raises AudioError for no floats, other shapes, NaN, shorter than 80 ms, silent, or a rate that is none.
    """
    wave, counts = _check_recording(ref_wav, ref_sr, lengths, allow_silent)
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


def _resample(wave: Tensor, counts: Tensor, source: int, target: int) -> tuple[Tensor, Tensor]:
    counts = -(-counts * target // source)
    resampled = sinc_resample(wave, source, target)
    return resampled * padding_mask(counts, resampled.shape[1]), counts  # a filter rings beyond a row's end


def _cut(x: Tensor, counts: Tensor) -> Tensor:
    """(B, T, ...) up to the longest row, zero beyond each row's end."""
    x = x[:, : int(counts.max())]
    inside = padding_mask(counts, x.shape[1])
    return x * inside.reshape(*inside.shape, *(1,) * (x.dim() - 2))


def _check_recording(
    ref_wav: Tensor | np.ndarray, ref_sr: int, lengths: Tensor | None, allow_silent: bool
) -> tuple[Tensor, Tensor]:
    """Samples (B, N) float32 and the length of each row (B,)."""
    whole = isinstance(ref_sr, int | np.integer) and not isinstance(ref_sr, bool)
    if not whole or not RATES[0] <= ref_sr <= RATES[1]:
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
            raise AudioError(f"reference {row} peaks at {peak:.0f}, not 1: divide 16-bit samples by 32768")
    return wave, counts
