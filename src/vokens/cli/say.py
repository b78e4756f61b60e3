"""Say a text.

The text is the arguments, - (standard input), or with --file a file whose every line becomes a sound file in the
folder of -o: NUMBER.wav, or NAME.wav where the line is NAME<TAB>text. Long texts are split at sentences. Lines whose
file exists are skipped, so that a stopped run resumes.

vokens say "Hello there." --play
vokens say --file lines.txt --voice ref.wav -o said/
vokens say - --model runs/learnable --voice ref.wav --stream -o - < book.txt | aplay
"""

import sys
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from vokens import registry
from vokens.audio_suffixes import WRITTEN_SUFFIXES
from vokens.cli.conversion import Loaded, convert, progress
from vokens.cli.jobs import STREAM, Job, Source, make_job, refuse_overwrite, target_rule, write
from vokens.cli.options import Compute, Output, unset
from vokens.cli.play import play
from vokens.cli.speak import write_stream
from vokens.errors import ConfigError
from vokens.text.files import read_stdin, read_text

if TYPE_CHECKING:
    import numpy as np

    from vokens.models.speaking import Speaker

NAME = "said"  # of a single output, where -o does not say it


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Sampling parameters; the model's own by default."""

    seed: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """Another seed gives another take; of lines, each uses it."""
    temperature: Annotated[float | None, unset("T")] = None
    """Sampling temperature of the tokens; 0 is greedy."""
    top_p: Annotated[float | None, unset("P")] = None
    """Nucleus sampling: keep the most likely tokens whose probabilities sum to P."""
    top_k: Annotated[int | None, unset("K")] = None
    """Keep the K most likely tokens."""
    steps: Annotated[int | None, unset("N")] = None
    """Steps of the flow: fewer are faster and coarser."""
    guidance: Annotated[float | None, unset("G")] = None
    """Strength of the flow's classifier-free guidance."""
    speed: Annotated[float, tyro.conf.arg(metavar="S")] = 1.0
    """2 is twice as fast, for models that support it."""


@dataclass(frozen=True)
class Arguments:
    text: Annotated[tyro.conf.Positional[tuple[str, ...]], unset("TEXT")] = ()
    """The text, or - for standard input."""
    output: Output = None
    """File (.wav .flac .ogg .opus .mp3), folder or - for standard output (default: said.wav)."""
    file: Annotated[str | None, unset("PATH")] = None
    """A file of lines, or - for standard input: each line becomes a sound file."""
    model: Annotated[str | None, unset("NAME", "-m")] = None
    """A speaking model: a folder, a hub id or a published file (default: the embedded one)."""
    decoder: Annotated[str | None, unset("NAME")] = None
    """Decoder of the model's tokens, where that is another model: an S3Gen, or USLM's codec."""
    voice: Annotated[str | None, unset("WAV")] = None
    """A recording of the voice, 3 s to 10 s, or the name of one of the model's own (default: its default voice)."""
    voice_text: Annotated[str, unset("TEXT")] = ""
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
        unset("{wav,flac,ogg,opus,mp3,pcm}", default="wav"),
    ] = None
    """Format of the outputs, where -o has no suffix; pcm is bare 16-bit samples, for -o -."""
    batch: Annotated[int, tyro.conf.arg(metavar="N")] = 8
    """Sentences in one batch. More is faster on GPUs and needs more memory."""
    overwrite: Annotated[bool, tyro.conf.arg(aliases=("--force",))] = False
    """Say also lines whose file exists, and replace it."""
    sampling: Sampling = field(default_factory=Sampling)
    compute: Compute = field(default_factory=Compute)


def run(arguments: Arguments) -> int:
    texts = plan(arguments)
    if not texts:
        return 0
    speaker, voice = load_speaker(arguments)
    code, target = _say(arguments, texts, speaker, voice), next(iter(texts)).target
    if arguments.play and code == 0 and target is not None:
        play(target)
    return code


def plan(arguments: Arguments) -> dict[Job, str]:
    """The texts by their jobs. Raises ConfigError for contradictory arguments, before any work."""
    if bool(arguments.text) == bool(arguments.file):
        given = "both were" if arguments.text else "neither was"
        raise ConfigError(f'give a text, "vokens say TEXT" or - for standard input, or --file: {given} given')
    if arguments.batch < 1 or arguments.pause < 0 or arguments.sampling.seed < 0:
        raise ConfigError("--batch from 1, --pause and --seed from 0 are accepted")
    if arguments.play and (arguments.file or arguments.output == STREAM):
        raise ConfigError("--play plays the file of one text: leave --file and -o - out, or --play")
    if arguments.voice is None and arguments.voice_text:
        raise ConfigError("--voice-text without --voice: it is the transcript of that recording, give both")
    suffix = f".{arguments.format or 'wav'}"
    texts = _lines(arguments, suffix) if arguments.file else _single(arguments, suffix)
    if arguments.stream and any(job.suffix not in (".wav", ".pcm") for job in texts):
        raise ConfigError("--stream writes wav and pcm: other formats need the whole sound")
    return texts


