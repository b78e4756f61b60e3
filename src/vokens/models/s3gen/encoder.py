"""S3Gen's token encoders, which look three tokens ahead and double the rate: a conformer (CosyVoice 2 §2.3), or the
look-ahead alone (CosyVoice 3).

Everything but that look-ahead and the attention is causal, so streams and whole utterances share this forward pass.
"""

import math
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from vokens.models.s3gen.config import S3GenConfig
from vokens.nn.conformer import CausalConv, ConformerLayer, LayerNorm, windowed
from vokens.nn.masks import padding_mask
from vokens.nn.product import Linear
from vokens.nn.streaming import Chunks, Context, StreamState


class Embed(nn.Module):
    """Linear, norm, and the transformer's factor sqrt(D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = Linear(width, width)
        self.norm = LayerNorm(width)
        self.scale = math.sqrt(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(x)) * self.scale


class Lookahead(nn.Module):
    """Residual convolutions: the first reads `ahead` tokens of the future, the second two of the past."""

    def __init__(self, width: int, ahead: int, hidden: int) -> None:
        super().__init__()
        self.ahead = ahead
        self.conv1 = nn.Conv1d(width, hidden, ahead + 1)
        self.conv2 = CausalConv(hidden, width, 3)

    def forward(self, x: Tensor, context: int, state: StreamState | None = None) -> Tensor:
        """x (B, T, D), whose last `context` positions are only seen ahead -> (B, T - context, D)."""
        future = F.pad(x, (0, 0, 0, self.ahead - context))
        y = F.leaky_relu(windowed(future, self.conv1.weight, self.conv1.bias), 0.01)
        return x[:, : x.shape[1] - context] + self.conv2(y, state)


class TokenEncoder(nn.Module):
    """Embedded tokens (B, T, D) -> (B, 2 T, D) at the rate of mel frames."""

    def __init__(self, config: S3GenConfig) -> None:
        super().__init__()
        width, heads = config.token_embed_dim, config.encoder_attention_heads
        self.ratio = config.token_mel_ratio

        def layers(count: int) -> nn.ModuleList:
            wider = config.encoder_linear_units
            return nn.ModuleList(ConformerLayer(width, heads, wider) for _ in range(count))

        self.embed = Embed(width)
        self.lookahead = Lookahead(width, config.pre_lookahead_len, config.lookahead_channels)
        self.layers = layers(config.encoder_num_blocks)
        self.up = CausalConv(width, width, 2 * self.ratio + 1)
        self.up_embed = Embed(width)
        self.up_layers = layers(config.encoder_num_up_blocks)
        self.norm = LayerNorm(width)

    def forward(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        *,
        context: int = 0,
        chunks: Chunks | None = None,
        state: StreamState | None = None,
        offset: int = 0,
    ) -> Tensor:
        """Embedded tokens, whole or the next stretch of a stream, to (B, 2 (T - context), D); what is beyond a row's
        length is meaningless.

        Args:
            x: (B, T, D). lengths: (B,) tokens of each row, context included; None where all are T.
            context: how many last tokens of each row are only seen ahead: 0 at the end of an utterance, where
                zeros follow, or pre_lookahead_len.
            chunks: the streaming mask in tokens; None for full attention.
            state: the stream's state. offset: tokens that this stream has encoded, on a border of the chunks.
        """
        frames = None if chunks is None else chunks.scaled(self.ratio)
        x = self.embed(x)
        if lengths is not None:  # or the look-ahead of shorter rows would read the norm's bias in the padding
            x = x * padding_mask(lengths.to(x.device), x.shape[1]).unsqueeze(2)
            lengths = lengths - context
        x = self.lookahead(x, context, state)
        attention = Context.of(x, lengths=lengths, chunks=chunks, offset=offset, state=state)
        for layer in self.layers:
            x = layer(x, attention)
        x = self.up_embed(self.up(x.repeat_interleave(self.ratio, 1), state))
        lengths = None if lengths is None else lengths * self.ratio
        attention = Context.of(x, lengths=lengths, chunks=frames, offset=offset * self.ratio, state=state)
        for layer in self.up_layers:
            x = layer(x, attention)
        return self.norm(x)


class LookaheadEncoder(nn.Module):
    """Embedded tokens (B, T, D) with their look-ahead, each repeated to the rate of frames: (B, 2 T, D)."""

    def __init__(self, config: S3GenConfig) -> None:
        super().__init__()
        self.ratio = config.token_mel_ratio
        width = config.token_embed_dim
        self.lookahead = Lookahead(width, config.pre_lookahead_len, config.lookahead_channels)

    def forward(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        *,
        context: int = 0,
        state: StreamState | None = None,
        **_: Any,
    ) -> Tensor:
        """As `TokenEncoder`; there is no attention that chunks would hide anything from."""
        if lengths is not None:
            x = x * padding_mask(lengths.to(x.device), x.shape[1]).unsqueeze(2)
        return self.lookahead(x, context, state).repeat_interleave(self.ratio, 1)
