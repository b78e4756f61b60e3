"""Base of text-to-speech models: text to speech in the voice of a recording, for whole texts or as a stream.

A system implements `voice` and `synthesize` for short texts; normalisation, sentence splitting, batches, pauses and
generators are here. Speech of a text is independent of the other texts.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from vokens import registry
from vokens.audio.source import ACCEPTED, is_source
from vokens.errors import ConfigError
from vokens.flow.noise import Generators, broadcast_generators
from vokens.lm.sampling import SamplingParams
from vokens.models.codec import Audio
from vokens.models.pretrained import Pretrained, load
from vokens.one_or_list import one_or_list, type_name
from vokens.text import front_end, normalise, sentences

PAUSE = 0.2  # s between the pieces of a long text
BATCH = 8  # pieces per batch
ENDED = "the model ended at once, without a sound: another seed, or a longer text"  # where a file is expected
# system -> (module, class) of the Speaker that combines a model with a decoder of its tokens.
PARTNERED = {
    "learnable_lm": ("vokens.models.learnable.with_s3gen", "WithS3Gen"),
    "uslm": ("vokens.models.uslm.voice", "USLMSpeech"),
}


@dataclass(frozen=True)
class SynthesisOptions:
    """Synthesis options; None leaves one to the model."""

    sampler: SamplingParams | None = None  # of the language model's tokens
    steps: int | None = None  # of the flow's solver
    guidance: float | None = None  # its strength of guidance
    speed: float = 1.0  # 2 is twice as fast as the model, or the prompt, speaks


Manner = SynthesisOptions  # deprecated


class Speaker(ABC):
    """Text to speech."""

    sample_rate: int  # Hz of what is said
    sampler: SamplingParams  # sampling parameters where `say` is given none
    front_end: str  # name of what makes ids of text; "phonemes" takes text as it is
    paced: bool = False  # whether it can speak at another speed
    voice_type: type  # returned by `voice`
    needs_voice: bool = True  # whether `say` must be given one
    voices: Mapping[str, Any] = MappingProxyType({})  # those that came with the model, by name
    # Of its tokens, where those can be spoken in the voice of a recording: an S3Gen, a FlowDecoder.
    decoder: Any = None

    # What a system implements ------------------------------------------------------------------------------

    @abstractmethod
    def voice(self, source: Audio, text: str = "", *, sample_rate: int | None = None) -> Any:
        """Voice of a recording, for any number of calls of `say`.

        source: a recording, as in `Codec.encode`. text: its transcript, with which it is a prompt that speech
        continues (one-shot); without, only the speaker is embedded (zero-shot).
        """

    @abstractmethod
    def synthesize(
        self, pieces: Sequence[str], voice: Any, seeds: Sequence[int], options: SynthesisOptions
    ) -> list[np.ndarray]:
        """Waves (T,) float32 of short texts in a voice of `voice`, or None; batch-invariant."""

    def synthesize_stream(
        self, piece: str, voice: Any, seed: int, options: SynthesisOptions
    ) -> Iterator[np.ndarray]:
        """Stream the wave of a short text; in one piece for systems that do not stream."""
        yield from self.synthesize([piece], voice, [seed], options)

    def utter(self, *arguments: Any) -> list[np.ndarray]:
        """Deprecated: `synthesize`."""
        return self.synthesize(*arguments)

    def utter_stream(self, *arguments: Any) -> Iterator[np.ndarray]:
        """Deprecated: `synthesize_stream`."""
        return self.synthesize_stream(*arguments)

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
            voice: a recording, path or array, a result of `voice`, or a name of `voices`; None for the model's own.
            voice_text: transcript of the recording.
            sample_rate: of an array.
            sampler: see `SynthesisOptions`, and for steps, guidance and speed too.
            generator: one for all texts, or one for each, which makes texts independent of each other.
            language: see `pieces`, and for spell_out too.
            pause: seconds of silence between the pieces of a text.
            batch_size: pieces per batch. It bounds memory and changes nothing else.
            tell: progress callback, called after each batch with the numbers of pieces done and in all.

        Raises ConfigError for texts with nothing to say, or with what the front end cannot spell; a missing voice.
        """
        each = one_or_list(texts, lambda text: isinstance(text, str), "a text", ConfigError)
        split = [self.pieces(text, language, spell_out) for text in each]
        resolved = self._resolve(voice, voice_text, sample_rate)
        generators = broadcast_generators(generator, len(each))
        jobs = [
            (number, piece, seed)
            for number, (pieces, own) in enumerate(zip(split, generators, strict=True))
            for piece, seed in zip(pieces, _seeds(own, len(pieces)), strict=True)
        ]
        options = self._checked(SynthesisOptions(sampler, steps, guidance, speed))
        outputs: list[list[np.ndarray]] = [[] for _ in each]
        waves: list[np.ndarray] = [np.zeros(0, np.float32)] * len(jobs)
        order = sorted(range(len(jobs)), key=lambda place: len(jobs[place][1]))
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            pieces, seeds = [jobs[row][1] for row in rows], [jobs[row][2] for row in rows]
            for row, wave in zip(rows, self.synthesize(pieces, resolved, seeds, options), strict=True):
                waves[row] = wave
            if tell is not None:
                tell(min(start + batch_size, len(order)), len(order))
        for (number, _, _), wave in zip(jobs, waves, strict=True):
            outputs[number] += [self._silence(pause), wave] if outputs[number] else [wave]
        return [np.concatenate(parts) for parts in outputs]

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
        """Stream speech (n,) float32 of one text; arguments as in `say`, errors are raised before the first sound."""
        pieces = self.pieces(text, language, spell_out)
        resolved = self._resolve(voice, voice_text, sample_rate)
        options = self._checked(SynthesisOptions(sampler, steps, guidance, speed))
        return self._streamed(pieces, resolved, _seeds(generator, len(pieces)), options, pause)

    def _streamed(
        self, pieces: list[str], voice: Any, seeds: list[int], options: SynthesisOptions, pause: float
    ) -> Iterator[np.ndarray]:
        for number, (piece, seed) in enumerate(zip(pieces, seeds, strict=True)):
            if number:
                yield self._silence(pause)
            yield from self.synthesize_stream(piece, voice, seed, options)

    def pieces(self, text: str, language: str = "en", spell_out: bool = True) -> list[str]:
        """Split a text into short texts.

        language: of `vokens.text.normalise`, which writes numbers as words. spell_out: whether to do so.

        Raises ConfigError for a text without a letter.
        """
        if not isinstance(text, str):
            raise ConfigError(f"{type_name(text)} was given to say: a text is accepted")
        phonemes = self.front_end == "phonemes"
        if spell_out and not phonemes:
            text = normalise(text, language)
            text = front_end(self.front_end).sayable(text) if self.front_end else text
        parts = sentences(text)
        if not parts:
            raise ConfigError(f"the text {text[:40]!r} has nothing to say: give at least one letter")
        return [text.strip()] if phonemes else [piece.strip() for piece in parts]

    def _resolve(self, voice: Any, text: str, sample_rate: int | None) -> Any:
        if isinstance(voice, str) and voice in self.voices and not text:
            return self.voices[voice]
        if is_source(voice):
            return self.voice(voice, text, sample_rate=sample_rate)
        if voice is not None and not isinstance(voice, self.voice_type):
            raise ConfigError(
                f"{type_name(voice)} was given as the voice: {ACCEPTED}, or a result of its voice() is accepted"
            )
        if text:
            raise ConfigError("voice_text was given without a recording: it is the transcript of one")
        return voice

    def _checked(self, options: SynthesisOptions) -> SynthesisOptions:
        if options.speed <= 0 or (options.speed != 1 and not self.paced):
            one = "; this model has one speed, 1: its language model was trained without positions of a pace"
            raise ConfigError(f"speed = {options.speed}: above 0 is accepted{'' if self.paced else one}")
        return replace(options, sampler=options.sampler or self.sampler)

    def _silence(self, seconds: float) -> np.ndarray:
        return np.zeros(round(seconds * self.sample_rate), np.float32)


