"""Speak semantic tokens in the voice of a recording.

One file becomes hello.wav next to it; -o names a file, a folder or - (standard output). --stream writes sound as it
is computed, so that a player can start.

vokens speak hello.vok --voice ref.wav -o out.wav    vokens speak hello.vok --voice ref.wav --stream -o - | aplay
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from vokens import registry
from vokens.audio_suffixes import WRITTEN_SUFFIXES
from vokens.cli.conversion import Loaded, convert, group_seconds
from vokens.cli.decode import read_tokens
from vokens.cli.jobs import Job, plan, write
from vokens.cli.options import (
    FORMATS,
    BatchSeconds,
    Compute,
    Inputs,
    Output,
    Overwrite,
    SoundFormat,
    load_model,
    unset,
)
from vokens.errors import ConfigError, TokensError, VokensError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from vokens.models.learnable.decoder import FlowDecoder, SpeakerPrompt
    from vokens.models.s3gen import ReferenceVoice, S3GenModel
    from vokens.tokens import Tokens


@dataclass(frozen=True, kw_only=True)
class Speech:
    """Options of speaking, independent of the input."""

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
    batch_seconds: BatchSeconds = 60.0
    overwrite: Overwrite = False


@dataclass(frozen=True)
class Arguments:
    inputs: Inputs
    """Token files (.vok, .json, .npz, .pt), folders, quoted globs, or - for standard input. Also bare ids (T,) of the
    model's tokenizer: .npy, "codes" of an .npz, or json lists."""
    speech: Speech
    output: Output = None
    """File, folder or - for standard output (default: next to each input)."""
    compute: Compute = field(default_factory=Compute)


def run(arguments: Arguments) -> int:
    jobs = sound_jobs(arguments, (*FORMATS, ".npy"))
    default = registry.speaker_of(_tokenizer(jobs[0]))
    return convert(
        jobs, *spoken(arguments, default, lambda model, job: read_tokens(job.source, lambda: model))
    )


def sound_jobs(arguments: Any, suffixes: tuple[str, ...]) -> list[Job]:
    """The jobs from the inputs of a verb, with these suffixes in folders, to sound files."""
    speech: Speech = arguments.speech
    suffix = ".wav" if speech.stream and not speech.format else speech.format and f".{speech.format}"
    given, target, overwrite = arguments.inputs, arguments.output, speech.overwrite
    jobs = plan(
        given, target, suffixes=suffixes, outputs=WRITTEN_SUFFIXES, suffix=suffix, overwrite=overwrite
    )
    if speech.stream and any(job.suffix != ".wav" for job in jobs):
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
    speech: Speech, compute: Compute, default: str
) -> "tuple[S3GenModel | FlowDecoder, ReferenceVoice | SpeakerPrompt]":
    """The model and the voice of its reference."""
    from vokens import audio
    from vokens.models.learnable.voice import LearnableSpeech
    from vokens.models.s3gen import S3GenModel
    from vokens.models.s3gen.voice import REFERENCE_SECONDS

    reference = audio.load(Path(speech.voice), duration=REFERENCE_SECONDS)
    model = load_model(speech.model or default, compute)
    if isinstance(model, LearnableSpeech):
        return model.decoder, model.decoder.voice(*reference)
    if not isinstance(model, S3GenModel):
        raise ConfigError(f"--model {speech.model} is a {model.system}: an s3gen or learnable speaks tokens")
    if model.config.flow.network == "dit":
        model.fix_steps(speech.steps)
    return model, model.voice(*reference)


Steps = tuple[
    Callable[[Job], Loaded[Any]], Callable[[list[Any]], Sequence[Any]], Callable[[Job, Any], float], float
]


def spoken(
    arguments: Any, default: str, tokens_of: "Callable[[S3GenModel | FlowDecoder, Job], Tokens]"
) -> Steps:
    """Steps of `convert` that speak tokens by a verb's arguments: read, work, write, and the size of a group.

    default: the model. tokens_of: the tokens of a job.
    """
    from vokens import audio

    speech: Speech = arguments.speech
    options: dict[str, Any] = {"seed": speech.seed, "n_cfm_timesteps": speech.steps}
    model, voice = load_speaker(speech, arguments.compute, default)
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

    size = group_seconds(speech.batch_seconds)
    if speech.stream:
        return read, list, stream, size
    return read, partial(model.speak, voice=voice, batch_seconds=speech.batch_seconds, **options), save, size


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
