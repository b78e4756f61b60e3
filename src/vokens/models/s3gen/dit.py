"""CosyVoice 3's velocity network, a diffusion transformer (arXiv 2212.09748; CosyVoice 3, arXiv 2505.17589).

Time enters as shift, scale and gate of every block (adaLN-zero), which are a table over the solver's evaluations: 43 %
of the weights see the time alone, and `fix_times` gives them back. Positions come from two causal convolutions and
from a rotation of the first head, as published; the other heads know no order.
"""

from collections.abc import Callable, Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vokens.errors import CheckpointError, ConfigError
from vokens.models.s3gen.config import S3GenConfig
from vokens.models.s3gen.estimator import Attention, Conditions, TimeEmbedding, linear32
from vokens.nn.attention import rotary_rates
from vokens.nn.product import Linear, linear
from vokens.nn.snake import mish
from vokens.nn.streaming import Context, StreamState, with_left_context

GROUPS, TAPS = 16, 31  # of the convolutions that tell positions
TIME_WIDTH = 256
_PARTS = 6  # of a block's modulation: shift, scale, gate of attention, then of the feed-forward

Turn = Callable[[Tensor], Tensor]


def first_head_turn(start: int, count: int, head_width: int, device: torch.device) -> Turn:
    """Rotation of the first head of x (B, H, count, head_width) by the positions from start on, pair by pair of
    neighbouring columns, in float32."""
    places = torch.arange(start, start + count, device=device).float()
    angles = places[:, None] * rotary_rates(head_width, device)
    cosines, sines = angles.cos(), angles.sin()

    def turn(x: Tensor) -> Tensor:
        a, b = x[:, :1].float().unflatten(3, (-1, 2)).unbind(4)
        turned = torch.stack([a * cosines - b * sines, b * cosines + a * sines], 4).flatten(3)
        return torch.cat([turned.to(x.dtype), x[:, 1:]], 1)

    return turn


class PositionConv(nn.Conv1d):
    """Causal convolution in groups of channels, then Mish; (B, T, C) -> (B, T, C)."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, TAPS, groups=GROUPS)

    def forward(self, input: Tensor, state: StreamState | None = None) -> Tensor:
        x = with_left_context(self, input, TAPS - 1, state)
        return mish(super().forward(x.transpose(1, 2)).transpose(1, 2))


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm without weights, in float32, then scale and shift (B or 1, 1, C); in x's type."""
    normed = F.layer_norm(x.float(), x.shape[-1:], eps=1e-6)
    return (normed * (1 + scale) + shift).to(x.dtype)


class Block(nn.Module):
    """Attention and feed-forward, each modulated before and gated after by the time."""

    def __init__(self, config: S3GenConfig) -> None:
        super().__init__()
        width = config.decoder_channels
        heads, head_width = config.decoder_num_heads, config.decoder_attention_head_dim
        self.modulation = _silent(Linear(width, _PARTS * width))
        self.attention = Attention(width, heads, head_width, bias=True)
        self.up = Linear(width, config.decoder_ff_mult * width)
        self.down = Linear(config.decoder_ff_mult * width, width)

    def forward(self, x: Tensor, by: Tensor, context: Context, turn: Turn) -> Tensor:
        """x (B, T, C), by (B or 1, 6, C) -> (B, T, C)."""
        shift, scale, gate, shift2, scale2, gate2 = by[:, :, None].unbind(1)
        x = x + gate * self.attention(modulated(x, shift, scale), context, turn)
        y = F.gelu(self.up(modulated(x, shift2, scale2)), approximate="tanh")
        return x + gate2 * self.down(y)


class DiT(nn.Module):
    """The velocity (B, T, mel_bins) of x (B, T, mel_bins), as `Estimator`."""

    _table: Tensor

    def __init__(self, config: S3GenConfig) -> None:
        super().__init__()
        bins, width = config.mel_bins, config.decoder_channels
        self.bins, self.head_width = bins, config.decoder_attention_head_dim
        self.time = TimeEmbedding(TIME_WIDTH, width, config.meanflow, config.time_scale)
        self.first = Linear(4 * bins, width)
        self.conv1, self.conv2 = PositionConv(width), PositionConv(width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.decoder_num_mid_blocks))
        self.modulation = _silent(Linear(width, 2 * width))
        self.out = Linear(width, bins)
        self._times: list[tuple[float, ...]] = []  # that are kept, where the weights of time are given back
        self.register_buffer("_table", torch.empty(0), persistent=False)

    # Time --------------------------------------------------------------------------------------------------

    def shifts(self, t: Tensor, r: Tensor | None = None) -> Tensor:
        """Table (M, 6 blocks + 2, C) of what times t (M,), and for MeanFlow the ends r (M,), do in each block."""
        if self._times:
            return self._kept(t, r)
        time = F.silu(self.time(t, r))
        layers = [*(block.modulation for block in cast(Iterable[Block], self.blocks)), self.modulation]
        parts = [linear32(layer, time).unflatten(1, (-1, self.out.in_features)) for layer in layers]
        return torch.cat(parts, 1).to(self.out.weight.dtype)

    def fix_times(self, t: Tensor, r: Tensor | None = None) -> None:
        """Keep `shifts` of these times and give back the weights that they come from: no other time from then on,
        no training and no saving."""
        self._table, self._times = self.shifts(t, r), _rows(t, r)
        del self.time, self.modulation
        for block in self.blocks:
            del block.modulation

    def _kept(self, t: Tensor, r: Tensor | None) -> Tensor:
        times = _rows(t, r)
        missing = [row for row in times if row not in self._times]
        if missing:
            raise ConfigError(
                f"times {missing[:3]} were given to a network that fix_steps has fixed to {len(self._times)} others: "
                "give the steps that it was fixed to, or load the model again"
            )
        return self._table[[self._times.index(row) for row in times]]

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        if self._times:
            raise CheckpointError(
                "the weights of time were given back by fix_steps and cannot be saved: load the model again"
            )
        super()._save_to_state_dict(destination, prefix, keep_vars)

    # Velocity ----------------------------------------------------------------------------------------------

    def conditions(
        self, mu: Tensor, speaker: Tensor, prompt: Tensor, state: StreamState | None = None
    ) -> Conditions:
        """The share of mu, prompt (B, T, mel_bins) and speaker (B, mel_bins) in the first layer, its bias included."""
        given = torch.cat([prompt, mu, speaker[:, None].expand_as(mu)], 2)
        return Conditions((linear(given, self.first.weight[:, self.bins :], self.first.bias),))

    def forward(self, x: Tensor, shifts: Tensor, conditions: Conditions, context: Context) -> Tensor:
        """The velocity at x, arguments as of `Estimator`; zero beyond each row's length."""
        (given,) = conditions.parts
        x = linear(x.to(given.dtype), self.first.weight[:, : self.bins]) + given
        x = x + self.conv2(self.conv1(x, context.state), context.state)
        turn = first_head_turn(context.offset, x.shape[1], self.head_width, x.device)
        *table, end = shifts.split([_PARTS] * len(self.blocks) + [2], 1)
        for block, by in zip(self.blocks, table, strict=True):
            x = block(x, by, context, turn)
        scale, shift = end[:, :, None].unbind(1)
        x = self.out(modulated(x, shift, scale))
        return context.clear(x)


def _silent(layer: Linear) -> Linear:
    """A layer that starts at zero, so that a fresh block changes nothing (adaLN-zero)."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _rows(t: Tensor, r: Tensor | None) -> list[tuple[float, ...]]:
    return [*zip(*(x.tolist() for x in (t, r) if x is not None), strict=True)]
