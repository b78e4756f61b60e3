"""Sizes of mini."""

from dataclasses import dataclass


@dataclass(frozen=True)
class MiniConfig:
    """Sizes of `mini`. The defaults are the embedded codec: 16 kHz, 50 Hz, 8 x 1024, 4 kbit/s.

    Attributes:
        n_fft: window of the spectra in and out, samples; spectra are n_fft/4 apart, two to a frame.
        width, expansion: channels of the backbones and of their hidden layers, as a multiple.
        kernel_size: taps of the depthwise convolutions, in frames.
        latent_dim: width of the quantized vector. semantic_dim: width of the teacher's features.
    """

    sample_rate: int = 16000
    n_fft: int = 640
    width: int = 256
    expansion: int = 3
    kernel_size: int = 7
    encoder_layers: int = 5
    decoder_layers: int = 8
    latent_dim: int = 64
    codebook_size: int = 1024
    num_codebooks: int = 8
    semantic_dim: int = 288
