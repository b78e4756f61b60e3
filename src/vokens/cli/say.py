"""Say a text.

The text is the arguments, - (standard input), or with --file a file whose every line becomes a sound file in the
folder of -o: NUMBER.wav, or NAME.wav where the line is NAME<TAB>text. Long texts are split at sentences. Lines whose
file exists are skipped, so that a stopped run resumes.

vokens say "Hello there." --play
vokens say --file lines.txt --voice ref.wav -o said/
vokens say - --model runs/learnable --voice ref.wav --stream -o - < book.txt | aplay
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from vokens import registry
from vokens.audio_suffixes import WRITTEN_SUFFIXES
from vokens.cli import one_line
from vokens.cli.jobs import STREAM, Job, Source, check_suffix, make_job, refuse_overwrite, write
from vokens.cli.options import Compute, Output
from vokens.cli.play import play
from vokens.cli.speak import write_stream
from vokens.errors import ConfigError, VokensError
from vokens.text.files import read_stdin, read_text

if TYPE_CHECKING:
    import numpy as np

    from vokens.lm.sampling import SamplingParams
    from vokens.models.speaking import Speaker

SPEAKING = (
    "learnable",
    "learnable_lm",
    "uslm",
)  # systems of config.json that speak, with or without a --decoder
NAME = "said"  # of a single output, where -o does not say it


@dataclass(frozen=True, kw_only=True)
class Draws:
    """Sampling parameters; the model's own by default."""

    seed: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """Another seed gives another take; of lines, each uses it."""
    temperature: Annotated[float | None, tyro.conf.arg(metavar="T", help_behavior_hint="")] = None
    """Sampling temperature of the tokens; 0 is greedy."""
    top_p: Annotated[float | None, tyro.conf.arg(metavar="P", help_behavior_hint="")] = None
    """Nucleus sampling: keep the most likely tokens whose probabilities sum to P."""
    top_k: Annotated[int | None, tyro.conf.arg(metavar="K", help_behavior_hint="")] = None
    """Keep the K most likely tokens."""
    steps: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None
    """Steps of the flow: fewer are faster and coarser."""
    guidance: Annotated[float | None, tyro.conf.arg(metavar="G", help_behavior_hint="")] = None
    """Strength of the flow's classifier-free guidance."""
    speed: Annotated[float, tyro.conf.arg(metavar="S")] = 1.0
    """2 is twice as fast, for models that support it."""


@dataclass(frozen=True)
class Arguments:
    text: Annotated[
        tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="TEXT", help_behavior_hint="")
    ] = ()
    """The text, or - for standard input."""
    output: Output = None
    """File (.wav .flac .ogg .opus .mp3), folder or - for standard output (default: said.wav)."""
    file: Annotated[str | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")] = None
    """A file of lines, or - for standard input: each line becomes a sound file."""
    model: Annotated[str | None, tyro.conf.arg(aliases=("-m",), metavar="NAME", help_behavior_hint="")] = None
    """A speaking model: a folder, a hub id or a published file (default: the embedded one)."""
    decoder: Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="")] = None
    """Decoder of the model's tokens, where that is another model: an S3Gen, or USLM's codec."""
    voice: Annotated[str | None, tyro.conf.arg(metavar="WAV", help_behavior_hint="")] = None
    """A recording of the voice, 3 s to 10 s, or the name of one of the model's own (default: its default voice)."""
    voice_text: Annotated[str, tyro.conf.arg(metavar="TEXT", help_behavior_hint="")] = ""
    """Transcript of the recording, for one-shot cloning that continues it, closer to its style."""
    play: bool = False
    """Play the sound when it is done, if this machine has a player."""
    stream: bool = False
    """Write sound as it is computed (wav, pcm)."""
    language: Annotated[str, tyro.conf.arg(metavar="CODE")] = "en"
    """Of the text. Numbers, dates, money and abbreviations are spelt out in English, unchanged in other languages."""
    as_it_is: bool = False
    """Do not spell out English either."""
    pause: Annotated[float, tyro.conf.arg(metavar="SECONDS")] = 0.2
    """Silence between the pieces of a long text."""
    format: Annotated[
        Literal["wav", "flac", "ogg", "opus", "mp3", "pcm"] | None,
        tyro.conf.arg(metavar="{wav,flac,ogg,opus,mp3,pcm}", help_behavior_hint="(default: wav)"),
    ] = None
    """Format of the outputs, where -o has no suffix; pcm is bare 16-bit samples, for -o -."""
    batch: Annotated[int, tyro.conf.arg(metavar="N")] = 8
    """Sentences in one batch. More is faster on GPUs and needs more memory."""
    overwrite: Annotated[bool, tyro.conf.arg(aliases=("--force",))] = False
    """Say also lines whose file exists, and replace it."""
    draws: Draws = field(default_factory=Draws)
    compute: Compute = field(default_factory=Compute)


