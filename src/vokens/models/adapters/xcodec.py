"""X-codec (Ye et al. 2024, arXiv 2408.17175) and Higgs Audio v2's tokenizer: a DAC and a HuBERT, quantised as one.

Higgs is the same network with a smaller space for its codebooks and a HuBERT at 16 kHz of 24. Its class in
transformers cannot be imported without torchaudio, which resamples there; here our resampler does.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vokens.audio import resample
from vokens.models.adapters.hub import HubCodec, sum_of, to_whole_frames, transformers_class


class XCodec(HubCodec):
    """`vokens.load("hf-audio/xcodec-hubert-librispeech")`."""

    system = "xcodec"
    classes = ("XcodecModel", "XcodecConfig")

    def sizes(self, config: Any) -> tuple[int, int, tuple[int, ...]]:
        return config.sample_rate, config.hop_length, (config.codebook_size,) * config.num_quantizers

    def encode_row(self, wave: Tensor) -> Tensor:
        return self.network.encode(to_whole_frames(wave, self.hop_length)).audio_codes

    def decode_row(self, codes: Tensor, first_codebook: int) -> Tensor:
        latent = sum_of(self.network.quantizer.quantizers, codes, first_codebook)
        return self.network.acoustic_decoder(self.network.fc2(latent.transpose(1, 2)).transpose(1, 2))


class HiggsV2(XCodec):
    """`vokens.load("bosonai/higgs-audio-v2-tokenizer")`."""

    system = "higgs_audio_v2_tokenizer"
    classes = ("XcodecModel", "HiggsAudioV2TokenizerConfig")

    @classmethod
    def network_class(cls) -> Any:
        return _higgs_network()


class ProjectedBook(nn.Module):
    """A codebook in a smaller space: linear in, nearest entry, linear out."""

    codebook: Any

    def __init__(self, config: Any, codebook: Any) -> None:
        super().__init__()
        self.codebook = codebook
        self.project_in = nn.Linear(config.hidden_size, config.codebook_dim)
        self.project_out = nn.Linear(config.codebook_dim, config.hidden_size)

    def encode(self, latent: Tensor) -> Tensor:  # (B, D, T) -> (B, T)
        return self.codebook.encode(self.project_in(latent.transpose(1, 2)))

    def decode(self, codes: Tensor) -> Tensor:  # (B, T) -> (B, D, T)
        return self.project_out(self.codebook.decode(codes)).transpose(1, 2)


@cache
def _higgs_network() -> Any:
    """X-codec's class with Higgs's changes; created on first use, as transformers is optional."""

    base: Any = transformers_class("XcodecModel")

    class HiggsNetwork(base):
        config_class = transformers_class("HiggsAudioV2TokenizerConfig")
        base_model_prefix = "higgs_audio_v2_tokenizer"
        _keys_to_ignore_on_load_unexpected = ("semantic_model.masked_spec_embed",)

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            books = self.quantizer.quantizers
            self.quantizer.quantizers = nn.ModuleList(ProjectedBook(config, book.codebook) for book in books)

        def _extract_semantic_features(self, input_values: Tensor) -> Tensor:
            config = self.config
            wave = resample(input_values[:, 0], config.sample_rate, config.semantic_sample_rate)
            wave = F.pad(wave, (160, 160))  # half a frame of HuBERT's on both sides
            states = self.semantic_model(wave, output_hidden_states=True).hidden_states
            return torch.stack(states, 1).mean(1)[:, :: max(1, config.semantic_downsample_factor)]

    return HiggsNetwork
