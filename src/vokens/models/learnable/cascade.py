"""Text to speech in two stages: a language model of speech tokens, and a decoder of them in a voice."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vokens.errors import ConfigError
from vokens.models.learnable.decoder import SpeakerPrompt
from vokens.models.learnable.lm import LearnableLM
from vokens.models.speaking import Speaker, SynthesisOptions, generator_of

DEFAULT_VOICE = "default"
LONGEST_SILENCE = 5  # tokens


class Cascade(Speaker):
    """Base of speakers with a language model `lm` and a `decoder` of its tokens.

    silent: ids of silence, of which no more than LONGEST_SILENCE in a row are decoded.
    """

    lm: LearnableLM
    name: str
    silent: frozenset[int] = frozenset()

    def _prompt(self, voice: Any) -> tuple[SpeakerPrompt, Any]:
        """The prompts of the language model and of the decoder that a voice holds."""
        return voice, voice

    @abstractmethod
    def _decode(
        self, rows: list[Tensor], voice: Any, generators: list[torch.Generator], options: SynthesisOptions
    ) -> list[np.ndarray]:
        """Waves of ids (N,), each with the generator that the language model has drawn from."""

    @torch.inference_mode()
    def synthesize(
        self, pieces: Sequence[str], voice: Any, seeds: Sequence[int], options: SynthesisOptions
    ) -> list[np.ndarray]:
        prompt, own = self._prompt(self._known(voice))
        generators = [generator_of(seed) for seed in seeds]
        sampled = self.lm.generate(pieces, **_conditions(prompt, options), generator=generators)
        tokens = [ids.new_tensor([*self._spoken(ids.tolist())]) for ids in sampled]
        waves = [np.zeros(0, np.float32)] * len(pieces)
        rows = [row for row, ids in enumerate(tokens) if len(ids)]
        if rows:
            some, draws = [tokens[row] for row in rows], [generators[row] for row in rows]
            for row, wave in zip(rows, self._decode(some, own, draws, options), strict=True):
                waves[row] = wave
        return waves

    @torch.inference_mode()
    def synthesize_stream(
        self, piece: str, voice: Any, seed: int, options: SynthesisOptions
    ) -> Iterator[np.ndarray]:
        """Sound after each chunk of the decoder's: its `stream` of the language model's tokens, with this seed."""
        prompt, own = self._prompt(self._known(voice))
        tokens = self._spoken(speech_tokens(self.lm, piece, prompt, options, seed))
        first = next(tokens, None)
        if first is None:
            return
        ids = (torch.tensor([token]) for token in chain([first], tokens))
        solver = {"n_cfm_timesteps": options.steps, "guidance": options.guidance}
        yield from self.decoder.stream(ids, own, seed=seed, **solver)

    def _spoken(self, tokens: Iterable[int]) -> Iterator[int]:
        """The tokens without the rest of a long silence."""
        count = 0
        for token in tokens:
            count = count + 1 if token in self.silent else 0
            if count <= LONGEST_SILENCE:
                yield token

    def _known(self, voice: Any) -> Any:
        if voice is None and self.needs_voice:
            raise ConfigError(f"{self.name} needs a voice: give a recording of one, 3 s to 10 s long")
        return self.voices[DEFAULT_VOICE] if voice is None else voice


def speech_tokens(
    lm: LearnableLM, text: str, voice: SpeakerPrompt, options: SynthesisOptions, seed: int
) -> Iterator[int]:
    """Speech tokens of a text in a voice, one by one."""
    return lm.stream(text, **_conditions(voice, options), generator=generator_of(seed))


def _conditions(voice: SpeakerPrompt, options: SynthesisOptions) -> dict[str, Any]:
    return {
        "speaker": voice.speaker,
        "prompt_text": voice.text,
        "prompt_speech": voice.prompt_speech,
        "sampler": options.sampler,
        "speed": options.speed,
    }
