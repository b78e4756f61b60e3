"""Sizes of mini."""

from dataclasses import dataclass


@dataclass(frozen=True)
class MiniConfig:
    """Sizes of `mini`. The defaults are the embedded codec: 16 kHz, 50 Hz, 8 x 1024, 4 kbit/s."""

    sample_rate: int = 16000
    n_fft: int = 640  # window of the spectra in and out, samples; spectra are n_fft/4 apart, two to a frame
    width: int = 256  # channels of the backbones
    expansion: int = 3  # channels of their hidden layers, as a multiple
    kernel_size: int = 7  # taps of the depthwise convolutions, in frames
    encoder_layers: int = 5
    decoder_layers: int = 8
    latent_dim: int = 64  # width of the quantized vector
    codebook_size: int = 1024
    num_codebooks: int = 8
    semantic_dim: int = 288  # width of the teacher's features
