"""Losses of codec training: each is one scalar with a name and a unit, weighted by that name.

Reconstruction and distillation follow SpeechTokenizer (2308.16692 section 3.3 and its released trainer), the
other mel scales DAC (2306.06546 section 3.5), hinge and normalised features EnCodec (2210.13438 section 3.4).
The target's spectra are computed without a graph, since nothing flows back to them.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, l1_loss, logsigmoid, pad, relu

from vokens.audio.mel import SPEECHTOKENIZER_LOSSES, LogMel, MelConfig, stft_magnitude
from vokens.errors import ConfigError
from vokens.nn.masks import padding_mask

Logits = Sequence[Tensor]  # of the stacks of one kind of discriminators
Maps = Sequence[Sequence[Tensor]]  # feature maps of each stack


def weighted_sum(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Sum of weights[name] * losses[name]. Every loss needs a weight and every weight a loss.

    A weight of 0 leaves its loss out of the graph. Raises ConfigError naming the keys that do not match.
    """
    without_weight, without_loss = (
        sorted(losses.keys() - weights.keys()),
        sorted(weights.keys() - losses.keys()),
    )
    if without_weight or without_loss or not losses:
        raise ConfigError(
            f"losses and weights must have the same names: no weight for {without_weight}, no loss called "
            f"{without_loss}; losses are {sorted(losses)} (give a weight of 0 to leave one out)"
        )
    terms = [weight * losses[name] for name, weight in weights.items() if weight]
    return torch.stack(terms).sum() if terms else next(iter(losses.values())).new_zeros(())


# Reconstruction: output and target are waves (B, N) or (B, 1, N), full scale 1.