def _single(arguments: Arguments, suffix: str) -> dict[Job, str]:
    text = " ".join(arguments.text)
    text = read_stdin() if text == STREAM else text
    if suffix == ".pcm" and arguments.output != STREAM:
        raise ConfigError("--format pcm goes to standard output: add -o -")
    output, source = arguments.output or f"{NAME}{suffix}", Source(None, Path(NAME))
    target = target_rule(output, [source], WRITTEN_SUFFIXES, arguments.format and suffix)(source)
    refuse_overwrite([target], arguments.overwrite)
    return {make_job(source, target, suffix): text}


def _lines(arguments: Arguments, suffix: str) -> dict[Job, str]:
    output = arguments.output
    if output is None or output == STREAM or suffix == ".pcm" or Path(output).suffix in WRITTEN_SUFFIXES:
        raise ConfigError("--file makes a sound file of every line: give a folder with -o, such as -o said/")
    names: dict[str, int] = {}
    texts: dict[Job, str] = {}
    content = read_stdin() if arguments.file == STREAM else read_text(str(arguments.file))
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        name, tab, text = line.partition("\t")
        name, text = (name.strip(), text) if tab else (f"{number:04d}", line)
        if not name or Path(name).is_absolute() or ".." in Path(name).parts:
            raise ConfigError(f"line {number} is called {name!r}: a name inside the folder of -o is accepted")
        if name in names:
            raise ConfigError(f"lines {names[name]} and {number} are both called {name!r}: give two names")
        names[name] = number
        source = Source(None, Path(name), f"line {number}")
        texts[make_job(source, Path(output) / f"{name}{suffix}", suffix)] = text.strip()
    if not texts:
        raise ConfigError(f"{arguments.file} has no line with a text")
    exist = {job for job in texts if not arguments.overwrite and job.target and job.target.exists()}
    if exist:
        told = f"vokens: {len(exist)} of {len(texts)} exist and are skipped (--force says them again)"
        print(told, file=sys.stderr)
    return {job: text for job, text in texts.items() if job not in exist}


def load_speaker(arguments: Arguments) -> "tuple[Speaker, Any]":
    """The model and the voice, None without a recording."""
    from vokens.models.speaking import load_voice

    model, compute = arguments.model or registry.VOICE, asdict(arguments.compute)
    speaking = load_voice(model, decoder=arguments.decoder, **compute)
    if arguments.voice is None:
        return speaking, None
    if arguments.voice in speaking.voices and not arguments.voice_text:
        return speaking, speaking.voices[arguments.voice]
    return speaking, speaking.voice(Path(arguments.voice), arguments.voice_text)


def say_options(arguments: Arguments, speaker: "Speaker") -> dict[str, Any]:
    given: dict[str, Any] = {
        name: value for name, value in asdict(arguments.sampling).items() if value is not None
    }
    changes = {name: given.pop(name) for name in ("temperature", "top_p", "top_k") if name in given}
    del given["seed"]  # of the generators
    return given | {
        "sampler": replace(speaker.sampler, **changes),
        "language": arguments.language,
        "spell_out": not arguments.as_it_is,
        "pause": arguments.pause,
    }


def _say(arguments: Arguments, texts: dict[Job, str], speaker: "Speaker", voice: Any) -> int:
    """Say lines in batches, batch-invariant; a line that fails does not affect the others."""
    from vokens import audio
    from vokens.models.speaking import begun, generator_of

    options, rate, seed = say_options(arguments, speaker), speaker.sample_rate, arguments.sampling.seed

    def work(group: list[str]) -> "list[np.ndarray]":
        with nullcontext() if len(texts) > 1 else progress("sentence") as bar:

            def tell(done: int, total: int) -> None:
                if bar is not None:
                    bar.total = total
                    bar.update(done - bar.n)

            generators, size = [generator_of(seed) for _ in group], arguments.batch
            return speaker.say(group, voice, generator=generators, batch_size=size, tell=tell, **options)

    def finish(job: Job, wave: "np.ndarray") -> float:
        pieces = begun(iter([wave]))
        if job.suffix == ".pcm":
            return write_stream(job, pieces, rate)
        write(job, lambda path: audio.save(path, wave, rate))
        return len(wave) / rate

    def stream(job: Job, text: str) -> float:
        pieces = speaker.say_stream(text, voice, generator=generator_of(seed), **options)
        return write_stream(job, begun(pieces), rate)

    def read(job: Job) -> Loaded[str]:
        return Loaded(texts[job], 1)

    if arguments.stream:
        return convert(list(texts), read, list, stream, arguments.batch, "line")
    return convert(list(texts), read, work, finish, arguments.batch, "line")
