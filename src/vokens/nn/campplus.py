"""CAM++, the speaker encoder of S3Gen (Wang et al. 2023, "CAM++", 3D-Speaker): 80-bin fbank to an embedding of 192.

A small 2-d residual head over time and frequency, then a densely connected time-delay network in which each
layer gates its output by a mask computed from the mean of the whole utterance and of each 100-frame segment.
Module names are the published ones, so a published state dict loads without a table. In a ragged batch what lies
beyond a row's end is zero wherever a convolution or a mean looks, so rows are independent of each other.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from vokens.audio.fbank import FRAME, HOP, kaldi_fbank
from vokens.batching import batches
from vokens.errors import AudioError
from vokens.nn.masks import padding_mask
from vokens.nn.windows import windows

EMBEDDING = 192
SHORTEST = 720  # samples at 16 kHz: 3 fbank frames, 2 after the strided layer, as a deviation needs
# fbank frames of a batch, and of a piece of a longer recording where frames are independent: 5 minutes, 300 MB in the
# widest layer.
_FRAMES = 30_000
_HEAD_CONTEXT = 10  # frames on either side that ten convolutions of three taps see
_BLOCKS = ((12, 1), (24, 2), (16, 2))  # layers and dilation of the three dense blocks
_GROWTH, _BOTTLENECK, _SEGMENT = 32, 128, 100  # channels, channels, frames


def clear(x: Tensor, mask: Tensor | None) -> Tensor:
    """Zero (B, C, T) or (B, C, F, T) beyond each row's end; mask (B, 1, T) is None where all are T long."""
    if mask is None:
        return x
    return x * (mask if x.dim() == 3 else mask[:, None])


class BatchNormReLU(nn.Module):
    """Batch norm under its published name, then ReLU unless the norm has no gain (the last layer)."""

    def __init__(self, channels: int, last: bool = False) -> None:
        super().__init__()
        self.batchnorm = nn.BatchNorm1d(channels, affine=not last)
        self.last = last

    def forward(self, x: Tensor) -> Tensor:  # (B, C, T)
        x = self.batchnorm(x)
        return x if self.last else F.relu(x)


class BasicResBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut; the stride halves frequency, never time."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, stride=(stride, 1), padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride > 1:
            self.shortcut.append(nn.Conv2d(channels, channels, 1, stride=(stride, 1), bias=False))
            self.shortcut.append(nn.BatchNorm2d(channels))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:  # (B, C, F, T) -> (B, C, F / stride, T)
        y = F.relu(self.bn1(self.conv1(clear(x, mask))))
        return F.relu(self.bn2(self.conv2(clear(y, mask))) + self.shortcut(x))