@dataclass(frozen=True)
class Line:
    """A text and its output; place: its name in errors."""

    text: str
    job: Job
    place: str


def run(arguments: Arguments) -> int:
    """Say all texts; returns the exit code."""
    lines = plan(arguments)
    if not lines:
        return 0
    speaker, voice = load_speaker(arguments)
    options = say_options(arguments, speaker)
    code = _say(arguments, lines, speaker, voice, options)
    if arguments.play and code == 0 and lines[0].job.target is not None:
        play(lines[0].job.target)
    return code


def _say(
    arguments: Arguments, lines: list[Line], speaker: "Speaker", voice: Any, options: dict[str, Any]
) -> int:
    if arguments.stream:
        return _each(lines, lambda line: _stream(speaker, line, voice, options, arguments.draws.seed))
    if len(lines) == 1:
        return _each(lines, lambda line: _say_one(speaker, line, voice, options, arguments))
    return _say_many(speaker, lines, voice, options, arguments)


# Texts and their outputs ------------------------------------------------------------------------------


def plan(arguments: Arguments) -> list[Line]:
    """The texts and their outputs. Raises ConfigError for contradictory arguments, before any work."""
    if bool(arguments.text) == bool(arguments.file):
        given = "both were" if arguments.text else "neither was"
        raise ConfigError(f'give a text, "vokens say TEXT" or - for standard input, or --file: {given} given')
    if arguments.batch < 1 or arguments.pause < 0 or arguments.draws.seed < 0:
        raise ConfigError("--batch from 1, --pause and --seed from 0 are accepted")
    if arguments.play and (arguments.file or arguments.output == STREAM):
        raise ConfigError("--play plays the file of one text: leave --file and -o - out, or --play")
    suffix = f".{arguments.format or 'wav'}"
    if arguments.stream and suffix not in (".wav", ".pcm"):
        raise ConfigError("--stream writes wav and pcm: other formats need the whole sound")
    lines = _lines(arguments, suffix) if arguments.file else [_single(arguments, suffix)]
    if arguments.stream and any(line.job.suffix not in (".wav", ".pcm") for line in lines):
        raise ConfigError("--stream writes wav and pcm: other formats need the whole sound")
    return lines


def _single(arguments: Arguments, suffix: str) -> Line:
    text, output = " ".join(arguments.text), arguments.output
    text = read_stdin() if text == STREAM else text
    if output == STREAM:
        return Line(text, make_job(Source(None, Path(NAME)), None, suffix), "the text")
    if suffix == ".pcm":
        raise ConfigError("--format pcm goes to standard output: add -o -")
    path = Path(output or f"{NAME}{suffix}")
    if output and (path.is_dir() or output.endswith("/") or not path.suffix):
        path = path / f"{NAME}{suffix}"
    check_suffix(path, WRITTEN_SUFFIXES)
    if arguments.format and path.suffix.lower() != suffix:
        raise ConfigError(f"-o {output} and --format {arguments.format} disagree: leave one of them out")
    refuse_overwrite([path], arguments.overwrite)
    return Line(text, make_job(Source(None, Path(NAME)), path, suffix), "the text")