def begun(pieces: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """The same pieces with the first one computed, so that errors are raised before anything plays.

    Raises ConfigError for pieces without a sample, which players would report as a damaged file.
    """
    for piece in pieces:
        if len(piece):
            return chain([piece], pieces)
    raise ConfigError(ENDED)


def speaker(model: Pretrained, decoder: Pretrained | None = None) -> Speaker:
    """A model as a `Speaker`.

    decoder: of the model's tokens, where that is another model: a codec for USLM, an S3Gen for Learnable-Speech's
    language model. By default the one that the model's config names.

    Raises ConfigError for models that do not speak.
    """
    if isinstance(model, Speaker):
        if decoder is not None:
            raise ConfigError(f"{model.name} has its own decoder: leave decoder= out")
        return model
    if model.system not in PARTNERED:
        raise ConfigError(
            f"{model.name} is a {model.system} and speaks no text: learnable, {', '.join(PARTNERED)} do"
            + ("; CosyVoice's folder does with its llm.pt in it" if model.system == "s3gen" else "")
        )
    module, name = PARTNERED[model.system]
    return getattr(import_module(module), name)(model, decoder)


def load_voice(
    source: str | Path = registry.VOICE, *, decoder: str | Path | None = None, **options: Any
) -> Speaker:
    """Open a text-to-speech model, by default the one in the package.

    source: as in `vokens.load`, and the options too. decoder: see `speaker`.

    A folder as CosyVoice publishes it, which `vokens.load` opens as its S3Gen, speaks with the language model in it,
    and so does its id.

    Raises ConfigError for models that do not speak, and where this copy of the package has none.
    """
    model = load(source, **options)
    if decoder is not None:
        return speaker(model, load(decoder, **options))
    words = _words_beside(model, source, options)
    return speaker(model) if words is None else speaker(words, model)


def as_speaker(model: Pretrained, source: str | Path, **options: Any) -> Pretrained | Speaker:
    """The model that `vokens.load` opened from `source`: as `load_voice` has it, or as it is where it speaks no text.

    A name of `vokens models`, such as cosyvoice2_s3gen, stays the S3Gen that it names.
    """
    words = None if str(source) in registry.MODELS else _words_beside(model, source, options)
    if words is not None:
        return speaker(words, model)
    return speaker(model) if model.system in PARTNERED else model


def _words_beside(model: Pretrained, source: str | Path, options: dict[str, Any]) -> Pretrained | None:
    """The language model of CosyVoice's folder, name or id, whose S3Gen is `model`; None where there is none."""
    if model.system != "s3gen":
        return None
    if name := registry.LANGUAGE_MODELS.get(str(source)):
        return load(name, **options)
    folder = Path(source).expanduser()
    published = not folder.is_dir() and registry.PUBLISHED.get(str(source)) in registry.LANGUAGE_MODELS
    if published or (folder / "llm.pt").is_file():
        return load(source, **options | {"variant": "llm"})
    return None


def generator_of(seed: int) -> torch.Generator:
    """Generator of a piece."""
    return torch.Generator().manual_seed(seed)


def _seeds(generator: torch.Generator | None, count: int) -> list[int]:
    """A seed for each piece of a text."""
    return torch.randint(2**31, (count,), generator=generator).tolist()
