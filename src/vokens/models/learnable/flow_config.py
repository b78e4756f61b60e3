"""Config of Learnable-Speech's second stage: a flow over latents, the speaker encoder, and the autoencoder."""

from dataclasses import dataclass, field, replace
from typing import Any

from vokens.errors import ConfigError
from vokens.models.learnable.config import SpeakerConfig
from vokens.models.s3gen.config import S3GenConfig


def latent_flow(**sizes: Any) -> S3GenConfig:
    """S3Gen's flow over latents: `mel_bins` is the latent dim, token_mel_ratio latents per token, and noise is
    fresh for each utterance."""
    return replace(S3GenConfig(noise="fresh"), **sizes)


@dataclass(frozen=True)
class LearnableFlowConfig:
    """The whole model; the defaults are the published latent dim 80 at 50 Hz from tokens at 25 Hz."""

    # Sizes of the network, mel_bins and token_mel_ratio being those of latents.
    flow: S3GenConfig = field(default_factory=latent_flow)
    # The language model's speaker encoder, a frozen copy of which is inside; None where speaker vectors come from
    # elsewhere, such as CAM++.
    speaker: SpeakerConfig | None = field(default_factory=lambda: SpeakerConfig(published=True))
    # Of each latent dimension, as std: the network works on (z - mean) / std; empty: on z, as published.
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    sample_rate: int = 24000  # of the autoencoder, Hz
    frame_rate: float = 50.0  # its latents per second
    latents: str = ""  # name of the autoencoder; empty, as its fingerprint: any that fits
    latents_fingerprint: str = ""
    tokens: str = ""  # name of the speech tokenizer
    tokens_fingerprint: str = ""

    def __post_init__(self) -> None:
        width = self.flow.mel_bins
        if len(self.mean) != len(self.std) or len(self.mean) not in (0, width):
            raise ConfigError(
                f"mean and std of {len(self.mean)} and {len(self.std)} numbers were given: none, or one for each of "
                f"the {width} latents"
            )
        if self.std and min(self.std) <= 0:
            raise ConfigError(f"std holds {min(self.std)}: a latent that never moves cannot be normalised")
        if self.speaker is not None and self.speaker.embed_dim != self.flow.speaker_embed_dim:
            raise ConfigError(
                f"the speaker encoder makes {self.speaker.embed_dim} numbers and the flow takes "
                f"{self.flow.speaker_embed_dim}: give equal ones"
            )
