"""Speak semantic tokens in the voice of a recording.

One file becomes hello.wav next to it; -o names a file, a folder or - (standard output). --stream writes sound as it
is computed, so that a player can start.

vokens speak hello.vok --voice ref.wav -o out.wav    vokens speak hello.vok --voice ref.wav --stream -o - | aplay
"""

import struct
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from vokens.audio_suffixes import WRITTEN_SUFFIXES
from vokens.cli.convert import Loaded, convert
from vokens.cli.decode import read_tokens
from vokens.cli.jobs import Job, plan, write
from vokens.cli.options import FORMATS, BatchSeconds, Compute, Inputs, Output, load_model
from vokens.errors import ConfigError, TokensError

if TYPE_CHECKING:
    import numpy as np

    from vokens.models.learnable.decoder import FlowDecoder, SpeakerPrompt
    from vokens.models.s3gen import ReferenceVoice, S3GenModel
    from vokens.tokens import Tokens

REFERENCE_SECONDS = 10.0  # of the reference that are used, as in Chatterbox


@dataclass(frozen=True, kw_only=True)
class Speech:
    """Options of speaking, independent of the input."""

    voice: Annotated[str, tyro.conf.arg(metavar="WAV")]
    """A recording of the voice; its first 10 s are used, 3 s are enough."""
    model: Annotated[str | None, tyro.conf.arg(aliases=("-m",), metavar="NAME", help_behavior_hint="")] = None
    """An S3Gen or Learnable-Speech: a name of `vokens models`, a hub id, a folder or a published file (default:
    chatterbox_s3gen; for convert-voice say, where embedded)."""
    stream: bool = False
    """Write sound as it is computed (wav only), under the streaming mask."""
    steps: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: of the model)")] = (
        None
    )
    """Steps of the flow: fewer are faster and coarser."""
    seed: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """Another seed gives another take."""
    format: Annotated[
        Literal["wav", "flac", "ogg", "opus", "mp3"] | None,
        tyro.conf.arg(metavar="{wav,flac,ogg,opus,mp3}", help_behavior_hint="(default: wav)"),
    ] = None
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
    model, voice = load_speaker(speech, arguments.compute)

    def read(job: Job) -> "Loaded[Tokens]":
        tokens = read_tokens(job.source, lambda: model)
        model.ids(tokens)  # raises for another tokenizer before anything is spoken
        if not int(tokens.lengths[0]):
            raise TokensError(f"{job.source} holds no frames: there is nothing to speak; encode it again")
        return Loaded(job, tokens, seconds=float(tokens.duration.sum()))

    return speak_all(jobs, read, lambda item: item.value, model, voice, speech)


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


def load_speaker(
    speech: Speech, compute: Compute, default: str = "chatterbox_s3gen"
) -> "tuple[S3GenModel | FlowDecoder, ReferenceVoice | SpeakerPrompt]":
    """The model and the voice of its reference."""
    from vokens import audio
    from vokens.models.learnable.voice import LearnableSpeech
    from vokens.models.s3gen import S3GenModel

    wave, rate = audio.load(Path(speech.voice))
    model = load_model(speech.model or default, compute)
    if isinstance(model, LearnableSpeech):
        return model.decoder, model.decoder.voice(wave[: int(REFERENCE_SECONDS * rate)], rate)
    if not isinstance(model, S3GenModel):
        raise ConfigError(
            f"--model {speech.model} is a {model.system}: an s3gen or a learnable speaks tokens in a voice"
        )
    if model.config.flow.network == "dit":
        model.fix_steps(speech.steps)
    return model, model.voice(wave[: int(REFERENCE_SECONDS * rate)], rate)


def speak_all(
    jobs: list[Job],
    read: Callable[[Job], Loaded[Any]],
    tokens_of: "Callable[[Loaded[Any]], Tokens]",
    model: "S3GenModel | FlowDecoder",
    voice: "ReferenceVoice | SpeakerPrompt",
    speech: Speech,
) -> int:
    """Speak the tokens (`tokens_of`) of the input (`read`) of each job."""
    from vokens import audio

    def work(group: "list[Loaded[Any]]") -> list[Any]:
        rows = [row for item in group for row in model.ids(tokens_of(item))]
        if speech.stream:
            return rows
        return model.speak(
            rows, voice, seed=speech.seed, n_cfm_timesteps=speech.steps, batch_seconds=speech.batch_seconds
        )

    def finish(job: Job, result: Any) -> None:
        if speech.stream:
            pieces = model.stream(result.split(25), voice, n_cfm_timesteps=speech.steps, seed=speech.seed)
            write_stream(job, pieces, model.sample_rate)
        else:
            write(job, lambda path: audio.save(path, result, model.sample_rate))

    return convert(jobs, read, work, finish, speech.batch_seconds)


def write_stream(job: Job, pieces: "Iterable[np.ndarray]", rate: int) -> None:
    """Write sound as it is computed: to a file that appears when complete, or to standard output, 16 bit, without a
    header for .pcm."""
    import numpy as np
    import soundfile

    from vokens.atomic import atomic_write

    if job.target is None:
        out = sys.stdout.buffer
        head = b"" if job.suffix == ".pcm" else _endless_header(rate)
        for piece in pieces:
            out.write(head + (np.clip(piece, -1, 1) * 32767).round().astype("<i2").tobytes())
            out.flush()
            head = b""  # written with the first samples, so that an earlier error leaves nothing
        return
    job.target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(job.target) as path, soundfile.SoundFile(path, "w", rate, 1, format="WAV") as file:
        for piece in pieces:
            file.write(piece)


def _endless_header(rate: int) -> bytes:
    """Header of a mono 16-bit wav of unknown length, which players treat as endless."""
    chunk = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16)
    return b"RIFF\xff\xff\xff\xffWAVE" + chunk + b"data\xff\xff\xff\xff"
