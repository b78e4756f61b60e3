"""HuBERT's features as fairseq computes them, through transformers' HubertModel (arXiv 2106.07447).

SoCodec appends 0.2 s of silence and scales the whole to mean 0 and variance 1, silence included; then it keeps one
frame for every 320 samples begun. What fairseq masks never reaches those frames, so here it is not computed at all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from vokens.errors import needs_extra
from vokens.models.socodec.config import SSL_HOP, SoCodecConfig
from vokens.nn.conv import PlainConv1d
from vokens.nn.masks import padding_mask
from vokens.nn.product import use_in

TAIL = 3200  # zeros that SoCodec appends
SPAN = 400  # samples that one frame sees
STEM_FRAMES = 250  # frames of a pass through the convolutions: 33 MB in the widest


def computable() -> bool:
    """True where transformers is installed, in which HuBERT runs; decoding needs neither."""
    return find_spec("transformers") is not None


class Hubert(nn.Module):
    """Features (B, F, width) of waves at 16 kHz, 50 frames per second: the last layer after its final norm."""

    def __init__(self, config: SoCodecConfig) -> None:
        super().__init__()
        with needs_extra("transformers", "hf", "SoCodec's encoder (HuBERT)"):
            from transformers import HubertConfig, HubertModel
        sizes: dict[str, Any] = {
            "hidden_size": config.hubert_width,
            "num_hidden_layers": config.hubert_layers,
            "num_attention_heads": config.hubert_heads,
            "intermediate_size": config.hubert_hidden,
            "conv_dim": (config.hubert_conv_width,) * 7,
            "feat_extract_norm": "layer",
            "do_stable_layer_norm": True,
            "mask_time_prob": 0.0,  # of training; with 0 there is no unused vector
            "attn_implementation": "sdpa",
        }
        self.model: Any = HubertModel(HubertConfig(**sizes))
        use_in(self.model)
        parametrize.remove_parametrizations(self.model.encoder.pos_conv_embed.conv, "weight")
        for part in self.model.modules():
            if type(part) is nn.Conv1d:
                part.__class__ = PlainConv1d
        if config.hubert_dtype == "float16":
            self.half()

    def forward(self, waves: Sequence[Tensor], frames: Sequence[int]) -> Tensor:
        """Features (B, F, width) float32; of row i, `frames[i]` hold for waves[i], 320 * frames + 80 samples."""
        longest = max(frames)
        stem = self.model.feature_extractor
        padded = nn.utils.rnn.pad_sequence(list(waves), batch_first=True)
        dtype = next(self.parameters()).dtype
        pieces = []
        for start in range(0, longest, STEM_FRAMES):
            end = min(start + STEM_FRAMES, longest)
            pieces.append(stem(padded[:, start * SSL_HOP : (end - 1) * SSL_HOP + SPAN].to(dtype)))
        hidden = self.model.feature_projection(torch.cat(pieces, 2).transpose(1, 2))
        mask = None
        if min(frames) < longest:
            mask = padding_mask(torch.tensor(frames, device=hidden.device), longest)
        return self.model.encoder(hidden, attention_mask=mask).last_hidden_state.float()


def hubert_features(hubert: Hubert, wave: Tensor) -> Tensor:
    """Features (B, width, N / 320) of wave (B, N), N a multiple of 320, each row scaled as a recording of its own."""
    frames = wave.shape[1] // SSL_HOP
    spans = [Scaled.of(row).span(0, SSL_HOP * frames + 80) for row in wave]
    return hubert(spans, [frames] * len(spans)).transpose(1, 2)


@dataclass(frozen=True)
class Scaled:
    """A wave (N,) with the silence appended, as a whole of mean 0 and variance 1, of which only spans are written."""

    wave: Tensor
    mean: float
    gain: float

    @classmethod
    def of(cls, wave: Tensor) -> "Scaled":
        count = len(wave) + TAIL
        mean = float(wave.sum(dtype=torch.float64)) / count
        square = float(torch.linalg.vector_norm(wave, dtype=torch.float64)) ** 2 / count
        return cls(wave, mean, (max(0.0, square - mean * mean) + 1e-5) ** -0.5)

    def span(self, start: int, size: int) -> Tensor:
        """(size,) float32 from sample `start` on; silence follows the wave."""
        part = self.wave[start : start + size].float()
        return (F.pad(part, (0, size - len(part))) - self.mean) * self.gain


def normalised(wave: Tensor) -> Tensor:
    """All of it: (N + 3200,) float32."""
    return Scaled.of(wave).span(0, len(wave) + TAIL)
