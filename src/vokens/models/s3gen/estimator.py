"""S3Gen's velocity networks: `Estimator` (Matcha-TTS, arXiv 2309.03199; causal as in CosyVoice 2 §2.3) and `DiT`, the
diffusion transformer of CosyVoice 3 (arXiv 2212.09748, 2505.17589). What does not change between the steps of a
solver, the conditions' share of the first layer and what times do in each, is computed once.

The first has fourteen stages of a causal resnet and four transformer blocks; only convolutions know the order of
frames. In the second, time is shift, scale and gate of every block (adaLN-zero): 43 % of the weights see the time
alone, and `fix_times` gives them back. Positions come from two causal convolutions and from a rotation of the first
head, as published; the other heads know no order.
"""

import math
from collections.abc import Callable, Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vokens.errors import CheckpointError, ConfigError
from vokens.models.s3gen.config import S3GenConfig
from vokens.nn.attention import attention, rotary_rates
from vokens.nn.conformer import CausalConv, LayerNorm, windowed
from vokens.nn.product import Linear, linear
from vokens.nn.snake import mish
from vokens.nn.streaming import Context, StreamState, with_left_context

GROUPS, TAPS = 16, 31  # of the convolutions that tell positions
TIME_WIDTH = 256
_PARTS = 6  # of a block's modulation: shift, scale, gate of attention, then of the feed-forward

Turn = Callable[[Tensor], Tensor]
# The share of mu, speaker and prompt in what reads x first, each (B, T, C): of `Estimator` convolution and shortcut.
Conditions = tuple[Tensor, ...]


class TimeEmbedding(nn.Module):
    """Times to features, in float32 whatever the weights: 1000 t as an angle is too fine for half precision."""

    def __init__(self, width: int, hidden: int, meanflow: bool, scale: float) -> None:
        super().__init__()
        self.width, self.scale = width, scale
        self.up = Linear(width, hidden)
        self.down = Linear(hidden, hidden)
        self.mixer = Linear(2 * hidden, hidden, bias=False) if meanflow else None

    def forward(self, t: Tensor, r: Tensor | None = None) -> Tensor:
        """t, and for MeanFlow the end r of the step, each (M,) in [0, 1] -> (M, hidden)."""
        features = self._embed(t)
        if self.mixer is None or r is None:
            return features
        return linear32(self.mixer, torch.cat([features, self._embed(r)], 1))

    def _embed(self, t: Tensor) -> Tensor:
        half = self.width // 2
        rates = torch.exp(torch.arange(half, device=t.device).float() * -(math.log(10000.0) / (half - 1)))
        angles = self.scale * t.float()[:, None] * rates
        return linear32(self.down, F.silu(linear32(self.up, torch.cat([angles.sin(), angles.cos()], 1))))


def linear32(layer: nn.Linear, x: Tensor) -> Tensor:
    return linear(x, layer.weight.float(), None if layer.bias is None else layer.bias.float())


class ConvBlock(nn.Module):
    """Causal convolution over three frames, norm over channels, Mish; (B, T, in) -> (B, T, out)."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv = CausalConv(in_channels, channels, 3)
        self.norm = LayerNorm(channels)

    def forward(self, x: Tensor, state: StreamState | None = None) -> Tensor:
        return self.activate(self.conv(x, state))

    def activate(self, x: Tensor) -> Tensor:
        return mish(self.norm(x))


class Resnet(nn.Module):
    """Two convolutions with the time's shift between them, beside a 1x1 convolution."""

    def __init__(self, in_channels: int, channels: int, time_width: int) -> None:
        super().__init__()
        self.block1 = ConvBlock(in_channels, channels)
        self.time = Linear(time_width, channels)
        self.block2 = ConvBlock(channels, channels)
        self.shortcut = CausalConv(in_channels, channels, 1)

    def forward(self, x: Tensor, shift: Tensor, state: StreamState | None = None) -> Tensor:
        """x (B, T, in), shift (B or 1, 1, C) from `shift` -> (B, T, C)."""
        return self.finish(self.block1(x, state), self.shortcut(x), shift, state)

    def finish(self, y: Tensor, short: Tensor, shift: Tensor, state: StreamState | None) -> Tensor:
        return self.block2(y + shift, state) + short

    def shift(self, time: Tensor) -> Tensor:
        """Shifts of the channels by the features of times (M, hidden): (M, C) in the weights' type."""
        return linear32(self.time, mish(time)).to(self.time.weight.dtype)


class Attention(nn.Module):
    """Multi-head self-attention; queries, keys and values come from one product.

    turn: what gives queries and keys (B, H, T, d) positions; nothing by default.
    """

    def __init__(self, width: int, heads: int, head_width: int, bias: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * heads * head_width, bias=bias)
        self.out = Linear(heads * head_width, width)

    def forward(self, x: Tensor, context: Context, turn: Turn | None = None) -> Tensor:
        parts = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (3, B, H, T, d)
        q, kv = parts[0], parts[1:]
        if turn is not None:
            q, kv = turn(q), torch.stack([turn(kv[0]), kv[1]])
        k, v = context.keys_and_values(self, kv)
        y = attention(q, k, v, context.mask)
        return self.out(y.transpose(1, 2).flatten(2))


