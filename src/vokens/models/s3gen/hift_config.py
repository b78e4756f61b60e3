"""Sizes of HiFT, the mel-to-wave network of CosyVoice and S3Gen (HiFTNet, arXiv 2309.09493).

Field names and defaults are those of the published `HiFTNetConfig` (the 22.05 kHz network of CosyVoice 1);
`S3GEN_24K` is the 24 kHz network of CosyVoice 2 and Chatterbox, and with source="v3" that of CosyVoice 3.
"""

import math
from dataclasses import dataclass, fields
from typing import Literal

from vokens.errors import ConfigError

_DILATIONS = (1, 3, 5)


@dataclass(frozen=True)
class HiFTNetConfig:
    """Sizes of the vocoder; lists are accepted where tuples stand.

    Attributes:
        in_channels: mel bands. base_channels: width before the first upsampling, halved at each.
        nb_harmonics: overtones of the source beside the fundamental.
        sampling_rate: of the wave, Hz.
        nsf_alpha: amplitude of the sines. nsf_sigma: deviation of the noise on voiced samples.
        nsf_voiced_threshold: Hz; frames at or below it are unvoiced.
        upsample_rates, upsample_kernel_sizes: of the transposed convolutions.
        istft_n_fft, istft_hop_len: of the spectra that the network predicts, in samples.
        resblock_kernel_sizes, resblock_dilation_sizes: of the blocks after each upsampling, whose mean is taken.
        source_resblock_kernel_sizes, source_resblock_dilation_sizes: of the source's block at each upsampling.
        lrelu_slope: before each upsampling. audio_limit: the wave is clamped to +- this.
        f0_predictor_in_channels, f0_predictor_cond_channels: of the pitch predictor.
        source: which sines: "v1" accumulates phase sample by sample (Chatterbox, CosyVoice 1), "v2" at the
            centres of frames with straight lines between (CosyVoice 2): their weights are interchangeable. "v3" holds
            the phase over a frame, its noise is uniform in [0, 1), and the network is causal but for a look-ahead of
            three frames in pitch and of four in mel (CosyVoice 3).
        arithmetic: of pitch and phase. "exact" is float64, so that neither batches nor minutes change anything.
            "published" is float32, whose rounding moves the source of a 170 Hz voice by up to 1e-4 (v1) or 5e-4 (v2)
            after 2 s and more later, and cannot be streamed: for comparison with published code.
    """

    in_channels: int = 80
    base_channels: int = 512
    nb_harmonics: int = 8
    sampling_rate: int = 22050
    nsf_alpha: float = 0.1
    nsf_sigma: float = 0.003
    nsf_voiced_threshold: float = 10.0
    upsample_rates: tuple[int, ...] = (8, 8)
    upsample_kernel_sizes: tuple[int, ...] = (16, 16)
    istft_n_fft: int = 16
    istft_hop_len: int = 4
    resblock_kernel_sizes: tuple[int, ...] = (3, 7, 11)
    resblock_dilation_sizes: tuple[tuple[int, ...], ...] = (_DILATIONS,) * 3
    source_resblock_kernel_sizes: tuple[int, ...] = (7, 11)
    source_resblock_dilation_sizes: tuple[tuple[int, ...], ...] = (_DILATIONS,) * 2
    lrelu_slope: float = 0.1
    audio_limit: float = 0.99
    f0_predictor_in_channels: int = 80
    f0_predictor_cond_channels: int = 512
    source: Literal["v1", "v2", "v3"] = "v1"
    arithmetic: Literal["exact", "published"] = "exact"

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list | tuple):
                frozen = tuple(tuple(item) if isinstance(item, list) else item for item in value)
                object.__setattr__(self, field.name, frozen)
        for name, accepted in (("source", ("v1", "v2", "v3")), ("arithmetic", ("exact", "published"))):
            if getattr(self, name) not in accepted:
                raise ConfigError(f"{name}={getattr(self, name)!r} was given: {accepted} are accepted")
        stages = len(self.upsample_rates)
        for name in (
            "upsample_kernel_sizes",
            "source_resblock_kernel_sizes",
            "source_resblock_dilation_sizes",
        ):
            if len(getattr(self, name)) != stages:
                raise ConfigError(
                    f"{name} has {len(getattr(self, name))} entries: upsample_rates has {stages}"
                )
        if len(self.resblock_kernel_sizes) != len(self.resblock_dilation_sizes):
            raise ConfigError(
                f"{len(self.resblock_kernel_sizes)} resblock_kernel_sizes and "
                f"{len(self.resblock_dilation_sizes)} resblock_dilation_sizes were given: one each is needed"
            )
        kernels = (*self.resblock_kernel_sizes, *self.source_resblock_kernel_sizes)
        if any(kernel % 2 == 0 for kernel in kernels):
            raise ConfigError(f"resblock kernels {kernels} were given: odd sizes are accepted")
        pairs = list(zip(self.upsample_kernel_sizes, self.upsample_rates, strict=True))
        if not self.causal and any(kernel < rate or (kernel - rate) % 2 for kernel, rate in pairs):
            raise ConfigError(
                f"upsampling {pairs} (kernel, rate): a kernel is its rate and an even number more"
            )
        if self.base_channels % 2**stages:
            raise ConfigError(f"base_channels={self.base_channels} is halved {stages} times: use a multiple")
        if self.istft_n_fft % (2 * self.istft_hop_len):
            raise ConfigError(
                f"istft_n_fft={self.istft_n_fft} must be a multiple of twice istft_hop_len={self.istft_hop_len}"
            )
        if self.f0_predictor_in_channels != self.in_channels:
            raise ConfigError(
                f"f0_predictor_in_channels={self.f0_predictor_in_channels} must be in_channels={self.in_channels}"
            )

    @property
    def causal(self) -> bool:
        """Whether convolutions read the past alone, but for the look-ahead of pitch and mel."""
        return self.source == "v3"

    @property
    def hop_length(self) -> int:
        """Samples per mel frame."""
        return math.prod(self.upsample_rates) * self.istft_hop_len

    @property
    def widths(self) -> tuple[int, ...]:
        """Columns per mel frame at each resolution of the network: mel, after each upsampling."""
        return tuple(math.prod(self.upsample_rates[:stage]) for stage in range(len(self.upsample_rates) + 1))


S3GEN_24K = HiFTNetConfig(
    sampling_rate=24000,
    upsample_rates=(8, 5, 3),
    upsample_kernel_sizes=(16, 11, 7),
    source_resblock_kernel_sizes=(7, 7, 11),
    source_resblock_dilation_sizes=(_DILATIONS,) * 3,
)
