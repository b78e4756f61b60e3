"""Our S3Tokenizer beside the published package: speed on real recordings, and whether the ids are the same.

Both run in this process with the same random weights of the released sizes, from waves in memory to ids. Recordings
are cut from those of --data to lengths as corpora have them, log-normal around 6 s, 1 to 25 s, and come in batches in
no order of length, as in the package's command line. Each batch goes through the package, through ours and through ours
in int8, one after the other, so that what else runs on the machine slows all alike.

    python benchmarks/s3tokenizer.py [--data CORPUS] [--threads 2] [--product torch onednn] [--batch 32] [--count 96]
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import Report, best, gflop, options
from torch import Tensor, nn

sys.path.pop(0)  # this file's folder, where the package's name would find this file
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "peers"))
import published_s3tokenizer as peer

from vokens import audio
from vokens.models.s3tokenizer import RELEASES, S3Tokenizer
from vokens.nn.product import using

RATE = 16000
SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus")
Side = Callable[[list[np.ndarray]], list[Tensor]]


def recordings(folder: Path, count: int, seed: int = 0) -> list[np.ndarray]:
    """Speech (N,) at 16 kHz of `folder`'s files, one after another, cut into `count` pieces."""
    draw = np.random.default_rng(seed)
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise SystemExit(f"--data {folder} holds no audio ({', '.join(SUFFIXES)})")
    files = [files[i] for i in draw.permutation(len(files))]

    def speech() -> Iterator[np.ndarray]:
        while True:
            yield from (audio.load(path, RATE)[0] for path in files)

    source, rest, pieces = speech(), np.zeros(0, np.float32), []
    for seconds in np.clip(draw.lognormal(np.log(6.0), 0.6, count), 1.0, 25.0):
        size = int(seconds * RATE)
        while len(rest) < size:
            rest = np.concatenate([rest, next(source)])
        pieces.append(rest[:size])
        rest = rest[size:]
    return pieces


def published(package: Any, model: nn.Module, waves: list[np.ndarray]) -> list[Tensor]:
    """Ids (T,) of each recording of a batch, on the CPU."""
    mels = [package.log_mel_spectrogram(torch.from_numpy(wave)) for wave in waves]
    mel, lengths = package.padding(mels)
    codes, counts = model.quantize(mel, lengths)
    return [row[:n].long() for row, n in zip(codes, counts.tolist(), strict=True)]


def ours(codec: S3Tokenizer, waves: list[np.ndarray]) -> list[Tensor]:
    tokens = codec.encode(waves, RATE)
    return [codes[0, :n] for codes, n in zip(tokens.codes, tokens.lengths.tolist(), strict=True)]


def compare(report: Report, name: str, waves: list[np.ndarray], args: argparse.Namespace) -> None:
    """The table's rows of one model: ours by each product, and in int8."""
    package = peer.package()
    width, layers = (128, 2) if args.quick else (1280, None)
    theirs = peer.build(name, width=width, layers=layers)
    state = dict(theirs.state_dict())

    def codec(dtype: torch.dtype) -> S3Tokenizer:
        settings = {"first_stride": RELEASES[name].first_stride, "heads": width // 64}
        made = S3Tokenizer.from_published(state, settings)
        return made.set_dtype(dtype, "guarded" if dtype == torch.float32 else "plain")

    exact, rounded = codec(report.dtype), codec(torch.int8)

    def by(product: str) -> Side:
        def side(some: list[np.ndarray]) -> list[Tensor]:
            with using(product):
                return ours(exact, some)

        return side

    sides: dict[str, Side] = {"theirs": lambda some: published(package, theirs, some)}
    sides |= {product: by(product) for product in report.products}
    sides["int8"] = lambda some: ours(rounded, some)
    taken = dict.fromkeys(sides, 0.0)
    found: dict[str, list[Tensor]] = {side: [] for side in sides}
    for side in sides.values():  # warm
        side(waves[:1])
    for first in range(0, len(waves), args.batch):
        some = waves[first : first + args.batch]
        for side, call in sides.items():
            ids, seconds = best(lambda call=call, some=some: call(some), report.repeats)
            found[side] += ids
            taken[side] += seconds
    wanted, audio_seconds = torch.cat(found["theirs"]), sum(map(len, waves)) / RATE
    sample = waves[:3]  # operations grow with the length, but for the attention's 4 %
    work = gflop(lambda: ours(exact, sample)) * audio_seconds * RATE / sum(map(len, sample))
    for side in list(sides)[1:]:
        ids = torch.cat(found[side])
        if ids.shape != wanted.shape:
            raise SystemExit(f"{name}: the package gives other numbers of ids")
        note = f"{int((ids != wanted).sum())} of {len(ids)} ids differ"
        with using(side if side in report.products else report.products[0]):
            case = f"{name}{', int8' if side == 'int8' else ''}"
            counted = None if side == "int8" else work
            report.add(case, taken[side], taken["theirs"], audio=audio_seconds, gflop=counted, note=note)


def main() -> None:
    parser = options(__doc__, repeats=1)
    parser.add_argument(
        "--data",
        type=Path,
        default=files("vokens") / "samples",
        help="folder of speech (default: the samples)",
    )
    parser.add_argument("--models", nargs="+", choices=list(RELEASES), default=list(RELEASES))
    parser.add_argument("--batch", type=int, default=32, help="recordings per batch of the package")
    parser.add_argument("--count", type=int, default=96, help="recordings, 96 are 11 minutes")
    args = parser.parse_args()
    waves = recordings(args.data, 8 if args.quick else args.count)
    minutes = sum(map(len, waves)) / RATE / 60
    report = Report(
        args, f"s3tokenizer 0.3.0, {len(waves)} recordings of {minutes:.1f} min, batches of {args.batch}"
    )
    for name in args.models:
        compare(report, name, waves, args)


if __name__ == "__main__":
    main()
