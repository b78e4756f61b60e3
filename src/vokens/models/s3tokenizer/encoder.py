"""S3Tokenizer's encoder, all four releases: two convolutions, then pre-norm transformer blocks (Whisper's).

v1 adds a table of positions; v2 and v3 rotate queries and keys and give each attention an FSMN memory. Sums over
blocks stay in float32 whatever the matrix products are computed in.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vokens.errors import ConfigError
from vokens.models.s3tokenizer.config import S3TokenizerConfig
from vokens.nn.attention import Rotation, SelfAttention, rotation, sinusoids
from vokens.nn.masks import padding_mask
from vokens.nn.product import Linear


class Norm(nn.LayerNorm):
    """Layer norm in float32, its output in the type of its weights."""

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = self.weight.float(), self.bias.float()
        y = F.layer_norm(input.float(), self.normalized_shape, weight, bias, self.eps)
        return y.to(self.weight.dtype)


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)); x (B, T, D)."""

    def __init__(self, config: S3TokenizerConfig) -> None:
        super().__init__()
        width = config.width
        self.attn_ln = Norm(width, eps=config.attn_eps)
        self.attn = SelfAttention(width, config.heads, config.memory_taps)
        self.mlp_ln = Norm(width, eps=config.mlp_eps)
        self.mlp = nn.Sequential(Linear(width, 4 * width), nn.GELU(), Linear(4 * width, width))

    def forward(self, x: Tensor, mask: Tensor | None, turn: Rotation | None) -> Tensor:
        x = x + self.attn(self.attn_ln(x), mask, turn)
        return x + self.mlp(self.mlp_ln(x))


class S3Encoder(nn.Module):
    """Log-mel (B, n_mels, F) -> float32 hidden states (B, T, D), T = ceil(F / hop)."""

    positions: Tensor | None  # (max_positions, D), stored with the weights as the releases do

    def __init__(self, config: S3TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.conv1 = nn.Conv1d(config.n_mels, config.width, 3, config.first_stride, padding=1)
        self.conv2 = nn.Conv1d(config.width, config.width, 3, 2, padding=1)
        self.register_buffer("positions", None)
        if config.positions == "sinusoid":
            with torch.device("cpu"):  # functions of meta tensors import torch._dynamo, which takes 2 s
                self.positions = sinusoids(config.max_positions, config.width)
            self.positions = self.positions.to(self.conv1.weight.device)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        if config.merge > 1:
            self.norm = Norm(config.width, eps=config.mlp_eps)
            self.merge = nn.Conv1d(config.width, config.width, 3, config.merge, padding=1)

    def forward(self, mel: Tensor, lengths: Tensor | None = None) -> Tensor:
        """lengths (B,): mel frames of each row, at least 1; None where no row is padded.

        Input beyond a row's length is masked, and output there is undefined.
        Raises ConfigError for more tokens than the table of positions has.
        """
        x, lengths = self.trunk(mel, lengths)
        return self.merged(x, lengths)

    def trunk(self, mel: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """States below the merging convolution (B, T, D), T = ceil(F / (2 first_stride)), and their lengths (B,)."""
        x, lengths = self._convolve(mel, lengths)
        mask = None if lengths is None else padding_mask(lengths, x.shape[1])
        turn = None
        if self.positions is None:
            turn = rotation(x.shape[1], self.config.width // self.config.heads, x.device)
        elif x.shape[1] <= len(self.positions):
            x = x + self.positions[: x.shape[1]]
        else:
            raise ConfigError(
                f"{mel.shape[-1]} mel frames are {x.shape[1]} tokens, positions are known for {len(self.positions)}: "
                "encode in windows, as quantize and encode do"
            )
        for block in self.blocks:
            x = block(x, mask, turn)
        return (x if self.config.merge == 1 else self.norm(x).float()), lengths

    def merged(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The trunk's states (B, T, D) -> the tokens' (B, ceil(T / merge), D)."""
        if self.config.merge == 1:
            return x
        if lengths is not None:
            x = x * padding_mask(lengths, x.shape[1]).unsqueeze(2)
        return F.gelu(self.merge(x.transpose(1, 2).to(self.merge.weight.dtype))).transpose(1, 2).float()

    def _convolve(self, mel: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(B, n_mels, F) -> (B, T, D) and the lengths (B,) of its rows."""
        x = mel.to(self.conv1.weight.dtype)
        if lengths is None:
            x = F.gelu(self.conv2(F.gelu(self.conv1(x))))
            return x.transpose(1, 2).float(), None
        x = F.gelu(self.conv1(x * padding_mask(lengths, x.shape[-1]).unsqueeze(1)))
        lengths = (lengths - 1) // self.config.first_stride + 1
        x = F.gelu(self.conv2(x * padding_mask(lengths, x.shape[-1]).unsqueeze(1)))
        return x.transpose(1, 2).float(), (lengths - 1) // 2 + 1
