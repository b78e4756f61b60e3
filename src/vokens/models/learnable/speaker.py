"""The learnable speaker encoder (Learnable-Speech; Tortoise's conditioning encoder): log-mel to a unit vector.

One network, as published or corrected: the correction is rotary positions, and padding left out of norm, attention
and pooling. Its attention starts at zero, so that a fresh network is its first layer.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from vokens import audio
from vokens.audio import Source
from vokens.audio.mel import MEL_24K_80, LogMel
from vokens.errors import ConfigError
from vokens.models.learnable.config import SpeakerConfig
from vokens.nn.attention import attention, rotate, rotation
from vokens.nn.masks import padding_mask
from vokens.nn.product import Linear

REFERENCE_RATE = 24000  # Hz
REFERENCE_SECONDS = (0.5, 4.0)  # of a reference in training
_QUIET = 1e-4  # quieter peaks are not normalised: there is no voice


class ReferenceMel(nn.Module):
    """Input of the speaker encoder: log-mels of waves at 24 kHz whose peak is 1."""

    def __init__(self) -> None:
        super().__init__()
        self.mel = LogMel(MEL_24K_80)

    def forward(self, wave: Tensor) -> Tensor:
        """(80, F), 50 frames a second, of a wave (N,), which zeros make half a second long at least."""
        wave = F.pad(wave, (0, max(0, int(REFERENCE_SECONDS[0] * REFERENCE_RATE) - len(wave))))
        return self.mel((wave / wave.abs().max().clamp(min=_QUIET))[None])[0]


def reference_mels(
    sources: Sequence[Source], sample_rate: int | None = None, least: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Log-mels (1, N, 80, F) and frames (1, N) of recordings of one voice, in pieces of 4 s, as in training.

    sample_rate: of arrays. least: the share of a piece below which a recording's last one, if not its only one, is
    left out. Raises ConfigError for no recordings.
    """
    piece, mel, mels = int(REFERENCE_SECONDS[1] * REFERENCE_RATE), ReferenceMel(), []
    for source in sources:
        wave, _ = audio.load(source, REFERENCE_RATE, source_rate=sample_rate)
        parts = torch.from_numpy(wave).split(piece)
        mels += [mel(part).T for part in parts if part is parts[0] or len(part) >= least * piece]
    if not mels:
        raise ConfigError("no recording was given: give at least one")
    lengths = torch.tensor([[len(each) for each in mels]])
    return pad_sequence(mels, batch_first=True).transpose(1, 2)[None], lengths


class SpeakerEncoder(nn.Module):
    """Log-mels (B, n_mels, F) to unit speaker vectors (B, embed_dim)."""

    def __init__(self, config: SpeakerConfig) -> None:
        super().__init__()
        self.config = config
        self.first = nn.Conv1d(config.n_mels, config.width, 1)
        self.attention = nn.ModuleList(AttentionBlock(config) for _ in range(config.layers))
        self.project = Linear(config.width, config.embed_dim)

    def forward(self, mel: Tensor, lengths: Tensor | None = None) -> Tensor:
        """mel (B, n_mels, F), lengths (B,) frames, None for all full; the published network ignores them."""
        mask = None
        if lengths is not None and not self.config.published:
            mask = padding_mask(lengths.clamp(min=1), mel.shape[2])
        x = self.first(mel)
        for block in self.attention:
            x = block(x, mask)
        return F.normalize(self.project(self._pool(x, mask)), dim=-1)

    def _pool(self, x: Tensor, mask: Tensor | None) -> Tensor:
        if self.config.published:
            return x[..., 0]
        if mask is None:
            return x.mean(-1)
        return (x * mask[:, None]).sum(-1) / mask.sum(-1, keepdim=True)

    def many(self, mels: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Unit vectors (B, embed_dim) from N references each: their normalised mean.

        mels (B, N, n_mels, F); lengths (B, N) frames, 0 for a missing reference. A row without any
        gets zeros. The published network ignores lengths here too.
        """
        flat = self(mels.flatten(0, 1), None if lengths is None else lengths.flatten())
        each = flat.unflatten(0, (-1, mels.shape[1]))
        if lengths is not None and not self.config.published:
            each = each * (lengths > 0)[..., None]
        return F.normalize(each.mean(1), dim=-1)


class AttentionBlock(nn.Module):
    """Self-attention over time with a residual; queries, keys and values lie beside each other within each head."""

    def __init__(self, config: SpeakerConfig) -> None:
        super().__init__()
        self.heads, self.positions = config.heads, not config.published
        self.norm = nn.GroupNorm(math.gcd(32, config.width), config.width)
        self.qkv = nn.Conv1d(config.width, 3 * config.width, 1)
        self.out = nn.Conv1d(config.width, config.width, 1)
        for weight in self.out.parameters():
            nn.init.zeros_(weight)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x (B, C, T) -> (B, C, T); mask (B, T) bool is True inside each row."""
        heads = self.qkv(self._normed(x, mask)).unflatten(1, (self.heads, -1)).transpose(2, 3)
        q, k, v = heads.chunk(3, dim=-1)  # (B, H, T, D)
        if self.positions:
            turn = rotation(x.shape[2], q.shape[3], x.device)
            q, k = rotate(q, turn), rotate(k, turn)
        y = attention(q, k, v, None if mask is None else mask[:, None, None])
        return x + self.out(y.transpose(2, 3).flatten(1, 2))

    def _normed(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """GroupNorm in float32, its statistics from the frames inside the mask."""
        weight, bias = self.norm.weight.float(), self.norm.bias.float()
        if mask is None:
            y = F.group_norm(x.float(), self.norm.num_groups, weight, bias, self.norm.eps)
            return y.to(x.dtype)
        groups = x.float().unflatten(1, (self.norm.num_groups, -1))  # (B, G, C / G, T)
        weights = mask[:, None, None].float()
        count = weights.sum(-1, keepdim=True) * groups.shape[2]
        mean = (groups * weights).sum((2, 3), keepdim=True) / count
        variance = ((groups - mean) * weights).square().sum((2, 3), keepdim=True) / count
        y = ((groups - mean) * (variance + self.norm.eps).rsqrt()).flatten(1, 2)
        return (y * weight[:, None] + bias[:, None]).to(x.dtype)
