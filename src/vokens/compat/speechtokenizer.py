"""Drop-in interface of the package `speechtokenizer` 1.0.1.

    from vokens.compat.speechtokenizer import SpeechTokenizer
    model = SpeechTokenizer.load_from_checkpoint("config.json", "SpeechTokenizer.pt")
    codes = model.encode(wave)  # (n_q, B, T) for wave (B, 1, N) at 16 kHz

Differences: models load in evaluation mode, and evaluation never changes codebooks (there, uninitialised codebooks are
fitted even in evaluation).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vokens import checkpoint
from vokens.models.speechtokenizer import SpeechTokenizer as Codec
from vokens.models.speechtokenizer import SpeechTokenizerConfig, spans


class SpeechTokenizer(nn.Module):
    """Published calling convention of a codec.

    Args:
        model: a codec of `vokens.load`, or the content of a published config.json for random weights that train as
            published, with weight norm. `model.codec.to_published()` gives the weights under the published names.
    """

    def __init__(self, model: Codec | Mapping[str, Any]) -> None:
        super().__init__()
        if not isinstance(model, Codec):
            config = replace(SpeechTokenizerConfig.from_published(model), published_training=True)
            model = Codec(config).add_weight_norm()
        self.codec = model
        self.sample_rate = model.sample_rate
        self.downsample_rate = model.hop_length
        self.n_q = model.num_codebooks
        self.train(model.training)

    @classmethod
    def load_from_checkpoint(cls, config_path: str | Path, ckpt_path: str | Path) -> "SpeechTokenizer":
        """The model of a published config.json and its weights, in evaluation mode."""
        config = SpeechTokenizerConfig.from_published(config_path)
        return cls(Codec.from_published(checkpoint.read_state_dict(ckpt_path), config))

    def forward(
        self, x: Tensor, n_q: int | None = None, layers: Sequence[int] = (0,)
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Resynthesis (B, 1, hop * T), commitment loss (), semantic feature (B, T, S) of x (B, 1, N).

        The feature is that of the lowest of `layers`, whatever their order. Codebooks learn in training mode.

        Raises:
            IndexError: no layers. ValueError: a layer beyond n_q codebooks, or x not (B, 1, N).
        """
        n_q = n_q or self.n_q
        if not layers:
            raise IndexError("layers=[] leaves no feature to return: give at least one layer, e.g. [0]")
        self._check_layers(layers, n_q)
        quantized = self.codec.quantizer(self._latent(x), n_q)
        feature = self.codec.semantic(quantized.parts[min(layers)])
        return self.codec.synthesis(quantized.latent).unsqueeze(1), quantized.commit.mean(), feature

    def forward_feature(self, x: Tensor, layers: Sequence[int] | None = None) -> list[Tensor]:
        """Entries (B, D, T) of codebooks `layers` (None or [] are all) for x (B, 1, N), in order of layer.

        Raises ValueError for a missing layer. Codebooks learn in training mode.
        """
        layers = layers or range(self.n_q)
        self._check_layers(layers, self.n_q)
        parts = self.codec.quantizer(self._latent(x)).parts
        return [parts[layer].transpose(1, 2) for layer in sorted(set(layers))]

    @torch.inference_mode()
    def encode(self, x: Tensor, n_q: int | None = None, st: int | None = None) -> Tensor:
        """Codes (n_q - st, B, T) int64 of x (B, 1, N), T = ceil(N / hop), from codebooks st .. n_q - 1.

        n_q counts from the first codebook; more than there are means all. With st > 0, codebook st quantizes the
        encoder's output itself, not the residual of the codebooks before it: encode(x, st=1) != encode(x)[1:].

        Raises ValueError for x not (B, 1, N), RuntimeError for n_q <= st.
        """
        start, end = st or 0, min(n_q or self.n_q, self.n_q)
        if end <= start:
            raise RuntimeError(f"n_q={n_q}, st={st} select no codebook: n_q is the end, beyond st")
        wave = self._wave(x)
        lengths = torch.full((len(wave),), wave.shape[1])
        codec, codebooks = self.codec, range(start, end)
        parts = codec.encoder, codec.quantizer, codec.hop_length
        return spans.encode(*parts, wave, lengths, codebooks).transpose(0, 1)

    @torch.inference_mode()
    def decode(self, codes: Tensor, st: int = 0) -> Tensor:
        """Wave (B, 1, hop * T) of codes (n, B, T), which are those of codebooks st .. st + n - 1.

        Raises IndexError for more codes than there are codebooks from st on.
        """
        if codes.dim() != 3:
            raise ValueError(f"codes of shape {tuple(codes.shape)} were given: (codebooks, B, T) is accepted")
        if st + len(codes) > self.n_q:
            raise IndexError(f"{len(codes)} codebooks from number {st} on, but the model has {self.n_q}")
        lengths = torch.full((codes.shape[1],), codes.shape[2])
        return self.codec.decode_batch(codes.transpose(0, 1), lengths, st).unsqueeze(1)

    def _latent(self, x: Tensor) -> Tensor:
        return self.codec.latent(self._wave(x))

    def _wave(self, x: Tensor) -> Tensor:
        if x.dim() != 3 or x.shape[1] != 1 or not x.shape[2]:
            raise ValueError(f"audio of shape {tuple(x.shape)} was given: (B, 1, N) is accepted, N >= 1")
        return x[:, 0]

    def _check_layers(self, layers: Sequence[int], n_q: int) -> None:
        if max(layers) >= min(n_q, self.n_q) or min(layers) < 0:
            raise ValueError(f"layers={list(layers)}: {min(n_q, self.n_q)} codebooks are computed, from 0 on")
