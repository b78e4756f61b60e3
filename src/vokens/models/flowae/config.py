"""Sizes of the flow-matching autoencoder."""

from dataclasses import dataclass

from vokens.errors import ConfigError
from vokens.models.dacvae.config import DACVAEConfig


@dataclass(frozen=True)
class FlowAEConfig(DACVAEConfig):
    """DAC-VAE's sizes for the encoder (those of its decoder are unused), and the flow's."""

    flow_width: int = 256  # of the flow's ConvNeXt backbone; kernel_size and expansion are the encoder's
    flow_layers: int = 8
    power: float = 0.3  # compression of the spectra's magnitudes; 1 for none
    steps: int = 4  # of the solver by default

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1 or not 0 < self.power <= 1:
            raise ConfigError(f"steps={self.steps} and power={self.power}: 1 step or more, a power in (0, 1]")
        if self.hop_length % 2:
            raise ConfigError(f"a hop of {self.hop_length} samples must be even: a frame has two spectra")
