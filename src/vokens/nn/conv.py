"""SEANet's convolutions (SoundStream, arXiv 2107.03312; as in EnCodec): centred, with reflected borders.

A stride-s convolution gives ceil(N / s) frames, a transposed one s * N samples. In a right-padded batch every
row is reflected at its own end, independent of the other rows; only the few border columns are gathered.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from vokens.nn.float32 import Float32Conv1d
from vokens.nn.masks import padding_mask


def conv_side_by_side(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
) -> Tensor:
    """F.conv1d with channels side by side in memory, which oneDNN wants; so is its result. Shapes stay (B, C, N)."""
    x, weight = (t.unsqueeze(2).contiguous(memory_format=torch.channels_last) for t in (x, weight))
    return F.conv2d(x, weight, bias, (1, stride), (0, padding), (1, dilation), groups).squeeze(2)


class PlainConv1d(nn.Conv1d):
    """`nn.Conv1d`, in bfloat16 on the CPU with channels side by side: 190 to 630 GFLOP/s of a core with AMX, where
    torch's layout reaches 36 to 620 and float32 13 to 78. Of one input channel the layout is the same."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        half = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else input.dtype
        # Of 2 to 15 channels torch 2.13's bfloat16 convolutions by kernels of 16, 24, 32... give noise (AMX).
        noisy = half == torch.bfloat16 and 1 < weight.shape[1] < 16 <= weight.shape[2]
        if noisy and input.device.type == "cpu":
            with torch.autocast("cpu", enabled=False):
                bias = bias if bias is None else bias.float()
                return super()._conv_forward(input.float(), weight.float(), bias).to(half)
        if input.dtype != torch.bfloat16 or input.device.type != "cpu" or weight.shape[1] == 1:
            return super()._conv_forward(input, weight, bias)
        (stride,), (dilation,), padding = self.stride, self.dilation, int(self.padding[0])
        return conv_side_by_side(input, weight, bias, stride, padding, dilation, self.groups)


class Conv1d(PlainConv1d):
    """(B, in, N) -> (B, out, ceil(N / stride)); the odd column of the padding goes to the left."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, dilation: int = 1
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride=stride, dilation=dilation)
        padding = (kernel_size - 1) * dilation - (stride - 1)
        self.right = padding // 2
        self.left = padding - self.right

    def forward(self, input: Tensor, lengths: Tensor | None = None) -> Tensor:
        if self.left + self.right + self.stride[0] > 1:
            input = reflect(input, self.left, self.right, self.stride[0], lengths)
        return super().forward(input)


class LastConv1d(Float32Conv1d, Conv1d):
    pass


class Upsample(nn.Module):
    """(B, in, N) -> (B, out, stride * N): a transposed convolution without its overhang, whose odd column is left."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose1d(in_channels, out_channels, kernel_size, stride=stride)
        self.stride = stride
        self.left = kernel_size - stride - (kernel_size - stride) // 2

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        if lengths is not None:  # the kernel of the frame after a row's end reaches back into it: zeros there
            x = x.masked_fill(~padding_mask(lengths.to(x.device), x.shape[2]).unsqueeze(1), 0.0)
        return self.up(x).narrow(2, self.left, self.stride * x.shape[2])


def reflect(x: Tensor, left: int, right: int, stride: int, lengths: Tensor | None = None) -> Tensor:
    """Rows of x (B, C, N) with reflected borders: left and right columns, and what fills the last stride.

    A row shorter than its border is first continued with zeros, so that there is something to mirror.
    With lengths (B,), each row ends at its own; what follows a row's right border is meaningless.
    """
    size = x.shape[2]
    fill = -size % stride
    if lengths is None and size > max(left, right + fill):
        return F.pad(x, (left, right + fill), mode="reflect")
    if lengths is None:
        lengths = torch.full((len(x),), size, device=x.device)
    rows = lengths.to(x.device)[:, None]
    extent = torch.maximum(rows, 1 + torch.maximum(torch.tensor(left), right + (-rows % stride)))
    before = torch.arange(left, 0, -1, device=x.device).expand(len(x), -1)
    after = rows + torch.arange(right + stride - 1, device=x.device)  # (B, right + stride - 1) positions
    mirrored = torch.where(after < extent, after, 2 * (extent - 1) - after)
    # The widest border of a shorter row may reach past the batch.
    padded = F.pad(x, (left, right + fill + stride))
    padded[..., :left] = _columns(x, before, rows)
    where = (left + after).unsqueeze(1).expand(-1, x.shape[1], -1)
    return padded.scatter_(2, where, _columns(x, mirrored, rows)).narrow(2, 0, left + size + right + fill)


def _columns(x: Tensor, index: Tensor, rows: Tensor) -> Tensor:
    """(B, C, M): columns of x (B, C, N) at index (B, M), zero where the row has already ended."""
    inside = (index >= 0) & (index < rows)
    index = torch.where(inside, index, 0).unsqueeze(1).expand(-1, x.shape[1], -1)
    return x.gather(2, index) * inside.unsqueeze(1)


def add_weight_norm(module: nn.Module) -> None:
    """Train every convolution inside with weight norm (arXiv 1602.07868), over all axes of the kernel but the first."""
    for conv in [part for part in module.modules() if isinstance(part, nn.Conv1d | nn.ConvTranspose1d)]:
        weight_norm(conv)
