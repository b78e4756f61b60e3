"""S3Gen's velocity network (Matcha-TTS, arXiv 2309.03199; causal as in CosyVoice 2 §2.3), one rate throughout.

Fourteen stages of a causal resnet and four transformer blocks; only the convolutions know the order of frames.
What does not change between the steps of a solver, the conditions' share of the first stage and the shifts by time,
is computed once.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vokens.models.s3gen.config import S3GenConfig
from vokens.nn.attention import attention
from vokens.nn.conformer import CausalConv, LayerNorm, windowed
from vokens.nn.product import Linear, linear
from vokens.nn.snake import mish
from vokens.nn.streaming import Context, StreamState, with_left_context


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

    def forward(
        self,
        x: Tensor,
        context: Context,
        turn: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
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


@dataclass(frozen=True)
class Conditions:
    """The share of mu, speaker and prompt in what reads x first: here convolution and shortcut, each (B, T, C)."""

    parts: tuple[Tensor, ...]

    def rows(self, count: int) -> "Conditions":
        """Of the first `count` rows of the batch."""
        return Conditions(tuple(part[:count] for part in self.parts))


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
        return Conditions(
            (
                windowed(with_left_context(conv, given, 2, state), conv.weight[:, self.bins :], conv.bias),
                windowed(given, short.weight[:, self.bins :], short.bias),
            )
        )

    def forward(self, x: Tensor, shifts: Tensor, conditions: Conditions, context: Context) -> Tensor:
        """The velocity at x.

        Args:
            x: (B, T, mel_bins). shifts: (B or 1, stages, C), rows of the table from `shifts`.
            conditions: from `conditions`. context: with a stream's state at this evaluation.

        Returns:
            (B, T, mel_bins), zero beyond each row's length.
        """
        state, x = context.state, x.to(conditions.parts[0].dtype)
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
        resnet, (conv, shortcut) = self.first.resnet, conditions.parts
        first = resnet.block1.conv
        y = windowed(with_left_context(first, x, 2, state), first.weight[:, : self.bins]) + conv
        short = windowed(x, resnet.shortcut.weight[:, : self.bins]) + shortcut
        return resnet.finish(resnet.block1.activate(y), short, shift, state)
