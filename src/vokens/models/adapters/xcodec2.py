"""X-codec 2 (Ye et al. 2025, arXiv 2502.04128) and NeuCodec, after it: one code of 65 536 each 20 ms, 16 kHz in.

A wav2vec2-bert beside the convolutions takes normalised filter banks; ours replace torchaudio's, which
transformers would import. NeuCodec decodes at 24 kHz, where its tokens count samples, and encodes at 16 kHz.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vokens.audio import resample
from vokens.audio.fbank import kaldi_fbank
from vokens.models.adapters.hub import HubCodec, to_whole_frames
from vokens.models.codec import Audio
from vokens.tokens import Tokens

HOP = 320  # samples at 16 kHz


class XCodec2(HubCodec):
    """`vokens.load("HKUSTAudio/xcodec2-hf")`."""

    system = "xcodec2"
    classes = ("Xcodec2Model", "Xcodec2Config")
    margin = HOP // 2  # zeros around the wave that the filter banks see

    def sizes(self, config: Any) -> tuple[int, int, tuple[int, ...]]:
        return config.sampling_rate, config.hop_length, (prod(config.quantization_levels),)

    def encode_row(self, wave: Tensor) -> Tensor:
        # A zero more before filling up is the publishers' way; where N is a multiple of 320 it makes a last frame
        # of silence, which their own mask leaves out, and `num_frames` too.
        wave = to_whole_frames(F.pad(wave, (0, 1)), HOP)
        features = _features(F.pad(wave[:, 0], (self.margin, self.margin))).to(wave.dtype)
        mask = torch.ones(features.shape[:2], dtype=torch.int64, device=wave.device)
        return self.network.encode(wave, features, input_features_mask=mask).audio_codes

    def decode_row(self, codes: Tensor, first_codebook: int) -> Tensor:
        return self.network.decode(audio_codes=codes).audio_values


class NeuCodec(XCodec2):
    """`vokens.load("neuphonic/neucodec")`: encodes 16 kHz, decodes 24 kHz."""

    system = "neucodec"
    classes = ("NeuCodecModel", "NeuCodecConfig")

    def sizes(self, config: Any) -> tuple[int, int, tuple[int, ...]]:
        return config.output_sampling_rate, config.hop_length, (prod(config.quantization_levels),)

    @torch.no_grad()
    def encode(
        self,
        source: Audio | Sequence[Audio],
        sample_rate: int | None = None,
        *,
        num_codebooks: int | None = None,
        batch_seconds: float = 120.0,
    ) -> Tokens:
        """As `Codec.encode`. Lengths are counted at 16 kHz and may be a sample off at 24 kHz."""
        encoder = self._encoder()
        encoder._fingerprint = self.fingerprint
        tokens = encoder.encode(source, sample_rate, num_codebooks=num_codebooks, batch_seconds=batch_seconds)
        num_samples = tokens.num_samples * self.sample_rate // encoder.sample_rate
        return replace(tokens, model=self.name, sample_rate=self.sample_rate, num_samples=num_samples)

    def encode_row(self, wave: Tensor) -> Tensor:
        """Codes of a wave at 24 kHz, for callers of `encode_batch`."""
        encoder = self._encoder()
        return encoder.encode_row(resample(wave, self.sample_rate, encoder.sample_rate))

    def _encoder(self) -> "_Encoder":
        return _Encoder.of(self.network, self.config.values)


class _Encoder(XCodec2):
    """NeuCodec's encoder, at 16 kHz. Its filter banks see no margin, so the wave is padded to whole frames
    first, to keep the last one."""

    margin = 0

    def sizes(self, config: Any) -> tuple[int, int, tuple[int, ...]]:
        return config.input_sampling_rate, config.encoder_hop_length, (prod(config.quantization_levels),)

    def encode_row(self, wave: Tensor) -> Tensor:
        return super().encode_row(to_whole_frames(wave, HOP))


def _features(wave: Tensor) -> Tensor:
    """Two frames of 80 log-mels side by side (B, T, 160), each band of zero mean and unit deviation."""
    mels = kaldi_fbank(wave.float() * 32768, 80)  # (B, F, 80), on the scale of 16-bit integers
    mels = (mels - mels.mean(1, keepdim=True)) / (mels.var(1, keepdim=True) + 1e-7).sqrt()
    return mels[:, : mels.shape[1] // 2 * 2].reshape(len(mels), -1, 160)
