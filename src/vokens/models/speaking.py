"""The base of every speaking model: text in, speech out, in the voice of a recording, for whole texts or as a stream.

A system says how it hears a voice and how it utters short texts; words for figures, sentences, batches, pauses and
random numbers stand here once. What a text becomes does not depend on its company.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from vokens import registry
from vokens.audio.source import ACCEPTED, is_source
from vokens.errors import ConfigError
from vokens.flow.noise import Generators, one_each
from vokens.lm.sampling import SamplingParams
from vokens.models.codec import Audio
from vokens.models.pretrained import Pretrained
from vokens.one_or_list import one_or_list, type_name
from vokens.text import front_end, normalise, sentences

PAUSE = 0.2  # s between the pieces of a long text
BATCH = 8  # pieces that are uttered together
ENDED = (
    "the model ended at once, without a sound: another seed, or a longer text"  # to whom a file was promised
)
# system -> (module, class): what makes a speaker of a model and of another that turns its tokens into sound.
PARTNERED = {
    "learnable_lm": ("vokens.models.learnable.with_s3gen", "WithS3Gen"),
    "uslm": ("vokens.models.uslm.voice", "USLMSpeech"),
}


@dataclass(frozen=True)
class Manner:
    """Synthesis options; None leaves one to the model.

    Attributes:
        sampler: of the language model's tokens. steps: of the flow's solver; guidance: its strength of guidance.
        speed: 2 is twice as fast as the model, or the prompt, speaks.
    """

    sampler: SamplingParams | None = None
    steps: int | None = None
    guidance: float | None = None
    speed: float = 1.0


class Speaker(ABC):
    """Text to speech.

    Attributes:
        sample_rate: Hz of what is said. sampler: sampling parameters where `say` is given none.
        front_end: name of what makes ids of text; "phonemes" takes text as it is.
        paced: whether it can speak at another speed. needs_voice: whether `say` must be given one.
        voices: those that came with the model, by name.
        decoder: of its tokens, where those can be spoken in the voice of a recording: an S3Gen, a FlowDecoder.
    """

    sample_rate: int
    sampler: SamplingParams
    front_end: str
    paced: bool = False
    voice_type: type  # of what `voice` returns
    needs_voice: bool = True
    voices: Mapping[str, Any] = MappingProxyType({})
    decoder: Any = None

    # What a system implements ------------------------------------------------------------------------------

    @abstractmethod
    def voice(self, source: Audio, text: str = "", *, sample_rate: int | None = None) -> Any:
        """A voice, to be given to `say` any number of times.

        Args:
            source: a recording of it, as in `Codec.encode`. text: what is said there, which makes it a prompt that
                speech goes on from (one-shot); without, only the speaker is heard (zero-shot).
        """

    @abstractmethod
    def utter(
        self, pieces: Sequence[str], voice: Any, seeds: Sequence[int], manner: Manner
    ) -> list[np.ndarray]:
        """Waves (T,) float32 of short texts in a voice of `voice`, or None; a row of a batch is what it is alone."""

    def utter_stream(self, piece: str, voice: Any, seed: int, manner: Manner) -> Iterator[np.ndarray]:
        """The wave of a short text as it comes; whole, for systems that cannot say its begin before its end."""
        yield from self.utter([piece], voice, [seed], manner)

    # What users call ---------------------------------------------------------------------------------------

    def say(
        self,
        texts: str | Sequence[str],
        voice: Any = None,
        *,
        voice_text: str = "",
        sample_rate: int | None = None,
        sampler: SamplingParams | None = None,
        generator: Generators = None,
        steps: int | None = None,
        guidance: float | None = None,
        speed: float = 1.0,
        language: str = "en",
        spell_out: bool = True,
        pause: float = PAUSE,
        batch_size: int = BATCH,
        tell: Callable[[int, int], None] | None = None,
    ) -> list[np.ndarray]:
        """Speech of texts of any length: a list of float32 (T,) at `sample_rate` of the model.

        Args:
            voice: a recording, path or array, what `voice` made, or a name of `voices`; None for the model's own.
            voice_text: what the recording says.
            sample_rate: of an array.
            sampler: see `Manner`, and for steps, guidance and speed too.
            generator: one for all texts, or one for each, which makes a text independent of its company.
            language: see `pieces`, and for spell_out too.
            pause: seconds of silence between the pieces of a text.
            batch_size: pieces uttered together. It bounds memory and changes nothing else.
            tell: called after each batch with the pieces that are done and their number in all.

        Raises:
            ConfigError: texts with nothing to say, or with what the front end cannot spell; a voice that is missing.
        """
        each = one_or_list(texts, lambda text: isinstance(text, str), "a text", ConfigError)
        found = [self.pieces(text, language, spell_out) for text in each]
        heard = self._heard(voice, voice_text, sample_rate)
        numbers = [
            (number, piece, seed)
            for number, (pieces, own) in enumerate(zip(found, one_each(generator, len(each)), strict=True))
            for piece, seed in zip(pieces, _seeds(own, len(pieces)), strict=True)
        ]
        manner = self._manner(Manner(sampler, steps, guidance, speed))
        said: list[list[np.ndarray]] = [[] for _ in each]
        waves: list[np.ndarray] = [np.zeros(0, np.float32)] * len(numbers)
        order = sorted(range(len(numbers)), key=lambda place: len(numbers[place][1]))
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            pieces, seeds = [numbers[row][1] for row in rows], [numbers[row][2] for row in rows]
            for row, wave in zip(rows, self.utter(pieces, heard, seeds, manner), strict=True):
                waves[row] = wave
            if tell is not None:
                tell(min(start + batch_size, len(order)), len(order))
        for (number, _, _), wave in zip(numbers, waves, strict=True):
            said[number] += [self._silence(pause), wave] if said[number] else [wave]
        return [np.concatenate(parts) for parts in said]

    def say_stream(
        self,
        text: str,
        voice: Any = None,
        *,
        voice_text: str = "",
        sample_rate: int | None = None,
        sampler: SamplingParams | None = None,
        generator: torch.Generator | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        speed: float = 1.0,
        language: str = "en",
        spell_out: bool = True,
        pause: float = PAUSE,
    ) -> Iterator[np.ndarray]:
        """Speech (n,) float32 of one text as it comes; arguments as in `say`, errors before the first sound."""
        pieces = self.pieces(text, language, spell_out)
        heard = self._heard(voice, voice_text, sample_rate)
        manner = self._manner(Manner(sampler, steps, guidance, speed))
        return self._streamed(pieces, heard, _seeds(generator, len(pieces)), manner, pause)

    def _streamed(
        self, pieces: list[str], voice: Any, seeds: list[int], manner: Manner, pause: float
    ) -> Iterator[np.ndarray]:
        for number, (piece, seed) in enumerate(zip(pieces, seeds, strict=True)):
            if number:
                yield self._silence(pause)
            yield from self.utter_stream(piece, voice, seed, manner)

    def pieces(self, text: str, language: str = "en", spell_out: bool = True) -> list[str]:
        """The short texts that a text is uttered in.

        Args:
            language: of `vokens.text.normalise`, which makes words of figures. spell_out: whether it does so.

        Raises ConfigError for a text without a letter.
        """
        if not isinstance(text, str):
            raise ConfigError(f"{type_name(text)} was given to say: a text is accepted")
        as_it_is = self.front_end == "phonemes"
        if spell_out and not as_it_is:
            text = normalise(text, language)
            text = front_end(self.front_end).sayable(text) if self.front_end else text
        found = sentences(text)
        if not found:
            raise ConfigError(f"the text {text[:40]!r} has nothing to say: give at least one letter")
        return [text.strip()] if as_it_is else [piece.strip() for piece in found]

    def _heard(self, voice: Any, text: str, sample_rate: int | None) -> Any:
        if isinstance(voice, str) and voice in self.voices and not text:
            return self.voices[voice]
        if is_source(voice):
            return self.voice(voice, text, sample_rate=sample_rate)
        if voice is not None and not isinstance(voice, self.voice_type):
            raise ConfigError(
                f"{type_name(voice)} was given as the voice: {ACCEPTED}, or what this model's voice() made, is accepted"
            )
        if text:
            raise ConfigError("voice_text was given without a recording: it says what the recording says")
        return voice

    def _manner(self, asked: Manner) -> Manner:
        if asked.speed <= 0 or (asked.speed != 1 and not self.paced):
            raise ConfigError(
                f"speed = {asked.speed}: numbers above 0 are accepted"
                + (
                    ""
                    if self.paced
                    else "; this model has one speed, 1, for its language model learned no other"
                )
            )
        return replace(asked, sampler=asked.sampler or self.sampler)

    def _silence(self, seconds: float) -> np.ndarray:
        return np.zeros(round(seconds * self.sample_rate), np.float32)


def speaker(model: Pretrained, decoder: Pretrained | None = None) -> Speaker:
    """A model as a speaker.

    Args:
        decoder: what turns the model's tokens into sound, where that is another model: a codec for USLM, an S3Gen for
            Learnable-Speech's language model. By default the one that the model names.

    Raises ConfigError for models that do not speak.
    """
    if isinstance(model, Speaker):
        if decoder is not None:
            raise ConfigError(f"{model.name} is whole: it takes no decoder")
        return model
    if model.system not in PARTNERED:
        raise ConfigError(
            f"{model.name} is a {model.system} and speaks no text: learnable, {', '.join(PARTNERED)} do"
        )
    module, name = PARTNERED[model.system]
    return getattr(import_module(module), name)(model, decoder)


def load_voice(
    source: str | Path = registry.VOICE, *, decoder: str | Path | None = None, **options: Any
) -> Speaker:
    """Open a model that speaks: the one that comes with the package by default.

    Args:
        source: as in `vokens.load`, and the options too. decoder: see `speaker`.

    A folder as CosyVoice publishes it, which `vokens.load` opens as its S3Gen, speaks with the language model in it,
    and so does its id.

    Raises ConfigError for models that do not speak, and where this copy of the package has none.
    """
    from vokens.models.pretrained import load

    model = load(source, **options)
    if decoder is not None:
        return speaker(model, load(decoder, **options))
    words = _words_beside(model, source)
    return speaker(model) if words is None else speaker(load(words, **options), model)


def as_speaker(model: Pretrained, source: str | Path, **options: Any) -> Pretrained | Speaker:
    """The model that `vokens.load` opened from `source`: as `load_voice` has it, or as it is where it speaks no text.

    A name of `vokens models`, such as cosyvoice2_s3gen, stays the S3Gen that it names.
    """
    from vokens.models.pretrained import load

    words = None if str(source) in registry.MODELS else _words_beside(model, source)
    if words is not None:
        return speaker(load(words, **options), model)
    return speaker(model) if model.system in PARTNERED else model


def _words_beside(model: Pretrained, source: str | Path) -> str | Path | None:
    """The language model of CosyVoice's folder or id, whose S3Gen is `model`; None where there is none."""
    entry = registry.MODELS.get(str(source)) or registry.published(str(source))
    file = Path(source).expanduser() / "llm.pt"
    if model.system != "s3gen":
        return None
    if entry is not None and entry.name in registry.LANGUAGE_MODELS:
        return registry.LANGUAGE_MODELS[entry.name]
    return file if file.is_file() else None


def generator_of(seed: int) -> torch.Generator:
    """The generator of a piece."""
    return torch.Generator().manual_seed(seed)


def _seeds(generator: torch.Generator | None, count: int) -> list[int]:
    """A seed for each piece of a text."""
    return torch.randint(2**31, (count,), generator=generator).tolist()
