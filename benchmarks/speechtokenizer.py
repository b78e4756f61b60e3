"""Our SpeechTokenizer beside the published package: speed, memory, and whether the codes are the same.

Both run in this process with the same random weights on the same audio, one after the other, with the same number
of threads. Ragged recordings go through the package one by one, since its batches change codes. Memory is the peak
of the resident set above what was resident before the call (Linux). The package takes 23 MB for each second of a
recording: what it has no memory for goes through ours alone.

    python benchmarks/speechtokenizer.py [--threads 2] [--product torch onednn] [--minutes 5 60] [--quick]
"""

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import Report, best, gflop, options
from torch import Tensor

sys.path.pop(0)  # this file's folder, where the package's name would find this file
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "peers"))
import published_speechtokenizer as peer

from vokens.models.speechtokenizer import SpeechTokenizer

PACKAGE_MB = 25  # per second of a recording


def megabytes(field: str, file: str = "/proc/self/status") -> float:
    """MB of a field of the file."""
    lines = Path(file).read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field + ":"))


def measure(call: Callable[[], Any], repeats: int) -> tuple[Any, float, float]:
    """Result, best wall time in seconds, peak memory in MB above the start."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # give back what earlier calls freed
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = megabytes("VmRSS")
    result, seconds = best(call, repeats)
    return result, seconds, megabytes("VmHWM") - before


def compare(report: Report, name: str, theirs: Any, ours: SpeechTokenizer, waves: list[Tensor]) -> None:
    """Two rows a product for recordings (1, 1, N)."""
    lengths = torch.tensor([wave.shape[2] for wave in waves])
    seconds, repeats = float(lengths.sum()) / 16000, report.repeats
    batch = torch.nn.utils.rnn.pad_sequence([wave[0, 0] for wave in waves], batch_first=True)
    possible = PACKAGE_MB * int(lengths.max()) / 16000 < megabytes("MemAvailable", "/proc/meminfo")
    codes, sounds, their_encode, their_decode, their_mb = [], [], None, None, "none"
    if possible:
        with torch.no_grad():
            codes, their_encode, mb = measure(lambda: [theirs.encode(wave) for wave in waves], repeats)
            sounds, their_decode, more = measure(lambda: [theirs.decode(c) for c in codes], repeats)
        their_mb = f"{max(mb, more):.0f}"
    short = batch[:1, :32000]
    sizes = torch.tensor([short.shape[1]])
    some, frames = ours.encode_batch(short, sizes, 8)
    per_second = [
        gflop(lambda: ours.encode_batch(short, sizes, 8)),
        gflop(lambda: ours.decode_batch(some, frames, 0)),
    ]
    encode_gflop, decode_gflop = (16000 * work / short.shape[1] * seconds for work in per_second)
    for _ in report.each_product():
        (found, counts), taken, mb = measure(lambda: ours.encode_batch(batch, lengths, 8), repeats)
        found, same, total = found.clone(), 0, 0
        for row, wanted in enumerate(codes):
            same += int((found[row, :, : counts[row]] == wanted[:, 0]).sum())
            total += wanted.numel()
            found[row, :, : counts[row]] = wanted[:, 0]  # so that waves are of the same codes
        note = f"{same} of {total} codes, {their_mb} / {mb:.0f} MB"
        report.add(f"{name}, encode", taken, their_encode, audio=seconds, gflop=encode_gflop, note=note)
        again, taken, mb = measure(lambda f=found, n=counts: ours.decode_batch(f, n, 0), repeats)
        error = max(
            (
                float((again[row, : sound.shape[2]] - sound[0, 0]).abs().max() / sound.abs().max())
                for row, sound in enumerate(sounds)
            ),
            default=0.0,
        )
        note = f"waves within {error:.0e}, {their_mb} / {mb:.0f} MB"
        report.add(f"{name}, decode", taken, their_decode, audio=seconds, gflop=decode_gflop, note=note)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--minutes", type=float, nargs="*", default=[5.0, 60.0], help="long recordings")
    args = parser.parse_args()
    report = Report(args, "speechtokenizer 1.0.1")
    theirs = peer.build()
    ours = SpeechTokenizer.from_published(theirs.state_dict(), peer.RELEASED).set_dtype(report.dtype)
    lengths = (10, 9.3, 8.1, 7.7, 6.9, 6.2, 5.5, 5.01)
    ragged = [peer.audio(seconds, seed) for seed, seconds in enumerate(lengths)]
    with torch.no_grad():
        theirs.decode(theirs.encode(ragged[-1]))  # warm up
    compare(report, "1 x 10 s", theirs, ours, ragged[:1])
    compare(report, "8 x 5 to 10 s", theirs, ours, ragged)
    report.repeats = 1
    for minutes in [0.5] if args.quick else args.minutes:
        compare(report, f"1 x {minutes:g} min", theirs, ours, [peer.audio(60 * minutes)])


if __name__ == "__main__":
    main()
