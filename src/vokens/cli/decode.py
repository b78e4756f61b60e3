"""Turn tokens into speech.

One file becomes hello.wav next to it; -o names a file (.wav .flac .ogg .opus .mp3), a folder or - (standard
output). The tokens name their codec: --model is needed only for a codec of your own.

vokens decode hello.vok -o again.wav    vokens decode tokens/ -o speech/ --codebooks 1
"""

import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from vokens.audio_suffixes import WRITTEN_SUFFIXES
from vokens.cli.conversion import Loaded, convert, group_seconds
from vokens.cli.jobs import Job, Source, plan, write
from vokens.cli.options import (
    FORMATS,
    Codebooks,
    Compute,
    Conversion,
    Inputs,
    SoundFormat,
    TokensModel,
    codebook_range,
    load_model,
)
from vokens.errors import TokensError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np

    from vokens.models.codec import Codec
    from vokens.models.s3gen import S3GenModel
    from vokens.tokens import Tokens


@dataclass(frozen=True, kw_only=True)
class Arguments(Conversion):
    inputs: Inputs
    """Token files (.vok, .json, .npz, .pt), folders, quoted globs, or - for standard input. With --model also bare
    ids (K, T): .npy, "codes" of an .npz, or json lists."""
    model: TokensModel = None
    codebooks: Codebooks = None
    format: SoundFormat = None


def run(arguments: Arguments) -> int:
    from vokens import audio, registry
    from vokens.tokens import Tokens

    jobs = plan(arguments, (*FORMATS, ".npy") if arguments.model else FORMATS, WRITTEN_SUFFIXES)
    load = cache(lambda name: load_decoder(name, arguments.compute))

    def codec_of(tokens: Tokens) -> "Codec":
        if not arguments.model and registry.source_of(tokens.model) is None:
            raise TokensError(
                f"these tokens were made by a codec of your own, {tokens.model!r} (fingerprint "
                f"{tokens.fingerprint or 'unknown'}): give its folder with --model FOLDER"
            )
        return load(arguments.model or tokens.model)

    def read(job: Job) -> "Loaded[Tokens]":
        tokens = read_tokens(job.source, (lambda: load(arguments.model)) if arguments.model else None)
        books = codebook_range(arguments.codebooks, tokens.first_codebook, tokens.num_codebooks)
        if not (int(tokens.num_samples) and int(tokens.lengths)):
            raise TokensError(f"{job.source} holds tokens of 0 samples, so no sound: encode it again")
        tokens = tokens.select(*books) if books != (0, tokens.num_codebooks) else tokens
        return Loaded(tokens, float(tokens.duration), tokens.batch_kind)

    def work(items: list[Tokens]) -> "list[tuple[np.ndarray | Iterator[np.ndarray], int, Tokens]]":
        codec = codec_of(items[0])
        if len(items) == 1:  # may be hours, so it is streamed to the file
            waves = [codec.decode_spans(items[0])]
        else:
            waves = codec.decode(Tokens.cat(items), batch_seconds=arguments.batch_seconds)
        return [(wave, codec.sample_rate, item) for wave, item in zip(waves, items, strict=True)]

    def finish(job: Job, result: "tuple[np.ndarray | Iterator[np.ndarray], int, Tokens]") -> float:
        wave, rate, tokens = result
        write(job, lambda path: audio.save(path, wave, rate))
        return float(tokens.duration)

    return convert(jobs, read, work, finish, group_seconds(arguments.batch_seconds))


def load_decoder(model: str, compute: Compute) -> "Codec":
    """As `load_codec`, but refuses codecs that do not decode, known names before any download."""
    from vokens.models.codec import Codec
    from vokens.models.pretrained import system_of

    def check(kind: type | None) -> None:
        if kind is not None and not (issubclass(kind, Codec) and kind.decodes):
            fact = "only encodes" if issubclass(kind, Codec) else "is no codec"
            raise TokensError(f"{model} {fact}: vokens speak speaks S3 tokens, in the voice of a recording")

    check(system_of(model))
    codec = load_model(model, compute)
    check(type(codec))
    return codec


def read_tokens(source: Source, codec: "Callable[[], Codec | S3GenModel] | None" = None) -> "Tokens":
    """The one item of a token file or of standard input, any format. Raises TokensError for several items.

    codec: returns the model of bare ids, which are refused without it.
    """
    from vokens.token_files import read_ids
    from vokens.tokens import Tokens

    with tempfile.TemporaryDirectory(prefix="vokens-") as folder:
        path = source.path or Path(folder) / "stdin"
        if source.path is None:
            path.write_bytes(sys.stdin.buffer.read())
        ids = read_ids(path) if codec else None
        tokens = Tokens.load(path) if ids is None or codec is None else codec().tokens(*ids)
    if len(tokens) != 1:
        raise TokensError(
            f"{source} holds {len(tokens)} recordings, but a sound file has one: "
            "split it in Python with tokens[i].save(path)"
        )
    return tokens
