"""Learnable-Speech's language model with an S3Gen in the place of its second stage, which is CosyVoice 2's pipeline
(arXiv 2412.10117): text to S3 tokens, to a mel, to a wave."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from vokens import audio
from vokens.errors import AudioError, ConfigError
from vokens.lm.sampling import COSYVOICE
from vokens.models.codec import Audio
from vokens.models.learnable.decoder import PROMPT_SECONDS, SpeakerPrompt
from vokens.models.learnable.lm import LearnableLM
from vokens.models.learnable.voice import speech_tokens
from vokens.models.pretrained import Pretrained
from vokens.models.s3gen import ReferenceVoice, S3GenModel
from vokens.models.s3gen.config import TOKENS_OF
from vokens.models.speaking import Manner, Speaker, generator_of

REFERENCE_SECONDS = 10.0  # of a recording that S3Gen is prompted with, as in Chatterbox


@dataclass(frozen=True)
class S3Voice:
    """Voice of a recording for the language model and for S3Gen."""

    lm: SpeakerPrompt
    s3gen: ReferenceVoice


class WithS3Gen(Speaker):
    """Text to speech. lm: text to tokens; s3gen: tokens to speech, with its speaker encoder."""

    system, voice_type = "learnable_lm", S3Voice

    def __init__(self, lm: LearnableLM, s3gen: Pretrained | None) -> None:
        if not isinstance(s3gen, S3GenModel):
            given = "none" if s3gen is None else f"a {s3gen.system}"
            raise ConfigError(
                f"{lm.name} makes S3 tokens, which an S3Gen decodes, and {given} was given as "
                "decoder: name one, such as cosyvoice2_s3gen or a folder, or give CosyVoice's folder, which has both"
            )
        if lm.config.speech_tokens > s3gen.config.flow.vocab_size:
            raise ConfigError(
                f"{lm.name} has {lm.config.speech_tokens} tokens and {s3gen.name} knows "
                f"{s3gen.config.flow.vocab_size}: give models of one tokenizer"
            )
        if {lm.config.tokens, s3gen.config.tokens} == set(TOKENS_OF.values()):
            raise ConfigError(
                f"{lm.name} makes tokens of {lm.config.tokens} and {s3gen.name} speaks those of {s3gen.config.tokens}, "
                "whose ids mean other sounds: give models of one release"
            )
        self.lm, self.decoder, self.name = lm, s3gen, s3gen.name
        self.sample_rate, self.sampler, self.front_end = s3gen.sample_rate, COSYVOICE, lm.config.front_end
        self.paced = lm.beside

    @torch.inference_mode()
    def voice(self, source: Audio, text: str = "", *, sample_rate: int | None = None) -> S3Voice:
        """As `Speaker.voice`. Raises AudioError for a prompt of more than 30 s."""
        wave, rate = audio.load(source, source_rate=sample_rate)
        if text.strip() and len(wave) > PROMPT_SECONDS * rate:
            raise AudioError(
                f"the voice's recording has {len(wave) / rate:.1f} s: a prompt may have {PROMPT_SECONDS:g} s; cut it "
                "and its text, or leave the text out"
            )
        speaker = None if self.lm.config.speaker is None else self.lm.voice(wave, sample_rate=rate)
        tokens = torch.zeros(0, dtype=torch.int64)
        if text.strip():
            tokens = self.decoder.tokenize(wave, rate).codes[0, 0]
        reference = self.decoder.voice(wave[: int(REFERENCE_SECONDS * rate)], rate)
        return S3Voice(SpeakerPrompt(speaker, torch.zeros(1, 0), text.strip(), tokens, None), reference)

    @torch.inference_mode()
    def utter(
        self, pieces: Sequence[str], voice: S3Voice | None, seeds: Sequence[int], manner: Manner
    ) -> list[np.ndarray]:
        resolved = self._known(voice)
        tokens = self.lm.generate(
            pieces,
            speaker=resolved.lm.speaker,
            prompt_text=resolved.lm.text,
            prompt_speech=resolved.lm.prompt_speech,
            sampler=manner.sampler,
            generator=[generator_of(seed) for seed in seeds],
            speed=manner.speed,
        )
        waves = [np.zeros(0, np.float32)] * len(pieces)
        rows = [row for row, ids in enumerate(tokens) if len(ids)]
        if rows:
            generated = self.decoder.speak(
                [tokens[row] for row in rows],
                resolved.s3gen,
                seed=[seeds[row] for row in rows],
                n_cfm_timesteps=manner.steps,
                guidance=manner.guidance,
            )
            for row, wave in zip(rows, generated, strict=True):
                waves[row] = wave
        return waves

    def utter_stream(
        self, piece: str, voice: S3Voice | None, seed: int, manner: Manner
    ) -> Iterator[np.ndarray]:
        """The sound of `S3GenModel.stream` for the language model's tokens."""
        resolved = self._known(voice)
        tokens = self._tokens(piece, resolved.lm, manner, seed)
        first = next(tokens, None)
        if first is None:
            return
        yield from self.decoder.stream(
            chain([first], tokens),
            resolved.s3gen,
            n_cfm_timesteps=manner.steps,
            guidance=manner.guidance,
            seed=seed,
        )

    @torch.inference_mode()
    def _tokens(self, piece: str, voice: SpeakerPrompt, manner: Manner, seed: int) -> Iterator[Tensor]:
        for token in speech_tokens(self.lm, piece, voice, manner, seed):
            yield torch.tensor([token])

    def _known(self, voice: S3Voice | None) -> S3Voice:
        if voice is None:
            raise ConfigError(f"{self.decoder.name} needs a voice: give a recording of one, 3 s to 10 s long")
        return voice