class Head(nn.Module):
    """Convolutions over frequency and time: (B, 80, T) -> (B, 320, T)."""

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.layer1 = nn.Sequential(BasicResBlock(channels, 2), BasicResBlock(channels, 1))
        self.layer2 = nn.Sequential(BasicResBlock(channels, 2), BasicResBlock(channels, 1))
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=(2, 1), padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if x.shape[-1] <= _FRAMES:
            return self._piece(x, mask)
        plan = windows(x.shape[-1], _FRAMES, _HEAD_CONTEXT)
        masks = [None if mask is None else w.read(mask) for w in plan]
        pieces = [w.cut(self._piece(w.read(x), m)) for w, m in zip(plan, masks, strict=True)]
        return torch.cat(pieces, -1)

    def _piece(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = F.relu(self.bn1(self.conv1(clear(x, mask)[:, None])))
        for block in (*self.layer1, *self.layer2):
            x = block(x, mask)
        return F.relu(self.bn2(self.conv2(clear(x, mask)))).flatten(1, 2)  # (B, 32, 10, T) -> (B, 320, T)


class CAMLayer(nn.Module):
    """Context-aware masking: a local convolution gated by utterance and segment means (section 2.2)."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.linear_local = nn.Conv1d(channels, _GROWTH, 3, padding=dilation, dilation=dilation, bias=False)
        self.linear1 = nn.Conv1d(channels, channels // 2, 1)
        self.linear2 = nn.Conv1d(channels // 2, _GROWTH, 1)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:  # (B, 128, T) -> (B, 32, T)
        x = clear(x, mask)
        whole, segments = x.mean(dim=-1, keepdim=True), _segment_means(x)
        if mask is not None:  # divide by the share of frames that are the row's
            whole = whole / mask.mean(dim=-1, keepdim=True)
            segments = segments / _segment_means(mask).clamp(min=1 / _SEGMENT)
        context = whole + segments.repeat_interleave(_SEGMENT, dim=-1)[..., : x.shape[-1]]
        gate = torch.sigmoid(self.linear2(F.relu(self.linear1(context))))
        return self.linear_local(x) * gate


def _segment_means(x: Tensor) -> Tensor:
    """The last one divides by its true length."""
    return F.avg_pool1d(x, _SEGMENT, _SEGMENT, ceil_mode=True)


class DenseLayer(nn.Module):
    """Bottleneck, then the masked layer; its 32 channels are appended to the input."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.nonlinear1 = BatchNormReLU(channels)
        self.linear1 = nn.Conv1d(channels, _BOTTLENECK, 1, bias=False)
        self.nonlinear2 = BatchNormReLU(_BOTTLENECK)
        self.cam_layer = CAMLayer(_BOTTLENECK, dilation)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:  # (B, C, T) -> (B, C + 32, T)
        pieces = [x] if x.shape[-1] <= _FRAMES else x.split(_FRAMES, dim=-1)
        y = [self.nonlinear2(self.linear1(self.nonlinear1(piece))) for piece in pieces]
        return torch.cat([x, self.cam_layer(torch.cat(y, dim=-1), mask)], dim=1)


class DenseBlock(nn.Sequential):
    """Dense layers, each of which sees the input and what all before it have added."""

    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        for layer in self:
            input = layer(input, mask)
        return input


class LinearUnit(nn.Module):
    """Convolution, norm and ReLU under the names `linear` and `nonlinear`."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, last: bool = False
    ) -> None:
        super().__init__()
        self.linear = nn.Conv1d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
        self.nonlinear = BatchNormReLU(outputs, last=last)

    def forward(self, x: Tensor) -> Tensor:
        return self.nonlinear(self.linear(x))


class Transit(nn.Module):
    """Norm, ReLU and a 1x1 convolution that halves the channels a dense block has gathered."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.nonlinear = BatchNormReLU(channels)
        self.linear = nn.Conv1d(channels, channels // 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.nonlinear(x))


class Statistics(nn.Module):
    """Mean and unbiased standard deviation over time: (B, C, T) -> (B, 2C, 1)."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is None:
            return torch.cat([x.mean(dim=-1), x.std(dim=-1)], dim=1)[..., None]
        count = mask.sum(dim=-1)
        mean = clear(x, mask).sum(dim=-1) / count
        square = clear(x - mean[..., None], mask).square().sum(dim=-1)
        return torch.cat([mean, (square / (count - 1)).sqrt()], dim=1)[..., None]


class CAMPPlus(nn.Module):
    """The published configuration: 6.85 M weights, 80-bin fbank to an embedding (B, 192); meant for eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.head = Head()
        channels = 128
        self.xvector = nn.Sequential()
        self.xvector.add_module("tdnn", LinearUnit(320, channels, kernel=5, stride=2))
        for number, (layers, dilation) in enumerate(_BLOCKS, start=1):
            block = DenseBlock()
            for layer in range(1, layers + 1):
                block.add_module(f"tdnnd{layer}", DenseLayer(channels, dilation))
                channels += _GROWTH
            self.xvector.add_module(f"block{number}", block)
            self.xvector.add_module(f"transit{number}", Transit(channels))
            channels //= 2
        self.xvector.add_module("out_nonlinear", BatchNormReLU(channels))
        self.xvector.add_module("stats", Statistics())
        self.xvector.add_module("dense", LinearUnit(2 * channels, EMBEDDING, last=True))

    def forward(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Embeddings (B, 192), not normalised, of mean-free fbank features (B, F, 80), F >= 3.

        lengths (B,): frames of each row, at least 3; what follows has no influence. None where all have F.
        """
        shortest = features.shape[1] if features.ndim == 3 else 0
        if lengths is not None:
            shortest = min(shortest, *lengths.tolist())
        if shortest < 3 or features.shape[2] != 80:
            raise AudioError(
                f"CAM++ takes features (B, F >= 3, 80), got {tuple(features.shape)}, the shortest row {shortest}"
            )
        mask = None
        if lengths is not None:
            mask = padding_mask(lengths.to(features.device), features.shape[1])[:, None].to(features.dtype)
        tdnn, *middle, statistics, dense = self.xvector
        x = tdnn(clear(self.head(features.transpose(1, 2), mask), mask))
        mask = None if mask is None else mask[..., ::2]
        for layer in middle:
            x = layer(x, mask) if isinstance(layer, DenseBlock) else layer(x)
        return dense(statistics(x, mask))[..., 0]

    @torch.inference_mode()
    def embed(self, waves: Sequence[Tensor], batched: bool | None = None) -> Tensor:
        """Embeddings (B, 192) float32, not normalised, of 16 kHz waves (T,) of any lengths >= 720 samples.

        batched: compute several together. None: not on the CPU, where batches gain nothing.
        """
        for wave in waves:
            if wave.ndim != 1 or len(wave) < SHORTEST:
                raise AudioError(
                    f"CAM++ takes waves (T,) of at least {SHORTEST} samples at 16 kHz, got {tuple(wave.shape)}"
                )
        features = [_features(wave) for wave in waves]
        if batched is False or (batched is None and features[0].device.type == "cpu"):
            return torch.cat([self(each[None]) for each in features])
        vectors = features[0].new_empty(len(features), EMBEDDING)
        for rows in batches([len(each) for each in features], _FRAMES):
            some = [features[row] for row in rows]
            lengths = torch.tensor([len(each) for each in some], device=vectors.device)
            vectors[rows] = self(nn.utils.rnn.pad_sequence(some, batch_first=True), lengths)
        return vectors


# A convolution and the norm after it, of each kind of part.
_NORMED: dict[type, tuple[tuple[str, str], ...]] = {
    Head: (("conv1", "bn1"), ("conv2", "bn2")),
    BasicResBlock: (("conv1", "bn1"), ("conv2", "bn2"), ("shortcut.0", "shortcut.1")),
    DenseLayer: (("linear1", "nonlinear2.batchnorm"),),
    LinearUnit: (("linear", "nonlinear.batchnorm"),),
}


def merge_norms(model: CAMPPlus) -> CAMPPlus:
    """Merge each batch norm into the convolution before it, in place: equal, and a third less work on CPUs.

    The network is then for inference alone: its state dict is no longer the published one.
    """
    for part in list(model.modules()):
        there = dict(part.named_modules())
        for convolution, norm in _NORMED.get(type(part), ()):
            if convolution in there:  # not every shortcut has one
                pair: Any = there[convolution], there[norm]
                part.set_submodule(convolution, fuse_conv_bn_eval(*pair))
                part.set_submodule(norm, nn.Identity())
    for weight in model.head.parameters():  # 3 x 3 over 32 channels takes 0.8 of the time so
        if weight.dim() == 4:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    return model


def _features(wave: Tensor) -> Tensor:
    """Mean-free fbank features (F, 80) of a 16 kHz wave (T,)."""
    frames = 1 + (len(wave) - FRAME) // HOP
    starts = range(0, frames * HOP, _FRAMES * HOP)
    features = torch.cat([kaldi_fbank(wave[start : start + (_FRAMES - 1) * HOP + FRAME]) for start in starts])
    return features - features.mean(dim=0)