def wave_l1(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference over the samples that both have."""
    samples = min(output.shape[-1], target.shape[-1])
    return l1_loss(output[..., :samples], target[..., :samples])


class MelLoss(nn.Module):
    """Weighted sum over scales of mean |log mel(output) - log mel(target)|; SpeechTokenizer's by default."""

    def __init__(
        self,
        scales: Sequence[MelConfig] = SPEECHTOKENIZER_LOSSES,
        weights: Sequence[float] = (45.0, 1.0, 1.0, 1.0),
    ) -> None:
        super().__init__()
        if len(scales) != len(weights):
            raise ConfigError(f"{len(scales)} mel scales need as many weights, got {len(weights)}")
        self.mels = nn.ModuleList(LogMel(scale) for scale in scales)
        self.weights = tuple(weights)

    def per_scale(self, output: Tensor, target: Tensor) -> list[Tensor]:
        return [spectral_l1(mel, output, target) for mel in self.mels]

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        losses = self.per_scale(output, target)
        return torch.stack([weight * loss for weight, loss in zip(self.weights, losses, strict=True)]).sum()


DAC_WINDOWS = (32, 64, 128, 256, 512, 1024, 2048)


def dac_scales(sample_rate: int, windows: Sequence[int] = DAC_WINDOWS) -> list[MelConfig]:
    """DAC's mel scales: log10, hop a quarter of the window, 5 bands per 32 samples of it; weights all 1."""
    return [
        MelConfig(sample_rate, window, window, window // 4, window * 5 // 32, center=True, log="log10")
        for window in windows
    ]


def dac_mel(sample_rate: int, windows: Sequence[int] = DAC_WINDOWS) -> MelLoss:
    """DAC's mel loss."""
    return MelLoss(dac_scales(sample_rate, windows), [1.0] * len(windows))


def mel_distance(sample_rate: int) -> MelLoss:
    """Mean over three of DAC's scales, by which models are validated."""
    return MelLoss(dac_scales(sample_rate)[3:6], [1 / 3] * 3)


def magnitude(wave: Tensor, n_fft: int) -> Tensor:
    """STFT magnitude (B, F, n_fft / 2 + 1) of waves (B, N), reflected at the ends; Hann window, hop n_fft / 4."""
    beyond = n_fft // 2
    padded = pad(wave.float()[:, None], (beyond, beyond), mode="reflect")[:, 0]
    return stft_magnitude(padded, torch.hann_window(n_fft, device=wave.device), n_fft // 4)


def stft_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean over windows of mean |ln |STFT(output)| - ln |STFT(target)|| (1910.11480), floored at 1e-5 (-100 dB)."""

    def log_magnitude(wave: Tensor, n_fft: int) -> Tensor:
        # Divided by the window's sum, a full-scale sine has magnitude 1/2 at every n_fft.
        return (magnitude(wave, n_fft) / (n_fft / 2)).clamp(min=1e-5).log()

    return torch.stack(_per_window(log_magnitude, output, target, (512, 1024, 2048))).mean()


def linear_stft_loss(output: Tensor, target: Tensor) -> Tensor:
    """Sum over windows of mean |M' - M| + 2 mean |log10 M' - log10 M|, M the STFT magnitude, at least 1e-5 in the log.

    Descript's (and DAC-VAE's optional) spectral distance: unlike log distances alone it weighs loud parts more.
    """

    def both(wave: Tensor, n_fft: int) -> Tensor:
        linear = magnitude(wave, n_fft)
        return torch.stack([2 * linear, 4 * linear.clamp(min=1e-5).log10()])  # the sum as a mean of two

    return torch.stack(_per_window(both, output, target, (2048, 1024))).sum()


def spectrum_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean over windows of mean |X' - Y'|, where X' is the complex STFT with its magnitude to the power 0.3.

    The compressed complex distance of speech enhancement (2008.05214 section 2.3). Unlike log magnitudes it knows
    phase, unlike the wave's L1 it weighs quiet harmonics: without it pitch locks to the decoder's hop.
    """

    def compressed(wave: Tensor, n_fft: int) -> Tensor:
        """(..., 2): real and imaginary parts. The 1e-8 is -80 dB against a full-scale sine's energy per bin."""
        window = torch.hann_window(n_fft, device=wave.device)
        spectrum = torch.fft.rfft(wave.float().unfold(-1, n_fft, n_fft // 4) * window, norm="ortho")
        real, imag = spectrum.real, spectrum.imag
        gain = (real.square() + imag.square() + 1e-8).pow((0.3 - 1) / 2)
        return torch.stack([real * gain, imag * gain], -1)

    return torch.stack(_per_window(compressed, output, target, (512, 1024))).mean()


def spectral_l1(transform: Callable[[Tensor], Tensor], output: Tensor, target: Tensor) -> Tensor:
    """Mean |transform(output) - transform(target)| over waves (B, N) or (B, 1, N) of one length."""
    if output.shape != target.shape:
        raise ConfigError(
            f"output {tuple(output.shape)} and target {tuple(target.shape)} differ in shape: cut one"
        )
    with torch.no_grad():
        target_spectrum = transform(target.flatten(0, -2))
    return l1_loss(transform(output.flatten(0, -2)), target_spectrum)


def _per_window(
    transform: Callable[..., Tensor], output: Tensor, target: Tensor, windows: Sequence[int]
) -> list[Tensor]:
    return [spectral_l1(partial(transform, n_fft=n_fft), output, target) for n_fft in windows]


# Spectral distances of waves by the names that configs give them; that of mels depends on the task.
SPECTRAL: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "stft": stft_loss,
    "linear_stft": linear_stft_loss,
    "spectrum": spectrum_loss,
}


# KL divergence of a posterior N(mean, exp(log_std)^2) from N(0, 1): mean, log_std, flowed (B, D, T); nats summed
# over the D dimensions of a frame, mean over items and frames.


def kl_normal(mean: Tensor, log_std: Tensor) -> Tensor:
    """KL divergence in closed form."""
    return (mean.square() + (2 * log_std).exp() - 2 * log_std - 1).sum(1).mean() / 2


def kl_published(mean: Tensor, log_std: Tensor) -> Tensor:
    """KL divergence as DAC-VAE was trained: with the log standard deviation in place of the log variance."""
    return (mean.square() + log_std.exp() - log_std - 1).sum(1).mean() / 2


def kl_flow(flowed: Tensor, log_std: Tensor) -> Tensor:
    """KL divergence from a flow prior, by one sample z: flowed = f(z) is normal under it, |det df/dz| = 1."""
    return (flowed.square() / 2 - log_std - 0.5).sum(1).mean()


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of x, such as (B, C, T), where a mask that expands to it is not 0."""
    return (x * mask).sum() / mask.expand_as(x).sum().clamp(min=1)


# Distillation: feature (B, T, D) is the student's, target (B, T', D) the teacher's; the longer one is cut.
# lengths (B,): frames of each item; padding beyond them is masked. Cosine eps 1e-8 keeps
# an all-zero column at cosine 0 with a finite gradient.


def d_axis(feature: Tensor, target: Tensor, lengths: Tensor | None = None) -> Tensor:
    """-mean over items and dimensions of ln sigmoid(cosine over time): 0.3133 perfect, 0.6931 unrelated."""
    feature, target, valid = aligned(feature, target, lengths)
    return -logsigmoid(cosine_similarity(feature * valid, target * valid, dim=1, eps=1e-8)).mean()


def t_axis(
    feature: Tensor, target: Tensor, lengths: Tensor | None = None, similarity_weight: float = 1.0
) -> Tensor:
    """Mean |feature - target| - similarity_weight * mean over frames of ln sigmoid(cosine over D)."""
    feature, target, valid = aligned(feature, target, lengths)
    frames = valid.sum().clamp(min=1)
    distance = ((feature - target).abs().mean(2, keepdim=True) * valid).sum() / frames
    similarity = logsigmoid(cosine_similarity(feature, target, dim=2, eps=1e-8))
    return distance - similarity_weight * (similarity * valid[..., 0]).sum() / frames


DISTILLATION = {"d_axis": d_axis, "t_axis": t_axis}


def aligned(feature: Tensor, target: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Feature and target cut to the n frames of the shorter one, and the loss mask (B, n, 1)."""
    if feature.dim() != 3 or feature.shape[::2] != target.shape[::2]:
        raise ConfigError(
            f"feature (B, T, D) and target (B, T', D) must agree in B and D, got {tuple(feature.shape)} "
            f"and {tuple(target.shape)}"
        )
    frames = min(feature.shape[1], target.shape[1])
    feature, target = feature[:, :frames], target[:, :frames]
    if lengths is None:
        return feature, target, feature.new_ones(len(feature), frames, 1)
    mask = padding_mask(lengths.to(feature.device), frames)
    return feature, target, mask[..., None].to(feature.dtype)


class Adversarial(NamedTuple):
    """Adversarial losses: a term's mean over a stack's logits, put together over stacks.

    real, fake: terms of logits that shall rise, and that shall fall. over: of the stacks.
    """

    real: Callable[[Tensor], Tensor]
    fake: Callable[[Tensor], Tensor]
    over: Callable[[Tensor], Tensor]

    def generator(self, fake: Logits) -> Tensor:
        return self.over(torch.stack([self.real(logits).mean() for logits in fake]))

    def discriminator(self, real: Logits, fake: Logits) -> Tensor:
        return self.generator(real) + self.over(torch.stack([self.fake(logits).mean() for logits in fake]))


ADVERSARIAL: Mapping[str, Adversarial] = {
    "least_squares": Adversarial(lambda x: (1 - x).square(), torch.square, torch.sum),
    "hinge": Adversarial(lambda x: relu(1 - x), lambda x: relu(1 + x), torch.mean),
}


def feature_matching(real: Maps, fake: Maps) -> Tensor:
    """2 * sum over all feature maps of mean |D_l(target) - D_l(output)|, as SpeechTokenizer was trained."""
    return 2 * torch.stack([l1_loss(b, a.detach()) for a, b in feature_pairs(real, fake)]).sum()


def normalised_feature_matching(real: Maps, fake: Maps) -> Tensor:
    """Mean over feature maps of mean |D_l(target) - D_l(output)| / mean |D_l(target)|, as in the papers."""
    ratios = [l1_loss(b, a.detach()) / a.detach().abs().mean() for a, b in feature_pairs(real, fake)]
    return torch.stack(ratios).mean()


FEATURE_MATCHING = {"published": feature_matching, "normalised": normalised_feature_matching}


def feature_pairs(real: Maps, fake: Maps) -> list[tuple[Tensor, Tensor]]:
    return [pair for maps in zip(real, fake, strict=True) for pair in zip(maps[0], maps[1], strict=True)]


def relativistic(better: Logits, worse: Logits, truncation: float = 0.04) -> Tensor:
    """HiFTNet's truncated pointwise relativistic loss (arXiv 2309.09493 section 2.4), which only asks which of a pair
    is more real: the sum () over stacks of what makes logits `better` rise above `worse`, one tensor (B, ...) each.

    In a stack the difference is held against its median; only where it is below that there is a loss, the squared
    distance's mean, and no gradient where it exceeds `truncation`. Discriminators call with (target, output), the
    vocoder with (output, target).
    """
    terms = []
    for above, below in zip(better, worse, strict=True):
        difference = above - below
        short = (difference - difference.median()).clamp(max=0)
        mean = short.square().sum() / (short < 0).sum().clamp(min=1)
        terms.append(truncation - relu(truncation - mean))
    return torch.stack(terms).sum()
