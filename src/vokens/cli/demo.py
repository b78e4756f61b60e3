"""Encode and decode a real recording that comes with the package, and say a sentence. Needs no network.

Prints the tokens and figures, and writes the recording, its tokens, the resynthesis, a picture and the sentence.
"""

from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from vokens.cli.options import Compute, Model, load_codec
from vokens.errors import MissingExtra

if TYPE_CHECKING:
    from vokens.cli.report import Trip
    from vokens.tokens import Tokens

_SHOWN = 12  # tokens printed per codebook
SENTENCE = "Hello! These words were tokens before they were sound."


@dataclass(frozen=True)
class Arguments:
    output: Annotated[Path, tyro.conf.arg(aliases=("-o", "--out"), metavar="FOLDER")] = Path("vokens-demo")
    """Folder of the results; those of an earlier demo are replaced."""
    sample: Literal["english", "mandarin"] = "english"
    """The recording (LibriSpeech, AISHELL-1)."""
    model: Model = "mini"
    compute: Compute = field(default_factory=Compute)


def run(arguments: Arguments) -> int:
    from vokens import audio, registry
    from vokens.cli.report import table, travel
    from vokens.device import usable_device
    from vokens.models.speaking import generator_of, load_voice

    wave, rate = audio.load((files("vokens") / "samples" / f"{arguments.sample}.flac").read_bytes())
    codec = load_codec(arguments.model, arguments.compute)
    trip = travel(codec, wave, rate)
    print(_first_tokens(trip.tokens), trip.summary(), sep="\n\n", end="\n\n")

    folder, name = arguments.output, arguments.sample
    folder.mkdir(parents=True, exist_ok=True)
    audio.save(folder / f"{name}.original.wav", trip.original, codec.sample_rate)
    trip.tokens.save(folder / f"{name}.vok")
    audio.save(folder / f"{name}.wav", trip.decoded, codec.sample_rate)
    made = (("original", ".original.wav"), ("tokens", ".vok"), ("resynthesis", ".wav"))
    rows = [(what, str(folder / f"{name}{suffix}")) for what, suffix in made]
    rows.append(("picture", _picture(trip, folder / f"{name}.png", f"{name}.flac")))
    if registry.VOICE in registry.MODELS:
        voice = load_voice(device=usable_device(arguments.compute.device))
        audio.save(folder / "said.wav", voice.say(SENTENCE, generator=generator_of(0))[0], voice.sample_rate)
        rows.append(("said", f"{folder / 'said.wav'}: {SENTENCE}"))
    print(table(rows))
    return 0


def _picture(trip: "Trip", path: Path, title: str) -> str:
    """Draw the trip and return the path, or the missing extra."""
    from vokens.picture import roundtrip_figure, save_figure

    try:
        save_figure(roundtrip_figure(trip.original, trip.decoded, trip.tokens, title), path)
    except MissingExtra as missing:
        return f"none: {missing}"
    return str(path)


def _first_tokens(tokens: "Tokens") -> str:
    from vokens.cli.report import table

    codes = tokens.codes[0, :, :_SHOWN].tolist()
    rows = [(f"codebook {k}", *map(str, row), "...") for k, row in enumerate(codes, start=1)]
    return table(rows, right=range(1, len(rows[0])))
