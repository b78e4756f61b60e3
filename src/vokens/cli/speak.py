"""Speak semantic tokens in the voice of a recording.

One file becomes hello.wav next to it; -o names a file, a folder or - (standard output). --stream writes sound as it
is computed, so that a player can start.

vokens speak hello.vok --voice ref.wav -o out.wav    vokens speak hello.vok --voice ref.wav --stream -o - | aplay
"""

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from vokens import registry
from vokens.audio_suffixes import WRITTEN_SUFFIXES
from vokens.cli.convert import Loaded, convert, group_seconds
from vokens.cli.decode import read_tokens
from vokens.cli.jobs import Job, plan, write
from vokens.cli.options import FORMATS, BatchSeconds, Compute, Inputs, Output, SoundFormat, load_model
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
    model: Annotated[str | None, tyro.conf.arg(aliases=("-m",), metavar="NAME", help_behavior_hint="")] = None
    """An S3Gen or Learnable-Speech: a name of `vokens models`, a hub id, a folder or a published file (default: by the
    first input's tokens, chatterbox_s3gen for bare ids; for convert-voice say, where embedded)."""
    stream: bool = False
    """Write sound as it is computed (wav only), under the streaming mask."""
    steps: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: of the model)")] = (
        None
    )
    """Steps of the flow: fewer are faster and coarser."""
    seed: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """Another seed gives another take."""
    format: SoundFormat = None
    """Format of the outputs, where -o has no suffix."""
    batch_seconds: BatchSeconds = 60.0
    """Speech in one batch, padding included. More is faster on GPUs and needs more memory."""
    overwrite: bool = False
    """Replace outputs that exist."""


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
    """Speak all inputs; returns the exit code."""
    speech = arguments.speech
    jobs = sound_jobs(arguments.inputs, arguments.output, speech, (*FORMATS, ".npy"))
    model, voice = load_speaker(speech, arguments.compute, registry.speaker_of(_tokenizer(jobs[0])))

    def read(job: Job) -> "Loaded[Tensor]":
        return loaded_ids(job, read_tokens(job.source, lambda: model), model)

    work, finish = in_voice(model, voice, speech)
    return convert(jobs, read, work, finish, group_seconds(speech.batch_seconds))


def sound_jobs(
    inputs: tuple[str, ...], output: str | None, speech: Speech, suffixes: tuple[str, ...]
) -> list[Job]:
    """The jobs from inputs to sound files."""
    suffix = ".wav" if speech.stream and not speech.format else speech.format and f".{speech.format}"
    jobs = plan(
        inputs, output, suffixes=suffixes, outputs=WRITTEN_SUFFIXES, suffix=suffix, overwrite=speech.overwrite
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
        raise ConfigError(
            f"--model {speech.model} is a {model.system}: an s3gen or a learnable speaks tokens in a voice"
        )
    if model.config.flow.network == "dit":
        model.fix_steps(speech.steps)
    return model, model.voice(*reference)


def loaded_ids(job: Job, tokens: "Tokens", model: "S3GenModel | FlowDecoder") -> "Loaded[Tensor]":
    """The ids (N,) of one recording. Raises TokensError for another tokenizer's, and for none."""
    (ids,) = model.ids(tokens)
    if not len(ids):
        raise TokensError(f"{job.source} holds no frames: there is nothing to speak; encode it again")
    return Loaded(job, ids, float(tokens.duration))


def in_voice(
    model: "S3GenModel | FlowDecoder", voice: "ReferenceVoice | SpeakerPrompt", speech: Speech
) -> "tuple[Callable[[list[Tensor]], Sequence[Any]], Callable[[Job, Any], float]]":
    """The functions that `convert` takes: from ids (N,) to speech, and from speech to a file."""
    from vokens import audio

    options: dict[str, Any] = {"seed": speech.seed, "n_cfm_timesteps": speech.steps}

    def stream(job: Job, ids: "Tensor") -> float:
        return write_stream(job, model.stream(ids.split(25), voice, **options), model.sample_rate)

    def save(job: Job, wave: "np.ndarray") -> float:
        write(job, lambda path: audio.save(path, wave, model.sample_rate))
        return len(wave) / model.sample_rate

    if speech.stream:
        return list, stream
    return partial(model.speak, voice=voice, batch_seconds=speech.batch_seconds, **options), save


def write_stream(job: Job, pieces: "Iterable[np.ndarray]", rate: int) -> float:
    """Write sound as it is computed: to a file that appears when complete, or to standard output, 16 bit, without a
    header for .pcm. Returns its seconds."""
    import soundfile

    from vokens.atomic import atomic_write
    from vokens.serve.sound import Writer

    count = 0
    if job.target is None:
        writer = Writer(job.suffix[1:], rate)
        for (
            piece
        ) in pieces:  # the header comes with the first samples, so that an earlier error leaves nothing
            sys.stdout.buffer.write(writer.write(piece))
            sys.stdout.buffer.flush()
            count += len(piece)
        return count / rate
    job.target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(job.target) as path, soundfile.SoundFile(path, "w", rate, 1, format="WAV") as file:
        for piece in pieces:
            file.write(piece)
            count += len(piece)
    return count / rate
