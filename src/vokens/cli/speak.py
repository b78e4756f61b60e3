"""Speak semantic tokens in the voice of a recording.

One file becomes hello.wav next to it; -o names a file, a folder or - (standard output). --stream writes sound as it
is computed, so that a player can start.

vokens speak hello.vok --voice ref.wav -o out.wav    vokens speak hello.vok --voice ref.wav --stream -o - | aplay
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from vokens import registry
from vokens.audio_suffixes import WRITTEN_SUFFIXES
from vokens.cli.conversion import Loaded, convert, group_seconds
from vokens.cli.decode import read_tokens
from vokens.cli.jobs import Job, plan, write
from vokens.cli.options import FORMATS, Conversion, Inputs, SoundFormat, load_model, unset
from vokens.errors import ConfigError, TokensError, VokensError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from vokens.models.learnable.decoder import FlowDecoder, SpeakerPrompt
    from vokens.models.s3gen import ReferenceVoice, S3GenModel
    from vokens.tokens import Tokens


@dataclass(frozen=True, kw_only=True)
class Speech(Conversion):
    """Options of the verbs that speak tokens."""

    voice: Annotated[str, tyro.conf.arg(metavar="WAV")]
    """A recording of the voice; its first 10 s are used, 3 s are enough."""
    model: Annotated[str | None, unset("NAME", "-m")] = None
    """An S3Gen or Learnable-Speech: a name of `vokens models`, a hub id, a folder or a published file (default: by the
    first input's tokens, chatterbox_s3gen for bare ids; for convert-voice say, where embedded)."""
    stream: bool = False
    """Write sound as it is computed (wav only), under the streaming mask."""
    steps: Annotated[int | None, unset("N", default="of the model")] = None
    """Steps of the flow: fewer are faster and coarser."""
    seed: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """Another seed gives another take."""
    format: SoundFormat = None


@dataclass(frozen=True, kw_only=True)
class Arguments(Speech):
    inputs: Inputs
    """Token files (.vok, .json, .npz, .pt), folders, quoted globs, or - for standard input. Also bare ids (T,) of the
    model's tokenizer: .npy, "codes" of an .npz, or json lists."""


def run(arguments: Arguments) -> int:
    jobs = sound_jobs(arguments, (*FORMATS, ".npy"))
    default = registry.speaker_of(_tokenizer(jobs[0]))
    return speak(jobs, arguments, default, lambda model, job: read_tokens(job.source, lambda: model))


def sound_jobs(arguments: Speech, suffixes: tuple[str, ...]) -> list[Job]:
    """The jobs from the inputs, with these suffixes in folders, to sound files."""
    jobs = plan(arguments, suffixes, WRITTEN_SUFFIXES)
    if arguments.stream and any(job.suffix != ".wav" for job in jobs):
        raise ConfigError("--stream writes .wav: other formats need the whole sound")
    return jobs


def _tokenizer(job: Job) -> str:
    """The tokenizer of a token file; "" for bare ids, standard input, and what reading will refuse."""
    from vokens.tokens import Tokens

    try:
        return Tokens.load(job.source.path).model if job.source.path else ""
    except VokensError:
        return ""


def load_speaker(
    arguments: Speech, default: str
) -> "tuple[S3GenModel | FlowDecoder, ReferenceVoice | SpeakerPrompt]":
    """The model and the voice of its reference."""
    from vokens import audio
    from vokens.models.learnable.voice import LearnableSpeech
    from vokens.models.s3gen import S3GenModel
    from vokens.models.s3gen.voice import REFERENCE_SECONDS

    reference = audio.load(Path(arguments.voice), duration=REFERENCE_SECONDS)
    model = load_model(arguments.model or default, arguments.compute)
    if isinstance(model, LearnableSpeech):
        return model.decoder, model.decoder.voice(*reference)
    if not isinstance(model, S3GenModel):
        raise ConfigError(
            f"--model {arguments.model} is a {model.system}: an s3gen or learnable speaks tokens"
        )
    if model.config.flow.network == "dit":
        model.fix_steps(arguments.steps)
    return model, model.voice(*reference)


def speak(
    jobs: list[Job],
    arguments: Speech,
    default: str,
    tokens_of: "Callable[[S3GenModel | FlowDecoder, Job], Tokens]",
) -> int:
    """Speak the tokens of all jobs and return the exit code. default: the model, where none was given."""
    from vokens import audio

    seconds = arguments.batch_seconds
    options: dict[str, Any] = {"seed": arguments.seed, "n_cfm_timesteps": arguments.steps}
    model, voice = load_speaker(arguments, default)
    rate = model.sample_rate

    def read(job: Job) -> "Loaded[Tensor]":
        tokens = tokens_of(model, job)
        (ids,) = model.ids(tokens)
        if not len(ids):
            raise TokensError(f"{job.source} holds no frames: there is nothing to speak; encode it again")
        return Loaded(ids, float(tokens.duration))

    def stream(job: Job, ids: "Tensor") -> float:
        return write_stream(job, model.stream(ids.split(25), voice, **options), rate)

    def save(job: Job, wave: "np.ndarray") -> float:
        write(job, lambda path: audio.save(path, wave, rate))
        return len(wave) / rate

    if arguments.stream:
        return convert(jobs, read, list, stream, group_seconds(seconds))
    work = partial(model.speak, voice=voice, batch_seconds=seconds, **options)
    return convert(jobs, read, work, save, group_seconds(seconds))


def write_stream(job: Job, pieces: "Iterable[np.ndarray]", rate: int) -> float:
    """Write sound as it is computed: to a file that appears when complete, or to standard output, 16 bit, without a
    header for .pcm. Returns its seconds."""
    from vokens import audio
    from vokens.serve.sound import Writer

    count = 0

    def counted() -> "Iterator[np.ndarray]":
        nonlocal count
        for piece in pieces:
            if len(piece):
                count += len(piece)
                yield piece

    if job.target is not None:
        write(job, lambda path: audio.save(path, counted(), rate))
        return count / rate
    writer = Writer(job.suffix[1:], rate)
    for piece in counted():
        # The header comes with the first samples, so that an earlier error leaves nothing.
        sys.stdout.buffer.write(writer.write(piece))
        sys.stdout.buffer.flush()
    return count / rate
