"""Learnable-Speech's second stage: 25 Hz tokens and a voice to DAC-VAE latents, by flow matching.

The network is CosyVoice 2's (S3Gen's) with latents in the place of mel bands and two or three of them per token. It
works on normalised latents; inputs and outputs here are not normalised.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vokens import checkpoint
from vokens.errors import AudioError, ConfigError
from vokens.flow.noise import Generators, PrefixNoise
from vokens.models.codec import Audio
from vokens.models.dacvae.latents import Latents
from vokens.models.learnable import flow_checkpoint as published
from vokens.models.learnable.flow_config import LearnableFlowConfig
from vokens.models.learnable.speaker import SpeakerEncoder, reference_mels
from vokens.models.pretrained import Pretrained
from vokens.models.s3gen.flow import MelStream, Schedule, TokenToMel, Voice
from vokens.models.s3gen.synthesis import Ids, rows_of
from vokens.nn.float32 import Float32Buffers


class LearnableFlow(Float32Buffers, Pretrained):
    """Speech tokens in a voice to latents. `vokens.load(folder or published flow checkpoint)`."""

    system = "learnable_flow"
    Config = LearnableFlowConfig
    mean: Tensor
    std: Tensor

    def __init__(self, config: LearnableFlowConfig) -> None:
        super().__init__(config)
        width = config.flow.mel_bins
        self.network = TokenToMel(config.flow)
        self.speaker_encoder = None if config.speaker is None else SpeakerEncoder(config.speaker)
        self.register_buffer("mean", torch.tensor(config.mean or [0.0] * width), persistent=False)
        self.register_buffer("std", torch.tensor(config.std or [1.0] * width), persistent=False)

    @property
    def latent_dim(self) -> int:
        return self.config.flow.mel_bins

    @property
    def ratio(self) -> int:
        """Latents per token."""
        return self.config.flow.token_mel_ratio

    @torch.inference_mode()
    def voice(self, *sources: Audio, sample_rate: int | None = None) -> Tensor:
        """The speaker vector (1, V) of one or more recordings of a voice, embedded in pieces of 4 s as in training.

        sample_rate: of arrays. Raises ConfigError where the model has no speaker encoder.
        """
        if self.speaker_encoder is None:
            raise ConfigError(
                f"{self.name} has no speaker encoder: give vectors (1, {self.config.flow.speaker_embed_dim}) of "
                "the one that it was trained with"
            )
        mels, lengths = reference_mels(sources, sample_rate)
        return self.speaker_encoder.many(mels.to(self.device, self.dtype), lengths.to(self.device))

    @torch.inference_mode()
    def generate(
        self,
        tokens: Ids | Sequence[Ids],
        speaker: Tensor,
        *,
        prompt_tokens: Ids | Sequence[Ids] | None = None,
        prompt_latents: Tensor | Sequence[Tensor] | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        chunked: bool = False,
        generator: Generators = None,
        seed: int | None = None,
    ) -> list[Tensor]:
        """Latents (D, ratio * S) float32 of each utterance of a batch, on this model's device.

        Args:
            tokens: ids (S,) or a list of (S,) of any lengths. speaker: vectors (1, V) for all or (B, V).
            prompt_tokens: ids (P,) of preceding speech in the same voice, one for all or one for each.
            prompt_latents: its latents (D, F), F about ratio * P.
            steps: of the solver, guidance: strength of classifier-free guidance; those of the config by default,
                10 and 0.7 as published. A MeanFlow holds its guidance and takes none.
            chunked: under the streaming mask, for the result of `stream`.
            generator: of the noise, one for all rows or one for each. seed: instead, noise that depends on the seed
                and the place alone, as in `stream`.

        Raises TokensError for no tokens, or ids outside the vocabulary; AudioError for vectors or latents of other
        sizes; ConfigError for both generator and seed, or wrong counts.
        """
        if seed is not None and generator is not None:
            raise ConfigError("both generator and seed were given: give one of them for the noise")
        rows = rows_of(tokens)
        voices = self._voices(len(rows), speaker, prompt_tokens, prompt_latents)
        latents, frames = self.network.generate(
            rows,
            voices,
            chunks=self.config.flow.chunks() if chunked else None,
            schedule=self.schedule(steps, guidance),
            generator=generator,
            seeds=None if seed is None else [seed] * len(rows),
        )
        whole = latents * self.std[:, None] + self.mean[:, None]
        return [row[:, :count] for row, count in zip(whole, frames.tolist(), strict=True)]

    def stream(
        self,
        pieces: Iterable[Ids],
        speaker: Tensor,
        *,
        prompt_tokens: Ids | None = None,
        prompt_latents: Tensor | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int = 0,
    ) -> Iterator[Tensor]:
        """Latents (D, t) of one utterance while its tokens arrive, after each chunk (25 tokens) and three more.

        Together they are what `generate` gives with chunked=True and the same seed.
        """
        plan, noise = self.schedule(steps, guidance), PrefixNoise(self.latent_dim, seed)
        stream = MelStream(self.network, schedule=plan, noise=noise)
        state = stream.start(self._voices(1, speaker, prompt_tokens, prompt_latents))
        ids = (torch.as_tensor(piece) for piece in pieces)
        for latents in stream.run(ids, state):
            yield latents[0] * self.std[:, None] + self.mean[:, None]

    def schedule(self, steps: int | None = None, guidance: float | None = None) -> Schedule:
        """Schedule of the solver, the config's by default."""
        return self.network.schedule(steps, guidance=guidance)

    def pack(self, latents: Sequence[Tensor]) -> Latents:
        """Pack rows (D, T) of `generate` as `Latents` for the autoencoder's `decode`."""
        lengths = torch.tensor([row.shape[1] for row in latents])
        values = pad_sequence([row.T.cpu() for row in latents], batch_first=True).transpose(1, 2)
        config, hop = self.config, round(self.config.sample_rate / self.config.frame_rate)
        facts = config.latents, config.latents_fingerprint, config.sample_rate, config.frame_rate
        return Latents(values.contiguous(), lengths, lengths * hop, *facts)

    def normalised(self, latents: Tensor) -> Tensor:
        """Normalise latents (..., D) for the network."""
        return (latents - self.mean) / self.std

    def _voices(self, count: int, speaker: Tensor, tokens: Any, latents: Any) -> list[Voice]:
        width = self.config.flow.speaker_embed_dim
        if speaker.dim() != 2 or len(speaker) not in (1, count) or speaker.shape[1] != width:
            raise AudioError(f"speaker {tuple(speaker.shape)}: not (1, {width}) or ({count}, {width})")
        if (tokens is None) != (latents is None):
            raise ConfigError("a prompt is both prompt_tokens and prompt_latents: one of them was given")
        prompts = [(torch.zeros(0, dtype=torch.int64), torch.zeros(0, self.latent_dim))] * count
        if tokens is not None:
            ids, values = rows_of(tokens), [latents] if isinstance(latents, Tensor) else list(latents)
            if len(ids) != len(values) or len(ids) not in (1, count):
                raise ConfigError(
                    f"{len(ids)} prompt_tokens and {len(values)} prompt_latents were given for {count} utterances: "
                    "one of each for all, or one for each"
                )
            shapes = [tuple(value.shape) for value in values]
            if bad := [shape for shape in shapes if len(shape) != 2 or shape[0] != self.latent_dim]:
                raise AudioError(f"prompt_latents of {bad} were given: ({self.latent_dim}, F) is accepted")
            frames = [self.normalised(value.T.to(self.device, torch.float32)) for value in values]
            prompts = list(zip(ids, frames, strict=True)) * (count if len(ids) == 1 else 1)
        vectors = speaker.expand(count, -1)
        return [Voice(ids, frames, row) for (ids, frames), row in zip(prompts, vectors, strict=True)]

    @classmethod
    def from_published(cls, state: dict[str, Tensor], config: Mapping[str, Any] | None = None) -> Self:
        """Learnable-Speech's weights; config: settings that shapes leave open (`flow_checkpoint.configure`)."""
        model = cls(published.configure(state, config))
        checkpoint.load_strict(model, published.to_ours(state), "in the published layout")
        return model.freeze()

    def to_published(self) -> dict[str, Tensor]:
        """The weights under the published names. Raises CheckpointError for networks that the published code is not."""
        config, speaker = self.config, self.config.speaker
        checkpoint.check_publishable(
            normalised=(bool(config.mean), False),
            time_scale=(config.flow.time_scale, 1000.0),
            speaker_published=(speaker is None or speaker.published, True),
        )
        return published.to_published(self.state_dict())
