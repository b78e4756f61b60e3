"""The flow-matching autoencoder: DAC-VAE's latents, decoded by a flow."""

from vokens.models.flowae.config import FlowAEConfig
from vokens.models.flowae.model import FlowAE

__all__ = ["FlowAE", "FlowAEConfig"]
