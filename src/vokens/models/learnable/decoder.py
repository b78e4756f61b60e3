"""Tokens to speech in the voice of a recording: Learnable-Speech's flow, DAC-VAE, speaker encoder, tokenizer.

It needs no language model: `convert-voice` decodes the tokens of one recording in the voice of another.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vokens import audio
from vokens.batching import batches
from vokens.errors import AudioError, ConfigError
from vokens.models.codec import Audio, Codec
from vokens.models.dacvae import DACVAE
from vokens.models.dacvae.model import BEGIN
from vokens.models.learnable.flow import LearnableFlow
from vokens.models.s3gen.synthesis import ids_of
from vokens.models.speaking import generator_of
from vokens.nn.campplus import CAMPPlus
from vokens.tokens import Tokens

CAMPPLUS_RATE = 16000
SPEAKER_SECONDS = 10.0  # of a recording that CAM++ embeds, as Chatterbox does
PROMPT_SECONDS = 30.0  # the longest prompt: S3Tokenizer's window


@dataclass(frozen=True)
class SpeakerPrompt:
    """Voice of a recording: speaker embeddings, and the prompt that speech continues."""

    speaker: Tensor | None  # (1, W) the language model's speaker token; None where it takes none
    vector: Tensor  # (1, V), the flow's
    text: str  # transcript of the prompt; "" where only the flow is prompted
    tokens: Tensor  # ids (P,) of the prompt; empty without one
    latents: Tensor | None  # (D, F) of the prompt; None without one

    @property
    def prompt(self) -> Tensor | None:
        """Prompt tokens of the flow; None without latents."""
        return None if self.latents is None else self.tokens

    @property
    def prompt_speech(self) -> Tensor:
        """Prompt tokens of the language model; empty without their text."""
        return self.tokens if self.text else self.tokens[:0]

    said = prompt_speech  # deprecated


HeardVoice = SpeakerPrompt  # deprecated


class FlowDecoder:
    """Tokens to speech.

    Args:
        flow: tokens to latents. autoencoder: latents to sound.
        tokenizer: of recordings; without, voices have no prompt. speaker: CAM++, where the flow takes its vectors.
        prompt: seconds of a recording that prompt the flow where its text is not known.
        name: of the whole model, for errors.
    """

    def __init__(
        self,
        flow: LearnableFlow,
        autoencoder: DACVAE,
        tokenizer: Codec | None = None,
        speaker: CAMPPlus | None = None,
        prompt: float = 0.0,
        name: str = "",
    ) -> None:
        check_fit(flow, autoencoder, tokenizer, speaker)
        self.flow, self.autoencoder, self.tokenizer, self.speaker = flow, autoencoder, tokenizer, speaker
        self.prompt, self.name, self.sample_rate = prompt, name or flow.name, autoencoder.sample_rate

    @torch.inference_mode()
    def voice(self, source: Audio, sample_rate: int | None = None, text: str = "") -> SpeakerPrompt:
        """Voice of a recording. text: its transcript, with which all of it becomes the prompt.

        Raises AudioError for a prompt of more than 30 s, ConfigError for a text without a tokenizer.
        """
        wave, rate = audio.load(source, source_rate=sample_rate)
        vector, text = self._vector(wave, rate), text.strip()
        if text and self.tokenizer is None:
            raise ConfigError(f"{self.name} has no tokenizer for prompts: leave the voice's text out")
        if text:
            check_prompt(wave, rate)
        prompt = wave if text else wave[: int(self.prompt * rate)]
        if self.tokenizer is None or not len(prompt):
            return SpeakerPrompt(None, vector, "", torch.zeros(0, dtype=torch.int64), None)
        tokens = self.tokenizer.encode(prompt, rate).codes[0, 0]
        return SpeakerPrompt(None, vector, text, tokens, self.autoencoder.encode(prompt, rate).values[0])

    def _vector(self, wave: np.ndarray, rate: int) -> Tensor:
        """The flow's speaker vector (1, V)."""
        if self.speaker is None:
            return self.flow.voice(wave, sample_rate=rate)
        resampled, _ = audio.load(wave, CAMPPLUS_RATE, source_rate=rate)
        part = torch.from_numpy(resampled[: int(SPEAKER_SECONDS * CAMPPLUS_RATE)])
        return self.speaker.embed([part.to(self.flow.device)])

    def tokenize(self, source: Audio | Sequence[Audio], sample_rate: int | None = None) -> Tokens:
        """The tokens of recordings, as in `Codec.encode`."""
        if self.tokenizer is None:
            raise ConfigError(f"{self.name} has no tokenizer: give one with from_parts(tokenizer=...)")
        return self.tokenizer.encode(source, sample_rate)

    def ids(self, tokens: Tokens) -> list[Tensor]:
        """Rows (N,) of tokens. Raises TokensError for those of another tokenizer, or of other weights."""
        config = self.flow.config
        name = config.tokens or (self.tokenizer.name if self.tokenizer else tokens.model)
        return ids_of(tokens, self.name, name, config.tokens_fingerprint, config.flow.vocab_size)

    @torch.inference_mode()
    def speak(
        self,
        rows: Sequence[Tensor],
        voice: SpeakerPrompt,
        *,
        seed: int = 0,
        n_cfm_timesteps: int | None = None,
        guidance: float | None = None,
        batch_seconds: float = 60.0,
    ) -> list[np.ndarray]:
        """Speech (T,) float32 of ids (N,), independent of the other rows; arguments as in S3Gen's `speak`."""
        waves: list[np.ndarray] = [np.zeros(0, np.float32)] * len(rows)
        most = int(batch_seconds * self.flow.config.frame_rate / self.flow.ratio)
        for group in batches([len(row) for row in rows], most):
            some, generators = [rows[row] for row in group], [generator_of(seed) for _ in group]
            generated = self.waves(some, voice, generators, n_cfm_timesteps, guidance)
            for row, wave in zip(group, generated, strict=True):
                waves[row] = wave
        return waves

    def waves(
        self,
        rows: Sequence[Tensor],
        voice: SpeakerPrompt,
        generators: Sequence[torch.Generator],
        steps: int | None = None,
        guidance: float | None = None,
    ) -> list[np.ndarray]:
        """Speech of rows in one pass, each with noise of its own."""
        options = {"steps": steps, "guidance": guidance, "generator": list(generators)}
        latents = self.flow.generate(list(rows), voice.vector, **_prompt(voice), **options)
        return list(self.autoencoder.decode(self.flow.pack(latents)))

    @torch.inference_mode()
    def stream(
        self,
        pieces: Tokens | Iterable[Tensor],
        voice: SpeakerPrompt,
        *,
        n_cfm_timesteps: int | None = None,
        guidance: float | None = None,
        seed: int = 0,
    ) -> Iterator[np.ndarray]:
        """Speech (n,) float32 while pieces (n,) of tokens arrive: after each chunk of the flow's."""
        if isinstance(pieces, Tokens):
            pieces = self.ids(pieces)  # of one item
        options = {"steps": n_cfm_timesteps, "guidance": guidance, "seed": seed}
        latents = self.flow.stream(pieces, voice.vector, **_prompt(voice), **options)
        yield from decode_stream(self.autoencoder, latents)


