"""Long recordings in windows of 30 s: how well ids agree with those that see the whole recording, near a seam and far.

Recordings of --data, in order, are joined to long ones; the network sees each once whole and once in windows.

    python benchmarks/quality/s3_seams.py --data CORPUS/test [--model speech_tokenizer_v2_25hz]
        [--weights FILE_OR_FOLDER] [--recordings 8] [--seconds 134] [--window 30] [--threads 2]
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from s3_exactness import SUFFIXES, options, random_release
from torch import Tensor

import vokens
from vokens import audio
from vokens.models.s3tokenizer import S3Tokenizer
from vokens.models.s3tokenizer.long import OVERLAP, WINDOW, windows


def joined(folder: Path, count: int, samples: int, rate: int) -> list[np.ndarray]:
    """`count` waves (samples,) of `folder`'s files, one after another."""
    pieces, held = [], 0
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES):
        pieces.append(audio.load(path, rate)[0])
        held += len(pieces[-1])
        if held >= count * samples:
            return list(np.concatenate(pieces)[: count * samples].reshape(count, samples))
    raise SystemExit(
        f"--data {folder} holds {held / rate:.0f} s of audio, {count * samples / rate:.0f} are needed"
    )


def seam_agreement(
    tokenize: Callable[[Tensor], Tensor], mel: Tensor, hop: int, size: int = WINDOW, overlap: int = OVERLAP
) -> tuple[Tensor, Tensor]:
    """Share (D,) of windowed ids that equal those of the whole recording, and their count (D,), for distances of
    0 .. D - 1 tokens from the nearest seam.

    tokenize: log-mel (n_mels, F) of any length -> ids (T,), in one piece.
    mel: log-mel (n_mels, F), F > size. size, overlap: of the windows, in mel frames, multiples of 2 * hop.
    """
    plan = windows(mel.shape[1], hop, size=size, overlap=overlap)
    merged = torch.cat([w.cut(tokenize(w.read(mel, hop))) for w in plan])
    equal = (merged == tokenize(mel)).float()
    seams = torch.tensor([w.end for w in plan[:-1]])  # first token after each seam
    after = torch.arange(len(merged))[:, None] - seams
    distance = torch.where(after < 0, -after - 1, after).amin(1)
    count = torch.bincount(distance).float()
    return torch.bincount(distance, equal.cpu()) / count.clamp(min=1), count.long()


@torch.inference_mode()
def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--recordings", type=int, default=8)
    parser.add_argument(
        "--seconds", type=int, default=134, help="of a recording; 30 is what releases were trained on"
    )
    parser.add_argument("--window", type=int, default=WINDOW // 100, help="seconds, of which 4 overlap")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    codec = vokens.load(args.weights) if args.weights else random_release(args.model)
    if not isinstance(codec, S3Tokenizer) or codec.config.positions != "rotary":
        raise SystemExit("a whole recording needs rotary positions: v2 and v3 have them")
    equal, counts = torch.zeros(2**15), torch.zeros(2**15)
    for wave in joined(args.data, args.recordings, args.seconds * codec.sample_rate, codec.sample_rate):
        share, count = seam_agreement(
            lambda mel: codec._exactly(mel[None])[0][0],
            codec.log_mel(torch.from_numpy(wave)),
            codec.config.hop,
            size=args.window * 100,
        )
        counts[: len(count)] += count
        equal[: len(count)] += share * count
    rate = codec.frame_rate
    print(f"{codec.name}; {args.recordings} recordings of {args.seconds} s, windows of {args.window} s\n")
    print("| from the seam (s) | ids | as with the whole recording |\n|---|---|---|")
    first = 0
    while counts[first:].any():
        last = max(first + 1, 2 * first)
        n = int(counts[first:last].sum())
        print(
            f"| {first / rate:.2f} to {last / rate:.2f} | {n} | {equal[first:last].sum() / max(1, n):.1%} |"
        )
        first = last
    print(f"| all | {int(counts.sum())} | {equal.sum() / counts.sum():.2%} |")


if __name__ == "__main__":
    main()