def _lines(arguments: Arguments, suffix: str) -> list[Line]:
    """The lines that are still to be said."""
    output = arguments.output
    if output is None or output == STREAM or suffix == ".pcm" or Path(output).suffix in WRITTEN_SUFFIXES:
        raise ConfigError("--file makes a sound file of every line: give a folder with -o, such as -o said/")
    names: dict[str, int] = {}
    lines = []
    content = read_stdin() if arguments.file == STREAM else read_text(str(arguments.file))
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        name, tab, text = line.partition("\t")
        name, text = (name.strip(), text) if tab else (f"{number:04d}", line)
        if not name or Path(name).is_absolute() or ".." in Path(name).parts:
            raise ConfigError(f"line {number} is called {name!r}: a name inside the folder of -o is accepted")
        if name in names:
            raise ConfigError(
                f"lines {names[name]} and {number} are both called {name!r}: give them two names"
            )
        names[name] = number
        job = make_job(Source(None, Path(name)), Path(output) / f"{name}{suffix}", suffix)
        lines.append(Line(text.strip(), job, f"line {number}"))
    if not lines:
        raise ConfigError(f"{arguments.file} has no line with a text")
    left = [line for line in lines if arguments.overwrite or not _exists(line)]
    if len(left) < len(lines):
        print(
            f"vokens: {len(lines) - len(left)} of {len(lines)} exist and are skipped (--force says them again)",
            file=sys.stderr,
        )
    return left


def _exists(line: Line) -> bool:
    return line.job.target is not None and line.job.target.exists()


# The model ----------------------------------------------------------------------------------------------------------


def load_speaker(arguments: Arguments) -> "tuple[Speaker, Any]":
    """The model and the voice, None without a recording."""
    if arguments.model is None and registry.VOICE not in registry.MODELS:
        raise ConfigError(_no_model())
    from vokens.models.speaking import load_voice

    compute = arguments.compute
    speaking = load_voice(
        arguments.model or registry.VOICE,
        decoder=arguments.decoder,
        device=compute.device,
        dtype=compute.dtype,
    )
    if arguments.voice is None:
        return speaking, None
    if arguments.voice in speaking.voices and not arguments.voice_text:
        return speaking, speaking.voices[arguments.voice]
    return speaking, speaking.voice(Path(arguments.voice), arguments.voice_text)


def say_options(arguments: Arguments, speaker: "Speaker") -> dict[str, Any]:
    """Arguments of `Speaker.say`."""
    if arguments.voice is None and arguments.voice_text:
        raise ConfigError(
            "--voice-text was given without --voice: it is the transcript of that recording, give both"
        )
    draws = arguments.draws
    return {
        "sampler": _sampler(speaker.sampler, draws),
        "steps": draws.steps,
        "guidance": draws.guidance,
        "speed": draws.speed,
        "language": arguments.language,
        "spell_out": not arguments.as_it_is,
        "pause": arguments.pause,
    }


def _sampler(sampling: "SamplingParams", draws: Draws) -> "SamplingParams":
    """The model's sampling parameters with the given changes."""
    given = {"temperature": draws.temperature, "top_p": draws.top_p, "top_k": draws.top_k}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return replace(sampling, **changes)


def _no_model() -> str:
    """Error message of a missing model: local ones, or how to get one."""
    models = ", ".join(sorted(map(str, _models_here())))
    here = f"found here: {models}" if models else "none was found in ./runs"
    return (
        "no model was given, and none that speaks is in this copy of vokens: --model takes a folder of "
        "Learnable-Speech, of USLM, or of Learnable-Speech's language model with an S3Gen as --decoder. `vokens train "
        f"learnable_lm_mini` trains one, docs/jobs/say.md has the rest; {here}"
    )


def _models_here() -> Iterator[Path]:
    """Folders of trained speaking models below ./runs."""
    for path in Path("runs").glob("*/**/config.json"):
        try:
            if json.loads(path.read_text()).get("system") in SPEAKING:
                yield path.parent
        except (OSError, ValueError, AttributeError):
            continue


# Speech ----------------------------------------------------------------------------------------------------------


def _generator(seed: int) -> Any:
    import torch

    return torch.Generator().manual_seed(seed)


def _stream(speaker: "Speaker", line: Line, voice: Any, options: dict[str, Any], seed: int) -> float:
    """Stream one text; returns the seconds of sound."""
    from vokens.models.speaking import ENDED

    count = 0

    def counted() -> "Iterator[np.ndarray]":
        nonlocal count
        for piece in speaker.say_stream(line.text, voice, generator=_generator(seed), **options):
            count += len(piece)
            yield piece
        if not count:
            raise ConfigError(ENDED)

    write_stream(line.job, counted(), speaker.sample_rate)
    return count / speaker.sample_rate


