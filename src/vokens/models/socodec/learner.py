"""SoCodec's training pass (arXiv 2409.00933 §3): features and voice to mel and features again; beside it, the vocoder.

The speaker encoder sees shuffled pieces of the recording, so that the voice carries no words. The mel discriminator
follows Mega-TTS's (arXiv 2306.03509 §3.1): a stack per time resolution, on all windows instead of random ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from vokens.models.socodec.causal import CausalConv, ResidualUnit
from vokens.models.socodec.model import SoCodec
from vokens.nn.discriminators import ConvStack

PIECES = 3  # of a voice's clip, which are shuffled
SHORTEST_CLIP = 100  # mel frames, 1 s


@dataclass(frozen=True)
class AnalyzerBatch:
    """Input of the analyzer: `features`, or for a codec on mels None and the encoder reads `wave`."""

    wave: Tensor  # (B, N), N a multiple of hop_length
    features: Tensor | None  # (B, hubert_width, N / 320)
    clips: Tensor  # (B, n_mels, F) of the voices


@dataclass(frozen=True)
class SoCodecOutput:
    """Output of the training pass; the parts that are not trained are None."""

    mel: Tensor | None  # (B, n_mels, N / 160)
    features: Tensor | None  # (B, hubert_width, N / 320) the semantic decoder's
    commit: Tensor | None  # ()
    wave: Tensor | None  # (B, 160 * F) of the vocoder's mels


class SoCodecLearner(nn.Module):
    """A codec in training, with HuBERT's features as input.

    analyzer, semantic, vocoder: parts that are trained; the others are frozen. semantic: the semantic decoder's
    output layer.
    """

    def __init__(
        self, codec: SoCodec, *, analyzer: bool = True, semantic: bool = True, vocoder: bool = True
    ) -> None:
        super().__init__()
        self.codec, self.analyzer, self.semantic = codec, analyzer, semantic
        for part in codec.children():
            part.requires_grad_(vocoder if part is codec.vocoder else analyzer)
        codec.semantic_decoder.last.requires_grad_(analyzer and semantic)

    def forward(
        self,
        batch: AnalyzerBatch,
        *,
        mels: Tensor | None = None,
        keep: Tensor | None = None,
        generator: torch.Generator | None = None,
        quantize: bool = True,
    ) -> SoCodecOutput:
        """Args:
        mels: (B, n_mels, F) for the vocoder. keep, generator, quantize: as in ProductQuantizer.
        """
        wave = None if mels is None else self.codec.vocoder(mels)
        if not self.analyzer:
            return SoCodecOutput(None, None, None, wave)
        codec = self.codec
        quantized = codec.codebooks(self.latent(batch), keep=keep, generator=generator, quantize=quantize)
        voice = codec.speaker(batch.clips).unsqueeze(2)
        hidden = codec.semantic_decoder.hidden(quantized.latent.transpose(1, 2) + voice)
        features = codec.semantic_decoder.last(hidden) if self.semantic else None
        return SoCodecOutput(codec.mel_decoder(hidden + voice), features, quantized.commit, wave)

    @torch.no_grad()
    def start_from(self, batch: AnalyzerBatch) -> None:
        """Data-dependent initialisation (arXiv 1602.07868 §3), with which content reaches the mel from the first step.

        Each channel of each layer has mean 0 and standard deviation 0.5 on this batch, where swish is nearly linear;
        residual branches and outputs have 0.1. Kernel taps on left context are scaled by 0.1, and transposed
        convolutions repeat their column. A linear map from tokens to mels then leaves 47 % of the variance (90 % with
        PyTorch's initialisation), and the plateau of steps 25 to 100 is gone.
        """
        codec = self.codec
        parts = (codec.front, codec.encoder, codec.codebooks, codec.semantic_decoder, codec.mel_decoder)
        modules = [module for part in parts if part is not None for module in part.modules()]
        small = {module.conv2 for module in modules if isinstance(module, ResidualUnit)}
        small |= {codec.semantic_decoder.last, codec.mel_decoder.last}
        hooks = []
        for module in modules:
            if isinstance(module, CausalConv):
                module.weight[..., : -module.stride[0]] *= 0.1
            elif isinstance(module, nn.ConvTranspose1d):
                own = module.stride[0]
                module.weight[..., :own] = module.weight[..., :1]
                module.weight[..., own:] *= 0.1
            if isinstance(module, (CausalConv, nn.ConvTranspose1d, nn.Linear)):
                hook = partial(_to_size, size=0.1 if module in small else 0.5)
                hooks.append(module.register_forward_hook(hook))
        self(batch, quantize=False)
        for hook in hooks:
            hook.remove()

    def latent(self, batch: AnalyzerBatch) -> Tensor:
        """The encoder's output (B, T, width)."""
        features = self.codec.features(batch.wave) if batch.features is None else batch.features
        return self.codec.encoder(features).transpose(1, 2)


def _to_size(module: nn.Module, inputs: object, output: Tensor, size: float) -> Tensor:
    """Forward hook that scales and shifts a layer to output channels of mean 0 and standard deviation `size`."""
    channels = -1 if isinstance(module, nn.Linear) else 1
    others = [axis for axis in range(output.ndim) if axis != channels % output.ndim]
    scale = size / output.std(others, keepdim=True).clamp(min=1e-6)
    mean = output.mean(others, keepdim=True)
    weight, bias = module.get_parameter("weight"), module.get_parameter("bias")
    outputs = 1 if isinstance(module, nn.ConvTranspose1d) else 0
    weight.mul_(scale.view([-1 if axis == outputs else 1 for axis in range(weight.ndim)]))
    bias.sub_(mean.flatten()).mul_(scale.flatten())
    return (output - mean) * scale


def voice_clips(mel: Tensor, frames: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Clips (B, n_mels, F) of mels (B, n_mels, T) with frames (B,) each, that keep the voice but not the words.

    A clip is a quarter to three quarters of its mel, cut in three shuffled pieces; all are repeated to the longest,
    and to 1 s at least.
    """
    clips = []
    for row, size, generator in zip(mel, frames.tolist(), generators, strict=True):
        share, place = torch.rand(2, generator=generator).tolist()
        piece = max(1, int((0.25 + 0.5 * share) * size) // PIECES)
        start = int(place * max(0, size - PIECES * piece))
        order = torch.randperm(PIECES, generator=generator).tolist()
        pieces = [row[:, start + i * piece : start + (i + 1) * piece] for i in order]
        clips.append(torch.cat(pieces, 1))
    longest = max(SHORTEST_CLIP, *(clip.shape[1] for clip in clips))
    return torch.stack([clip.repeat(1, -(-longest // clip.shape[1]))[:, :longest] for clip in clips])


class MelDiscriminator(nn.Module):
    """Patch discriminator of a log-mel (B, n_mels, F), at its own frames and averaged over 2 and 4 of them."""

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        shapes = [(1, channels, 2), (channels, 2 * channels, 2), (2 * channels, 4 * channels, 1)]
        self.stacks = nn.ModuleList(
            ConvStack(
                [weight_norm(nn.Conv2d(a, b, 3, stride, 1)) for a, b, stride in shapes],
                weight_norm(nn.Conv2d(shapes[-1][1], 1, 3, padding=1)),
                slope=0.2,
            )
            for _ in range(3)
        )

    def forward(self, mel: Tensor) -> list[tuple[list[Tensor], list[list[Tensor]]]]:
        scores = []
        for stack in self.stacks:
            logits, features = stack((mel.unsqueeze(1) + 5) / 2.5)
            scores.append(([logits], [features]))
            mel = F.avg_pool1d(mel, 2)
        return scores
