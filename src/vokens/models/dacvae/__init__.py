"""DAC-VAE, Learnable-Speech's continuous autoencoder."""

from vokens.models.dacvae.config import DACVAEConfig
from vokens.models.dacvae.latents import Latents
from vokens.models.dacvae.model import DACVAE

__all__ = ["DACVAE", "DACVAEConfig", "Latents"]