def _prompt(voice: SpeakerPrompt) -> dict[str, Any]:
    """The flow's prompt."""
    return {"prompt_tokens": voice.prompt, "prompt_latents": voice.latents}


def check_prompt(wave: np.ndarray, rate: int) -> None:
    """Raise AudioError for a prompt of more than 30 s."""
    if len(wave) > PROMPT_SECONDS * rate:
        raise AudioError(
            f"the voice's recording has {len(wave) / rate:.1f} s: a prompt may have {PROMPT_SECONDS:g} s; cut it "
            "and its text, or leave the text out"
        )


def decode_stream(autoencoder: DACVAE, latents: Iterable[Tensor]) -> Iterator[np.ndarray]:
    """Waves (n,) of latents (D, t) as they come, behind by the decoder's look-ahead.

    Together they are the whole decoded at once; work and memory per piece do not grow.
    """
    reach, hop = autoencoder.decoder.reach, autoencoder.hop_length
    kept = torch.zeros(autoencoder.config.latent_dim, 0)  # left context, and frames without a wave yet
    done, place = 0, BEGIN  # kept frames that are decoded; position of the first kept frame

    def sound(until: int) -> np.ndarray:
        z = kept[None].to(autoencoder.device, autoencoder.dtype)
        wave = autoencoder.decode_batch(z, torch.tensor([z.shape[2]], device=autoencoder.device), place)
        return wave[0, done * hop : until * hop].float().cpu().numpy()

    for piece in latents:
        kept = torch.cat([kept.to(piece), piece], 1)
        ready = kept.shape[1] - reach
        if ready > done:
            yield sound(ready)
            begin = max(0, ready - reach)
            place = autoencoder.behind(kept[None, :, :begin].to(autoencoder.device), place)
            kept, done = kept[:, begin:], ready - begin
    if kept.shape[1] > done:
        yield sound(kept.shape[1])


def check_fit(
    flow: LearnableFlow, autoencoder: DACVAE, tokenizer: Codec | None, speaker: CAMPPlus | None
) -> None:
    """Raise ConfigError for parts that do not fit each other."""
    if (flow.speaker_encoder is None) != (speaker is not None):
        raise ConfigError(
            "the flow has a speaker encoder of its own, and speaker= was given: leave it out"
            if speaker is not None
            else "the flow has no speaker encoder: give speaker=, CAM++'s weights, whose vectors it was trained with"
        )
    settings, vae = flow.config, autoencoder
    latents = settings.latents_fingerprint or vae.fingerprint
    pairs: list[tuple[str, object, object]] = [
        ("the flow's latents and the autoencoder's", flow.latent_dim, vae.config.latent_dim),
        ("the flow's latents per second and the autoencoder's", settings.frame_rate, vae.frame_rate),
        ("weights of the flow's autoencoder and of this one", latents, vae.fingerprint),
    ]
    if tokenizer is not None:
        sizes, tokens = (settings.flow.vocab_size,), settings.tokens_fingerprint or tokenizer.fingerprint
        pairs += [
            ("tokens of the flow and of the tokenizer", sizes, tokenizer.codebook_sizes),
            ("weights of the flow's tokenizer and of this one", tokens, tokenizer.fingerprint),
        ]
    for what, one, other in pairs:
        if one != other:
            raise ConfigError(f"{what} differ: {one} and {other}; give parts that were trained on each other")