def _say_one(
    speaker: "Speaker", line: Line, voice: Any, options: dict[str, Any], arguments: Arguments
) -> float:
    """Say one text, with the progress of its sentences; returns the seconds of sound."""
    with _bar("sentence") as bar:

        def tell(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        (wave,) = speaker.say(
            line.text,
            voice,
            generator=_generator(arguments.draws.seed),
            batch_size=arguments.batch,
            tell=tell,
            **options,
        )
    _save(line, wave, speaker.sample_rate)
    return len(wave) / speaker.sample_rate


def _say_many(
    speaker: "Speaker", lines: list[Line], voice: Any, options: dict[str, Any], arguments: Arguments
) -> int:
    """Say lines in batches, batch-invariant; a line that fails does not affect the others."""
    done, seconds, start = 0, 0.0, time.perf_counter()
    with _bar("line", len(lines)) as bar:
        for first in range(0, len(lines), arguments.batch):
            group = lines[first : first + arguments.batch]
            for line, made in _said(speaker, group, voice, options, arguments):
                try:
                    if isinstance(made, VokensError):
                        raise made
                    _save(line, made, speaker.sample_rate)
                except (VokensError, OSError) as error:
                    bar.write(f"vokens: error: {line.place}: {one_line(error)}", file=sys.stderr)
                else:
                    done, seconds = done + 1, seconds + len(made) / speaker.sample_rate
                bar.update()
    _report(f"{done} of {len(lines)} done", seconds, start)
    return 0 if done == len(lines) else 1


def _said(
    speaker: "Speaker", group: list[Line], voice: Any, options: dict[str, Any], arguments: Arguments
) -> list[tuple[Line, Any]]:
    """Lines with their waves or their errors."""
    try:
        generators = [_generator(arguments.draws.seed) for _ in group]
        texts = [line.text for line in group]
        waves = speaker.say(texts, voice, generator=generators, batch_size=arguments.batch, **options)
        return list(zip(group, waves, strict=True))
    except VokensError as error:
        if len(group) == 1:
            return [(group[0], error)]
    return [pair for line in group for pair in _said(speaker, [line], voice, options, arguments)]


def _each(lines: list[Line], say: Callable[[Line], float]) -> int:
    """Say lines one by one; the error of a single one is raised."""
    done, seconds, start = 0, 0.0, time.perf_counter()
    for line in lines:
        try:
            seconds += say(line)
        except (VokensError, OSError) as error:
            if len(lines) == 1 or isinstance(error, BrokenPipeError):
                raise
            print(f"vokens: error: {line.place}: {one_line(error)}", file=sys.stderr)
        else:
            done += 1
    single = f"wrote {lines[0].job.target or 'to standard output'}"
    _report(single if len(lines) == 1 else f"{done} of {len(lines)} done", seconds, start)
    return 0 if done == len(lines) else 1


def _save(line: Line, wave: "np.ndarray", rate: int) -> None:
    from vokens import audio
    from vokens.models.speaking import ENDED

    if not len(wave):
        raise ConfigError(ENDED)
    if line.job.suffix == ".pcm":
        write_stream(line.job, [wave], rate)
    else:
        write(line.job, lambda path: audio.save(path, wave, rate))


def _report(what: str, seconds: float, start: float) -> None:
    taken = time.perf_counter() - start
    print(f"vokens: {what}, {seconds:.1f} s of speech in {taken:.1f} s", file=sys.stderr)


def _bar(unit: str, total: int | None = None) -> Any:
    """A progress bar on a terminal; in a log a line every ten seconds, and none within three seconds."""
    from tqdm import tqdm

    if sys.stderr.isatty():
        return tqdm(total=total, unit=unit, file=sys.stderr, leave=False)
    line = f"{{n_fmt}} of {{total_fmt}} {unit}s, {{elapsed}} passed\n"
    return tqdm(total=total, file=sys.stderr, leave=False, delay=3.0, mininterval=10.0, bar_format=line)
