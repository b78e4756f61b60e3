"""Our SpeechTokenizer beside the published package: speed, memory, and whether the codes are the same.

Both run in this process with the same random weights on the same audio, one after the other, with the same number
of threads. Ragged recordings go through the package one by one, since its batches change codes. Memory is the peak
of the resident set above what was resident before the call (Linux).

    python benchmarks/speechtokenizer.py [--threads 2] [--minutes 5] [--quick]
"""

import argparse
import ctypes
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.pop(0)  # this file's folder, where the package's name would find this file
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "peers"))
import published_speechtokenizer as peer

from vokens.models.speechtokenizer import SpeechTokenizer


def resident(field: str) -> float:
    """MB of a field of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field + ":"))


def measure(call: Callable[[], Any], repeats: int) -> tuple[Any, float, float]:
    """Result, best wall time in seconds, peak memory in MB above the start."""
    best, peak, result = float("inf"), 0.0, None
    for _ in range(repeats):
        result = None
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # give back what earlier calls freed
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        before, start = resident("VmRSS"), time.perf_counter()
        result = call()
        best = min(best, time.perf_counter() - start)
        peak = max(peak, resident("VmHWM") - before)
    return result, best, peak


def compare(name: str, theirs: Any, ours: SpeechTokenizer, waves: list[Tensor], repeats: int) -> None:
    """One row of the table for recordings (1, 1, N)."""
    lengths = torch.tensor([wave.shape[2] for wave in waves])
    batch = torch.nn.utils.rnn.pad_sequence([wave[0, 0] for wave in waves], batch_first=True)
    with torch.no_grad():
        codes, their_encode, encode_mb = measure(lambda: [theirs.encode(wave) for wave in waves], repeats)
        sounds, their_decode, decode_mb = measure(lambda: [theirs.decode(c) for c in codes], repeats)
    (found, frames), our_encode, our_encode_mb = measure(
        lambda: ours.encode_batch(batch, lengths, 8), repeats
    )
    found, same, total = found.clone(), 0, 0
    for row, wanted in enumerate(codes):
        same += int((found[row, :, : frames[row]] == wanted[:, 0]).sum())
        total += wanted.numel()
        found[row, :, : frames[row]] = wanted[:, 0]  # so that waves are of the same codes
    again, our_decode, our_decode_mb = measure(lambda: ours.decode_batch(found, frames, 0), repeats)
    error = max(
        float((again[row, : sound.shape[2]] - sound[0, 0]).abs().max() / sound.abs().max())
        for row, sound in enumerate(sounds)
    )
    print(
        f"| {name} | {their_encode:.2f} / {our_encode:.2f} | {their_encode / our_encode:.2f} | "
        f"{their_decode:.2f} / {our_decode:.2f} | {their_decode / our_decode:.2f} | "
        f"{max(encode_mb, decode_mb):.0f} / {max(our_encode_mb, our_decode_mb):.0f} | "
        f"{same}/{total} | {error:.0e} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--minutes", type=float, default=5.0, help="length of the long recording")
    parser.add_argument("--quick", action="store_true", help="30 s instead of minutes, each call once")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    theirs = peer.build()
    ours = SpeechTokenizer.from_published(theirs.state_dict(), peer.RELEASED)
    repeats, minutes = (1, 0.5) if args.quick else (3, args.minutes)
    ragged = [
        peer.audio(seconds, seed) for seed, seconds in enumerate((10, 9.3, 8.1, 7.7, 6.9, 6.2, 5.5, 5.01))
    ]
    with torch.no_grad():
        theirs.decode(theirs.encode(ragged[-1]))  # warm up
    print(
        f"speechtokenizer 1.0.1 / vokens, ELU, released sizes, random weights, {args.threads} threads, fp32, ",
        end="",
    )
    print(f"torch {torch.__version__}\n")
    print(
        "| audio | encode (s) | faster | decode (s) | faster | peak memory (MB) | same codes | wave error |"
    )
    print("|---|---|---|---|---|---|---|---|")
    compare("1 x 10 s", theirs, ours, ragged[:1], repeats)
    compare("8 x 5 to 10 s", theirs, ours, ragged, repeats if repeats == 1 else 2)
    compare(f"1 x {minutes:g} min", theirs, ours, [peer.audio(60 * minutes)], 1)


if __name__ == "__main__":
    main()