class Transformer(nn.Module):
    """Pre-norm attention and feed-forward with exact GELU."""

    def __init__(self, width: int, heads: int, head_width: int, wider: int) -> None:
        super().__init__()
        self.norm1 = LayerNorm(width)
        self.attention = Attention(width, heads, head_width)
        self.norm2 = LayerNorm(width)
        self.up = Linear(width, wider * width)
        self.down = Linear(wider * width, width)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        x = x + self.attention(self.norm1(x), context)
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Stage(nn.Module):
    """A resnet and its transformers."""

    def __init__(self, config: S3GenConfig, in_channels: int) -> None:
        super().__init__()
        width, wider = config.decoder_channels, config.decoder_ff_mult
        self.resnet = Resnet(in_channels, width, 4 * width)
        self.blocks = nn.ModuleList(
            Transformer(width, config.decoder_num_heads, config.decoder_attention_head_dim, wider)
            for _ in range(config.decoder_n_blocks)
        )

    def forward(self, x: Tensor, shift: Tensor, context: Context) -> Tensor:
        return self.transform(self.resnet(x, shift, context.state), context)

    def transform(self, x: Tensor, context: Context) -> Tensor:
        for block in self.blocks:
            x = block(x, context)
        return x


class Estimator(nn.Module):
    """The velocity (B, T, mel_bins) of x (B, T, mel_bins), given its conditions and its time."""

    def __init__(self, config: S3GenConfig) -> None:
        super().__init__()
        bins, width = config.mel_bins, config.decoder_channels
        self.bins = bins
        self.time = TimeEmbedding(4 * bins, 4 * width, config.meanflow, config.time_scale)
        self.first = Stage(config, 4 * bins)
        self.first_conv = CausalConv(width, width, 3)
        self.middle = nn.ModuleList(Stage(config, width) for _ in range(config.decoder_num_mid_blocks))
        self.last = Stage(config, 2 * width)
        self.last_conv = CausalConv(width, width, 3)
        self.final = ConvBlock(width, width)
        self.out = CausalConv(width, bins, 1)

    def shifts(self, t: Tensor, r: Tensor | None = None) -> Tensor:
        """Table (M, stages, C) of what times t (M,), and for MeanFlow the ends r (M,), add in each resnet."""
        time = self.time(t, r)
        stages = [self.first, *cast(Iterable[Stage], self.middle), self.last]
        return torch.stack([stage.resnet.shift(time) for stage in stages], 1)

    def conditions(
        self, mu: Tensor, speaker: Tensor, prompt: Tensor, state: StreamState | None = None
    ) -> Conditions:
        """mu, prompt (B, T, mel_bins) and speaker (B, mel_bins), the same at all times of a solver."""
        given = torch.cat([mu, speaker[:, None].expand_as(mu), prompt], 2)
        resnet = self.first.resnet
        conv, short = resnet.block1.conv, resnet.shortcut
        y = windowed(with_left_context(conv, given, 2, state), conv.weight[:, self.bins :], conv.bias)
        return y, windowed(given, short.weight[:, self.bins :], short.bias)

    def forward(self, x: Tensor, shifts: Tensor, conditions: Conditions, context: Context) -> Tensor:
        """The velocity at x (B, T, mel_bins), zero beyond each row's length.

        shifts: (B or 1, stages, C), rows of the table from `shifts`. conditions: from `conditions`.
        context: with a stream's state at this evaluation.
        """
        state, x = context.state, x.to(conditions[0].dtype)
        shift = shifts[:, :, None].unbind(1)
        x = self._first(x, shift[0], conditions, state)
        skip = self.first.transform(x, context)
        x = self.first_conv(skip, state)
        for stage, by in zip(self.middle, shift[1:-1], strict=True):
            x = stage(x, by, context)
        x = self.last(torch.cat([x, skip], 2), shift[-1], context)
        x = self.out(self.final(self.last_conv(x, state), state))
        return context.clear(x)

    def _first(self, x: Tensor, shift: Tensor, conditions: Conditions, state: StreamState | None) -> Tensor:
        """The first resnet, whose input is x beside the conditions."""
        resnet, (conv, shortcut) = self.first.resnet, conditions
        first = resnet.block1.conv
        y = windowed(with_left_context(first, x, 2, state), first.weight[:, : self.bins]) + conv
        short = windowed(x, resnet.shortcut.weight[:, : self.bins]) + shortcut
        return resnet.finish(resnet.block1.activate(y), short, shift, state)


# CosyVoice 3 ---------------------------------------------------------------------------------------------


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

    def conditions(
        self, mu: Tensor, speaker: Tensor, prompt: Tensor, state: StreamState | None = None
    ) -> Conditions:
        """The share of mu, prompt (B, T, mel_bins) and speaker (B, mel_bins) in the first layer, its bias included."""
        given = torch.cat([prompt, mu, speaker[:, None].expand_as(mu)], 2)
        return (linear(given, self.first.weight[:, self.bins :], self.first.bias),)

    def forward(self, x: Tensor, shifts: Tensor, conditions: Conditions, context: Context) -> Tensor:
        """The velocity at x, arguments as of `Estimator`; zero beyond each row's length."""
        (given,) = conditions
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
