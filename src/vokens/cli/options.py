"""Shared options of the verbs: codec and device, ranges of codebooks, names of outputs."""

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from vokens.errors import ConfigError

if TYPE_CHECKING:
    from vokens.models.codec import Codec

FORMATS = (".vok", ".json", ".npz", ".pt")


def unset(metavar: str, *aliases: str, default: str = "", help: str | None = None) -> Any:
    """An option that is empty by default; `default` says what that means, where the help text does not."""
    hint = default and f"(default: {default})"
    return arg(metavar=metavar, aliases=aliases or None, help_behavior_hint=hint, help=help)


# Help of options that several verbs have, in place of a docstring at each.
_MODEL = "A name of `vokens models`, a hub id, a folder or a published file."
_BATCH = "Audio in one batch, padding included. More is faster on GPUs and needs more memory."
_BOOKS = "Decode some codebooks, counted from 1: 1 is the first (semantic) one, 2-8 the second to the eighth."
_FORMAT = "Format of the outputs, where -o has no suffix."


Output = Annotated[str | None, unset("PATH", "-o")]
Inputs = Annotated[Positional[tuple[str, ...]], unset("INPUT ...")]
Model = Annotated[str, arg(aliases=("-m",), metavar="NAME", help=_MODEL)]
TokensModel = Annotated[str | None, unset("NAME", "-m", default="from the tokens", help=_MODEL)]
Codebooks = Annotated[str | None, unset("N|N-M", default="all", help=_BOOKS)]
BatchSeconds = Annotated[float, arg(metavar="SECONDS", help=_BATCH)]
Overwrite = Annotated[bool, arg(help="Replace outputs that exist.")]
TokenFormat = Annotated[
    Literal["vok", "json", "npz", "pt"] | None, unset("{vok,json,npz,pt}", default="vok", help=_FORMAT)
]
SoundFormat = Annotated[
    Literal["wav", "flac", "ogg", "opus", "mp3"] | None,
    unset("{wav,flac,ogg,opus,mp3}", default="wav", help=_FORMAT),
]


@dataclass(frozen=True, kw_only=True)
class Compute:
    """Device and precision of the network."""

    device: Annotated[str, arg(metavar="NAME")] = "auto"
    """cpu, cuda, cuda:1, mps; auto is CUDA where available."""
    dtype: Literal["float32", "bfloat16", "float16", "int8"] = "float32"
    """Precision of the network. bfloat16 is faster on GPUs and CPUs that support it, int8 (S3Tokenizer) on CPUs;
    both change some tokens."""


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """Options of the verbs that convert files; each adds a `format` of its outputs."""

    inputs: Inputs
    """Files, folders, quoted globs, or - for standard input."""
    output: Output = None
    """File, folder or - for standard output (default: next to each input)."""
    batch_seconds: BatchSeconds = 60.0
    overwrite: Overwrite = False
    compute: Compute = field(default_factory=Compute)


def load_model(model: str, compute: Compute) -> Any:
    """The model of that name, hub id, folder or file, on the chosen device and in the chosen precision."""
    import vokens

    return vokens.load(model, device=compute.device, dtype=compute.dtype)


def load_codec(model: str, compute: Compute) -> "Codec":
    """As `load_model`. Raises CheckpointError for other models than codecs."""
    from vokens.models.codec import Codec

    return Codec.from_pretrained(model, device=compute.device, dtype=compute.dtype)


def codebook_range(text: str | None, first: int, count: int) -> tuple[int, int]:
    """Half-open range among `count` present codebooks, the first of which is the codec's number `first`.

    text counts the codec's codebooks from 1: "1" is the first, "2-8" the second to the eighth,
    None all present ones. Raises ConfigError for other text and for codebooks that are not present.
    """
    if text is None:
        return 0, count
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text.strip())
    low = int(match[1]) if match else 0
    high = int(match[2] or low) if match else 0
    present = f"{first + 1}-{first + count}" if count > 1 else f"{first + 1}"
    if not first < low <= high <= first + count:
        raise ConfigError(
            f"--codebooks {text!r}: give one codebook or a range within those present, {present} "
            "(counted from 1, such as 1 or 2-8)"
        )
    return low - 1 - first, high - first
