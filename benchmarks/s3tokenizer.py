"""Our S3Tokenizer beside the published package: speed on real recordings, and whether the ids are the same.

Both run in this process with the same random weights of the released sizes, one after the other, from waves in memory
to ids: the package in batches as they come, as its command line does, ours as `encode` groups them. Recordings are
cut from those of --data to lengths as corpora have them: log-normal around 6 s, 1 to 25 s.

    python benchmarks/s3tokenizer.py --data CORPUS [--threads 2] [--batch 32] [--count 64] [--device cuda] [--quick]
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

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
Result = TypeVar("Result")


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


def timed(call: Callable[[], Result]) -> tuple[Result, float]:
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


def published(
    package: Any, model: nn.Module, waves: list[np.ndarray], batch: int, device: str
) -> list[Tensor]:
    """Ids (T,) of each recording, on the CPU."""
    found = []
    for first in range(0, len(waves), batch):
        some = waves[first : first + batch]
        mels = [package.log_mel_spectrogram(torch.from_numpy(wave)) for wave in some]
        mel, lengths = package.padding(mels)
        codes, counts = model.quantize(mel.to(device), lengths.to(device))
        found += [row[:n].long().cpu() for row, n in zip(codes, counts.tolist(), strict=True)]
    return found


def compare(name: str, waves: list[np.ndarray], args: argparse.Namespace) -> str:
    """One row of the table."""
    package = peer.package()
    theirs = peer.build(name, **({"width": 128, "layers": 2} if args.quick else {})).to(args.device)
    ours = S3Tokenizer.from_published(
        {key: value.cpu() for key, value in theirs.state_dict().items()},
        {"first_stride": RELEASES[name].first_stride},
    ).to(args.device)
    for warm in (waves[:1], waves[:1]):
        published(package, theirs, warm, args.batch, args.device)
        ours.encode(warm, RATE)
    wanted, their_time = timed(lambda: published(package, theirs, waves, args.batch, args.device))
    tokens, our_time = timed(lambda: ours.encode(waves, RATE))
    total = sum(map(len, wanted))
    different = sum(int((tokens.codes[i, 0, : len(row)] != row).sum()) for i, row in enumerate(wanted))
    if tokens.lengths.tolist() != [len(row) for row in wanted]:
        raise SystemExit(f"{name}: the package gives other numbers of ids")
    seconds = sum(map(len, waves)) / RATE
    return (
        f"| {name} | {their_time:.2f} | {their_time / seconds:.4f} | {our_time:.2f} | {our_time / seconds:.4f} | "
        f"{their_time / our_time:.2f} | {different} of {total} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with recordings of speech")
    parser.add_argument("--models", nargs="+", choices=list(RELEASES), default=list(RELEASES))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32, help="recordings per batch of the package")
    parser.add_argument("--count", type=int, default=64, help="recordings")
    parser.add_argument("--quick", action="store_true", help="small networks, 8 recordings: does it run?")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    waves = recordings(args.data, 8 if args.quick else args.count)
    minutes = sum(map(len, waves)) / RATE / 60
    place = torch.cuda.get_device_name() if args.device.startswith("cuda") else f"{args.threads} threads"
    sizes = "small sizes" if args.quick else "released sizes"
    print(
        f"s3tokenizer 0.3.0 and vokens, {sizes}, random weights, float32, {place}, torch {torch.__version__}; "
        f"{len(waves)} recordings, {minutes:.1f} min, batches of {args.batch}\n"
    )
    print("| model | s3tokenizer (s) | per s of audio | vokens (s) | per s of audio | faster | other ids |")
    print("|---|---|---|---|---|---|---|")
    for name in args.models:
        print(compare(name, waves, args), flush=True)


if __name__ == "__main__":
    main()
