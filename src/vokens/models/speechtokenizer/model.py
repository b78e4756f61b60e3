"""SpeechTokenizer (arXiv 2308.16692): a SEANet codec whose first of eight residual codebooks is semantic.

Audio at 16 kHz passes strided convolutions to 50 frames per second, a bidirectional LSTM, and residual
quantization; the decoder mirrors it. Inference runs in spans of time (see spans.py), training in one piece.
"""

import math
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

import vokens.models.speechtokenizer.checkpoint as layout
import vokens.models.speechtokenizer.spans as spans
from vokens import checkpoint
from vokens.errors import CheckpointError
from vokens.models.codec import Codec
from vokens.models.speechtokenizer.config import SpeechTokenizerConfig
from vokens.models.speechtokenizer.network import SEANetDecoder, SEANetEncoder
from vokens.nn.conv import add_weight_norm
from vokens.nn.product import Linear
from vokens.quantize import ResidualVectorQuantizer


class SpeechTokenizer(Codec):
    """Speech to 8 x 50 tokens per second and back. `vokens.load("speechtokenizer_hubert_avg")`."""

    system = "speechtokenizer"
    Config = SpeechTokenizerConfig

    def __init__(self, config: SpeechTokenizerConfig) -> None:
        super().__init__(config)
        self.sample_rate = config.sample_rate
        self.hop_length = math.prod(config.strides)
        self.codebook_sizes = (config.codebook_size,) * config.num_codebooks
        self.encoder = SEANetEncoder(config)
        self.quantizer = ResidualVectorQuantizer(
            config.dimension, config.codebook_size, config.num_codebooks, published=config.published_training
        )
        widths = config.dimension, config.semantic_dim
        self.semantic = nn.Identity() if len(set(widths)) == 1 else Linear(*widths)
        self.decoder = SEANetDecoder(config)

    def latent(self, wave: Tensor) -> Tensor:
        return self.encoder(wave.unsqueeze(1)).transpose(1, 2)

    def synthesis(self, latent: Tensor) -> Tensor:
        return self.decoder(latent.transpose(1, 2)).squeeze(1)

    @torch.inference_mode()
    def encode_batch(self, wave: Tensor, lengths: Tensor, num_codebooks: int) -> tuple[Tensor, Tensor]:
        parts = self.encoder, self.quantizer, self.hop_length
        return spans.encode(*parts, wave, lengths.cpu(), range(num_codebooks)), self.num_frames(lengths)

    @torch.inference_mode()
    def decode_batch(self, codes: Tensor, lengths: Tensor, first_codebook: int) -> Tensor:
        parts = self.decoder, self.quantizer, self.hop_length
        return spans.decode(*parts, codes, lengths.cpu(), first_codebook)

    def add_weight_norm(self) -> Self:
        """Add weight norm to convolutions for training, as published; the function stays the same."""
        add_weight_norm(self)
        return self

    @classmethod
    def remove_weight_norm(cls, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return checkpoint.fold_weight_norm(state)

    @classmethod
    def from_published(cls, state: dict[str, Tensor], config: Any) -> Self:
        """The codec with published weights.

        config: content of the published config.json, or a SpeechTokenizerConfig; None for the released sizes.

        Raises CheckpointError for weights of another activation or of other sizes, missing or unexpected tensors.
        """
        weights: Literal["ELU", "Snake"] = "Snake" if any(n.endswith(".alpha") for n in state) else "ELU"
        if config is None:
            config = SpeechTokenizerConfig(activation=weights)
        elif not isinstance(config, SpeechTokenizerConfig):
            config = SpeechTokenizerConfig.from_published(config)
        if config.activation != weights:
            raise CheckpointError(
                f"activation mismatch: the weights are of the {weights} model, the config says {config.activation!r}; "
                "give the config.json that came with them"
            )
        return cls.with_weights(config, layout.to_ours(checkpoint.fold_weight_norm(state)))

    def to_published(self) -> dict[str, Tensor]:
        """The weights under the published names, with weight norm: what speechtokenizer 1.0.1 loads."""
        return layout.to_published(self.state_dict())
