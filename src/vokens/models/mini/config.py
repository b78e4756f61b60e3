"""Sizes of mini."""

from dataclasses import dataclass

from vokens.checkpoint import later


@dataclass(frozen=True)
class MiniConfig:
    """Sizes of `mini`. The defaults are the embedded codec: 16 kHz, 50 Hz, 8 x 1024, 4 kbit/s."""

    sample_rate: int = 16000
    n_fft: int = 640  # window of the spectra in and out, samples; spectra are n_fft/4 apart, two to a frame
    width: int = 256  # channels of the encoder's backbone
    decoder_width: int | None = later(None)  # of the decoder's; None: as many
    expansion: int = 3  # channels of their hidden layers, as a multiple
    kernel_size: int = 7  # taps of the depthwise convolutions, in frames
    encoder_layers: int = 5
    decoder_layers: int = 8
    fine_layers: int = later(0)  # blocks after them on vectors of each spectrum, at twice the frame rate
    latent_dim: int = 64  # width of the quantized vector
    codebook_size: int = 1024
    num_codebooks: int = 8
    beam: int = later(1)  # chains of codes that encoding keeps, as in `ResidualVectorQuantizer`
    semantic_dim: int = 288  # width of the teacher's features
