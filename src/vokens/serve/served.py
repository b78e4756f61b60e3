"""The models of a server: their abilities, and the functions that run on their threads."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vokens import audio, registry
from vokens.audio_suffixes import AUDIO_SUFFIXES
from vokens.errors import ConfigError, VokensError
from vokens.models.codec import Codec
from vokens.models.named import load_named
from vokens.models.s3gen import S3GenModel
from vokens.models.s3gen.voice import REFERENCE_SECONDS
from vokens.models.speaking import Speaker, generator_of
from vokens.serve.batcher import Batcher
from vokens.serve.errors import ServerFault
from vokens.serve.settings import Settings
from vokens.text.files import read_text
from vokens.tokens import Tokens


@dataclass(frozen=True)
class Voice:
    """A named voice, equal to another only while its files are unchanged.

    Attributes:
        path: of the recording; None for a model's own voice. text: its transcript, "" if unknown.
        stamp: times and size of the recording.
    """

    name: str
    path: Path | None
    text: str = ""
    stamp: tuple[int, ...] = ()


class Voices:
    """The recordings NAME.wav (or flac, mp3, …) of a folder, each with its transcript NAME.txt if known."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def names(self) -> list[str]:
        return list(self._paths())

    def get(self, name: str) -> Voice | None:
        """The voice of that name. Raises ServerFault where its files cannot be read."""
        path = self._paths().get(name)  # looked up, never built from a client's input
        if path is None:
            return None
        said = path.with_suffix(".txt")
        try:
            text = read_text(said).strip() if said.exists() else ""
            stat = path.stat()
        except (OSError, ConfigError) as error:
            raise ServerFault(f"the files of voice {name!r} cannot be read: name another voice") from error
        return Voice(name, path, text, (stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size))

    def _paths(self) -> dict[str, Path]:
        if self.folder is None or not self.folder.is_dir():
            return {}
        paths = (path for path in sorted(self.folder.iterdir()) if path.suffix.lower() in AUDIO_SUFFIXES)
        return {path.stem: path for path in paths}


class Served:
    """One loaded model, its abilities and its queue.

    Attributes:
        name: for clients.
        says: it speaks texts. s3gen: the S3Gen that decodes its tokens, if any: the model, or what makes sound of its
            language model's tokens. speaks: it has one, which speaks tokens in the voice of a recording.
        codec: tokenizer of recordings: the model, or that of its S3Gen. encodes: it has one. decodes: it is a codec
            that decodes.
        needs_voice: for every text. own_voices: names of those that came with the model.
        sample_rate: Hz of its sound; encode_rate: of recordings to encode, which differs from what an S3Gen speaks at.
        frame_rate: of its tokens, Hz; None where it has none.
    """

    def __init__(self, name: str, model: Any, batcher: Batcher, licence: str = "") -> None:
        self.name, self.model, self.batcher, self.licence = name, model, batcher, licence
        self.says = isinstance(model, Speaker)
        decoder = model.decoder if self.says else model
        self.s3gen: Any = decoder if isinstance(decoder, S3GenModel) else None
        self.codec: Any = model if isinstance(model, Codec) else getattr(self.s3gen, "tokenizer", None)
        self.encodes, self.speaks = self.codec is not None, self.s3gen is not None
        self.decodes = isinstance(model, Codec) and model.decodes
        self.needs_voice = self.speaks or (self.says and model.needs_voice)
        self.own_voices = tuple(getattr(model, "voices", ()))
        self.sample_rate = int(model.sample_rate)
        self.encode_rate = int(getattr(self.codec, "sample_rate", self.sample_rate))
        self.frame_rate: float | None = getattr(self.codec, "frame_rate", None)
        self.voices: dict[tuple[str, bool], tuple[Voice, Any]] = {}  # as `_voice` has made them

    def encode(self, num_codebooks: int | None, waves: Sequence[np.ndarray]) -> list[Tokens]:
        """Tokens of waves (T,) at the codec's rate, batch-invariant."""
        return list(self.codec.encode(list(waves), self.encode_rate, num_codebooks=num_codebooks))

    def decode(self, items: Sequence[Tokens]) -> list[np.ndarray]:
        return self.model.decode(Tokens.cat(list(items)))

    def speak(self, items: Sequence[tuple[Tokens, Voice, int]]) -> list[np.ndarray]:
        """Waves of S3 tokens, each with its own voice and seed."""
        tokens, voices, seeds = zip(*items, strict=True)
        owners = [self._voice(voice, of_tokens=True) for voice in voices]
        return self.s3gen.speak(Tokens.cat(tokens), owners, seed=seeds)

    def stream(self, tokens: Tokens, voice: Voice, seed: int) -> Iterator[np.ndarray]:
        return self.s3gen.stream(tokens, self._voice(voice, of_tokens=True), seed=seed)

    def say(self, voice: Voice | None, seed: int, speed: float, texts: Sequence[str]) -> list[np.ndarray]:
        """Waves of texts; each has its own generator, so that results are batch-invariant."""
        generators = [generator_of(seed) for _ in texts]
        return self.model.say(list(texts), self._voice(voice), generator=generators, speed=speed)

    def say_stream(self, voice: Voice | None, seed: int, speed: float, text: str) -> Iterator[np.ndarray]:
        return self.model.say_stream(text, self._voice(voice), generator=generator_of(seed), speed=speed)

    def _voice(self, voice: Voice | None, of_tokens: bool = False) -> Any:
        """The model's form of a voice, or its S3Gen's, cached; a prompt where the transcript is known."""
        if voice is None:
            return None
        key = voice.name, of_tokens
        if self.voices.get(key, (None,))[0] != voice:
            try:
                self.voices[key] = voice, self._prepared(voice, of_tokens)
            except (VokensError, OSError) as error:
                message = f"the recording of the voice {voice.name!r} cannot be used by {self.name}"
                raise ServerFault(f"{message}: name another voice, or tell the server's operator") from error
        return self.voices[key][1]

    def _prepared(self, voice: Voice, of_tokens: bool) -> Any:
        if voice.path is None:
            return self.model.voices[voice.name]
        if not of_tokens:
            return self.model.voice(voice.path, voice.text)
        return self.s3gen.voice(*audio.load(voice.path, duration=REFERENCE_SECONDS))


def load_models(names: Sequence[str], settings: Settings, device: str = "cpu") -> dict[str, Served]:
    """The models of `names`, as `load_named` takes them, each with a queue."""
    models = {}
    for name, model in load_named(names, device).items():
        licence = registry.MODELS[name].licence if name in registry.MODELS else ""
        models[name] = Served(name, model, Batcher(settings), licence)
    return models
