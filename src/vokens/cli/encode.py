"""Turn speech into tokens.

One file becomes hello.vok next to it; -o names a file (.vok .json .npz .pt), a folder or - (standard output).
Folders and globs keep their structure.

vokens encode hello.wav    vokens encode corpus/ -o tokens/    vokens encode - -o - < hello.wav > hello.vok
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from vokens.audio_suffixes import AUDIO_SUFFIXES
from vokens.cli.conversion import Loaded, convert, group_seconds
from vokens.cli.jobs import Job, opened, plan, write
from vokens.cli.options import FORMATS, Conversion, Model, TokenFormat, load_codec, unset

if TYPE_CHECKING:
    import numpy as np

    from vokens.tokens import Tokens


@dataclass(frozen=True, kw_only=True)
class Arguments(Conversion):
    model: Model = "mini"
    codebooks: Annotated[int | None, unset("N", default="all")] = None
    """Keep the first N codebooks."""
    format: TokenFormat = None


def run(arguments: Arguments) -> int:
    from vokens import audio

    jobs = plan(arguments, AUDIO_SUFFIXES, FORMATS)
    codec = load_codec(arguments.model, arguments.compute)

    def read(job: Job) -> "Loaded[Any]":
        if codec.encode_context is None:
            return read_audio(job)
        recording = audio.Recording(opened(job.source), codec.sample_rate)
        # A longer one is a group of its own: its seconds are known after encoding.
        kind = job if recording.whole is None else codec.sample_rate
        return Loaded((recording, None), recording.seconds, kind)

    def work(recordings: "list[tuple[Any, int | None]]") -> "list[Tokens]":
        return list(
            codec.encode(
                [recording for recording, _ in recordings],
                sample_rate=recordings[0][1],
                num_codebooks=arguments.codebooks,
                batch_seconds=arguments.batch_seconds,
            )
        )

    def finish(job: Job, tokens: "Tokens") -> float:
        formats = {".vok": tokens.save, ".json": tokens.to_json, ".npz": tokens.to_npz, ".pt": tokens.to_pt}
        write(job, formats[job.suffix])
        return float(tokens.duration)

    return convert(jobs, read, work, finish, group_seconds(arguments.batch_seconds))


def read_audio(job: Job) -> "Loaded[tuple[np.ndarray, int]]":
    """The audio of a job, (T,) float32, and its own rate, which is its kind; the codec resamples."""
    from vokens import audio

    wave, rate = audio.load(opened(job.source))
    return Loaded((wave, rate), len(wave) / rate, rate)
