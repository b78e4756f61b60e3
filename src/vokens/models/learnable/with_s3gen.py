"""Learnable-Speech's language model with an S3Gen in the place of its second stage, which is CosyVoice 2's pipeline
(arXiv 2412.10117): text to S3 tokens, to a mel, to a wave."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vokens import audio
from vokens.errors import ConfigError
from vokens.lm.sampling import COSYVOICE
from vokens.models.codec import Audio
from vokens.models.learnable.cascade import Cascade
from vokens.models.learnable.decoder import SpeakerPrompt, check_prompt
from vokens.models.learnable.lm import LearnableLM
from vokens.models.pretrained import Pretrained
from vokens.models.s3gen import ReferenceVoice, S3GenModel
from vokens.models.s3gen.config import TOKENS_OF
from vokens.models.s3gen.voice import REFERENCE_SECONDS
from vokens.models.speaking import SynthesisOptions

# Ids of silence, as published.
SILENT = {TOKENS_OF["dit"]: frozenset((1, 2, 28, 29, 55, 248, 494, 2241, 2242, 2322, 2323))}


@dataclass(frozen=True)
class S3Voice:
    """Voice of a recording for the language model and for S3Gen."""

    lm: SpeakerPrompt
    s3gen: ReferenceVoice


class WithS3Gen(Cascade):
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
        self.paced, self.silent = lm.beside, SILENT.get(lm.config.tokens, frozenset())

    @torch.inference_mode()
    def voice(self, source: Audio, text: str = "", *, sample_rate: int | None = None) -> S3Voice:
        """As `Speaker.voice`. Raises AudioError for a prompt of more than 30 s."""
        wave, rate = audio.load(source, source_rate=sample_rate)
        text, tokens = text.strip(), torch.zeros(0, dtype=torch.int64)
        if text:
            check_prompt(wave, rate)
            tokens = self.decoder.tokenize(wave, rate).codes[0, 0]
        speaker = None if self.lm.config.speaker is None else self.lm.voice(wave, sample_rate=rate)
        reference = self.decoder.voice(wave[: int(REFERENCE_SECONDS * rate)], rate)
        return S3Voice(SpeakerPrompt(speaker, torch.zeros(1, 0), text, tokens, None), reference)

    def _prompt(self, voice: S3Voice) -> tuple[SpeakerPrompt, ReferenceVoice]:
        return voice.lm, voice.s3gen

    def _decode(
        self, rows: list[Tensor], voice: Any, generators: list[torch.Generator], options: SynthesisOptions
    ) -> list[np.ndarray]:
        seeds = [generator.initial_seed() for generator in generators]  # draws of its own
        solver = {"n_cfm_timesteps": options.steps, "guidance": options.guidance}
        return self.decoder.speak(rows, voice, seed=seeds, **solver)
