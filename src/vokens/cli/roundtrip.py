"""Speech to tokens to speech, with figures, sound and a picture of what a codec keeps.

vokens roundtrip hello.wav -o again.wav --picture again.png
"""

import sys
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from vokens.atomic import atomic_write
from vokens.audio_suffixes import WRITTEN_SUFFIXES
from vokens.cli.jobs import STREAM, find_sources, make_job, opened, output_file, refuse_overwrite, write
from vokens.cli.options import Codebooks, Compute, Model, Output, Overwrite, load_codec, unset
from vokens.errors import ConfigError

_PICTURES = (".png", ".svg", ".pdf")


@dataclass(frozen=True)
class Arguments:
    input: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="INPUT")]
    """A sound file, or - for standard input."""
    output: Output = None
    """Sound file to write (.wav .flac .ogg .opus .mp3), or - for standard output."""
    picture: Annotated[str | None, unset("PATH")] = None
    """Picture to write (.png .svg .pdf): waveforms, log-mels, tokens and the difference."""
    model: Model = "mini"
    codebooks: Codebooks = None
    overwrite: Overwrite = False
    compute: Compute = field(default_factory=Compute)


def run(arguments: Arguments) -> int:
    from vokens import audio
    from vokens.cli.report import travel
    from vokens.picture import matplotlib_figure, roundtrip_figure, save_figure

    source, *others = find_sources([arguments.input], ())
    if others:
        raise ConfigError(f"{arguments.input} names {len(others) + 1} files: roundtrip takes one")
    target = None if arguments.output in (None, STREAM) else output_file(arguments.output, WRITTEN_SUFFIXES)
    picture = None if arguments.picture is None else output_file(arguments.picture, _PICTURES)
    refuse_overwrite([target, picture], arguments.overwrite)
    if picture is not None:
        matplotlib_figure()  # raise for a missing package before anything is computed
    job = None if arguments.output is None else make_job(source, target, ".wav")

    wave, rate = audio.load(opened(source))
    codec = load_codec(arguments.model, arguments.compute)
    trip = travel(codec, wave, rate, arguments.codebooks)
    if picture is not None:
        picture.parent.mkdir(parents=True, exist_ok=True)
    with nullcontext() if picture is None else atomic_write(picture) as drawing:  # both files or neither
        if drawing is not None:
            name = source.place.name if source.path else ""
            save_figure(roundtrip_figure(trip.original, trip.decoded, trip.tokens, name), drawing)
        if job is not None:
            write(job, lambda path: audio.save(path, trip.decoded, codec.sample_rate))
    print(trip.summary(), file=sys.stderr if arguments.output == STREAM else sys.stdout)
    return 0
