"""Our S3Tokenizer beside the published package: speed on real recordings, and whether the ids are the same.

Both run in this process with the same random weights of the released sizes, from waves in memory to ids. Recordings
are cut from those of --data to lengths as corpora have them, log-normal around 6 s, 1 to 25 s, and come in batches in
no order of length, as in the package's command line. Each batch goes through the package, through ours in float32 and
on the CPU through ours in int8, one after the other, so that what else runs on the machine slows all alike.

    python benchmarks/s3tokenizer.py --data CORPUS [--threads 2] [--batch 32] [--count 96] [--device cuda] [--quick]
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

sys.path.pop(0)  # this file's folder, where the package's name would find this file
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "peers"))
import published_s3tokenizer as peer

from vokens import audio
from vokens.models.s3tokenizer import RELEASES, S3Tokenizer

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


def timed(side: Side, waves: list[np.ndarray]) -> tuple[list[Tensor], float]:
    start = time.perf_counter()
    result = side(waves)
    return result, time.perf_counter() - start


def published(package: Any, model: nn.Module, waves: list[np.ndarray], device: str) -> list[Tensor]:
    """Ids (T,) of each recording of a batch, on the CPU."""
    mels = [package.log_mel_spectrogram(torch.from_numpy(wave)) for wave in waves]
    mel, lengths = package.padding(mels)
    codes, counts = model.quantize(mel.to(device), lengths.to(device))
    return [row[:n].long().cpu() for row, n in zip(codes, counts.tolist(), strict=True)]


def ours(codec: S3Tokenizer, waves: list[np.ndarray]) -> list[Tensor]:
    tokens = codec.encode(waves, RATE)
    return [codes[0, :n] for codes, n in zip(tokens.codes, tokens.lengths.tolist(), strict=True)]


def compare(name: str, waves: list[np.ndarray], args: argparse.Namespace) -> list[str]:
    """The table's rows of one model."""
    package = peer.package()
    theirs = peer.build(name, **({"width": 128, "layers": 2} if args.quick else {})).to(args.device)
    state = {key: value.cpu() for key, value in theirs.state_dict().items()}

    def codec(dtype: torch.dtype) -> S3Tokenizer:
        found = S3Tokenizer.from_published(state, {"first_stride": RELEASES[name].first_stride})
        return found.to(args.device).set_dtype(dtype, "guarded" if dtype == torch.float32 else "plain")

    exact = codec(torch.float32)
    sides: dict[str, Side] = {
        "s3tokenizer": lambda some: published(package, theirs, some, args.device),
        "float32": lambda some: ours(exact, some),
    }
    if args.device == "cpu":
        rounded = codec(torch.int8)
        sides["int8"] = lambda some: ours(rounded, some)
    taken = dict.fromkeys(sides, 0.0)
    found: dict[str, list[Tensor]] = {side: [] for side in sides}
    for side in sides.values():  # warm
        side(waves[:1])
    for first in range(0, len(waves), args.batch):
        for side, call in sides.items():
            ids, seconds = timed(call, waves[first : first + args.batch])
            found[side] += ids
            taken[side] += seconds
    wanted = torch.cat(found["s3tokenizer"])
    per_second = 1000 * RATE / sum(map(len, waves))
    rows = []
    for side, seconds in taken.items():
        ids = torch.cat(found[side])
        if ids.shape != wanted.shape:
            raise SystemExit(f"{name}: the package gives other numbers of ids")
        other = int((ids != wanted).sum())
        rows.append(
            f"| {name if side == 's3tokenizer' else ''} | {side} | {seconds:.1f} | {seconds * per_second:.1f} | "
            f"{taken['s3tokenizer'] / seconds:.2f} | {other} of {len(ids)} ({other / len(ids):.2%}) |"
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with recordings of speech")
    parser.add_argument("--models", nargs="+", choices=list(RELEASES), default=list(RELEASES))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32, help="recordings per batch of the package")
    parser.add_argument("--count", type=int, default=96, help="recordings, 96 are 11 minutes")
    parser.add_argument("--quick", action="store_true", help="small networks, 8 recordings: does it run?")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    waves = recordings(args.data, 8 if args.quick else args.count)
    minutes = sum(map(len, waves)) / RATE / 60
    place = torch.cuda.get_device_name() if args.device.startswith("cuda") else f"{args.threads} threads"
    sizes = "small sizes" if args.quick else "released sizes"
    print(
        f"s3tokenizer 0.3.0 and vokens, {sizes}, random weights, {place}, torch {torch.__version__}; "
        f"{len(waves)} recordings, {minutes:.1f} min, batches of {args.batch}\n"
    )
    print("| model | side | s | ms per s of audio | faster | ids other than the package's |")
    print("|---|---|---|---|---|---|")
    for name in args.models:
        print("\n".join(compare(name, waves, args)), flush=True)


if __name__ == "__main__":
    main()
