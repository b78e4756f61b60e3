"""How exact S3Tokenizer is on real recordings: ids of ragged batches, and of other precisions, against float32 alone.

The ids of a recording are by definition those that float32 gives it alone. Everything else is compared with them:
how many ids differ, how wide the margin of a differing id was, and what is left when recordings with a margin below
the codec's bound are computed again, as `exactness="guarded"` does.

    python benchmarks/quality/s3_exactness.py --data CORPUS/test [--model speech_tokenizer_v2_25hz]
        [--weights FILE_OR_FOLDER] [--precisions float32 int8] [--count 60] [--threads 2]
"""

import argparse
import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import vokens
from vokens import audio
from vokens.batching import batches
from vokens.models.s3tokenizer import RELEASES, S3Tokenizer
from vokens.models.s3tokenizer.long import WINDOW
from vokens.models.s3tokenizer.model import FRAMES_ON_CPU, FRAMES_PER_FORWARD, PADDING

SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus")
BATCH_FRAMES = 6000  # of a batch here: a minute, many recordings of different lengths


@dataclass
class Decisions:
    """Ids (T,) of one recording, and their margins (T,)."""

    ids: Tensor
    margins: Tensor


def random_release(name: str, seed: int = 0) -> S3Tokenizer:
    """A release's network with variance one through every random matrix, so that ids vary."""
    torch.manual_seed(seed)
    codec = S3Tokenizer(RELEASES[name]).freeze()
    codec.name = f"{name}, random weights"
    for key, value in codec.state_dict().items():
        if value.dim() > 1 and "positions" not in key:
            value.normal_(0.0, value[0].numel() ** -0.5)
    return codec


def log_mels(codec: S3Tokenizer, folder: Path, count: int | None) -> list[Tensor]:
    """Log-mels (n_mels, F) of `count` recordings at even distances in the sorted list, or of all."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise SystemExit(f"--data {folder} holds no audio ({', '.join(SUFFIXES)})")
    chosen = (
        files if count is None else [files[i * len(files) // count] for i in range(min(count, len(files)))]
    )
    mels = [codec.log_mel(torch.from_numpy(audio.load(path, codec.sample_rate)[0])) for path in chosen]
    return [mel[:, :WINDOW] for mel in mels]


def batched(codec: S3Tokenizer, mels: list[Tensor]) -> list[Decisions]:
    """All recordings in padded batches, in the codec's precision; those of int8 alone, as the codec does."""
    hop = codec.config.hop
    found: list[Decisions] = [Decisions(torch.empty(0), torch.empty(0))] * len(mels)
    budget = 1 if codec.compute_dtype == torch.int8 else BATCH_FRAMES
    for rows in batches([mel.shape[1] for mel in mels], budget):
        lengths = torch.tensor([mels[row].shape[1] for row in rows])
        mel = nn.utils.rnn.pad_sequence([mels[row].T for row in rows], batch_first=True).transpose(1, 2)
        ids, margins = codec._quickly(mel, lengths)
        for place, (row, frames) in enumerate(zip(rows, lengths.tolist(), strict=True)):
            tokens = -(-frames // hop)
            found[row] = Decisions(ids[place, :tokens], margins[place, :tokens])
    return found


def digits(codec: S3Tokenizer, one: Tensor, other: Tensor) -> str:
    """Share of the rounded numbers that differ, for finite scalar quantization."""
    if codec.config.quantizer == "vq":
        return "-"
    return f"{(codec.codebook.digits(one) != codec.codebook.digits(other)).float().mean():.3%}"


def compare(name: str, codec: S3Tokenizer, exact: list[Decisions], found: list[Decisions]) -> str:
    """One row of the table."""
    ids, wanted = torch.cat([d.ids for d in found]), torch.cat([d.ids for d in exact])
    margins = torch.cat([d.margins for d in found])
    differ = ids != wanted
    widest = float(margins[differ].max()) if differ.any() else 0.0
    moved = float((margins - torch.cat([d.margins for d in exact])).abs()[~differ].max())
    row = (
        f"| {name} | {int(differ.sum())} of {len(ids)} ({differ.float().mean():.3%}) | {digits(codec, ids, wanted)} | "
        f"{widest:.1e} | {(margins <= widest).float().mean():.1%} | {moved:.1e} | "
    )
    if codec.compute_dtype == torch.int8:  # it has no second look
        return row + "- | - | - |"
    again = [bool((d.margins <= codec.bound).any()) for d in found]
    left = [f.ids != e.ids for f, e, second in zip(found, exact, again, strict=True) if not second]
    return row + f"{codec.bound:.0e} | {sum(again)} of {len(again)} | {sum(int(d.sum()) for d in left)} |"


def padding(mels: list[Tensor], budget: int) -> float:
    """Share of computed frames that are padding, as the codec groups these recordings."""
    sizes = [mel.shape[1] for mel in mels]
    groups = batches(sizes, budget, PADDING)
    return 1 - sum(sizes) / sum(len(rows) * max(sizes[row] for row in rows) for rows in groups)


def options(description: str | None) -> argparse.ArgumentParser:
    """The options of every study of a release: its recordings and its weights."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with recordings of speech")
    parser.add_argument(
        "--model", choices=list(RELEASES), default="speech_tokenizer_v2_25hz", help="its sizes"
    )
    parser.add_argument("--weights", help="what vokens.load opens; random weights of --model without it")
    return parser


@torch.inference_mode()
def main() -> None:
    parser = options(__doc__)
    choices = ["float32", "float16", "bfloat16", "int8"]
    parser.add_argument("--precisions", nargs="+", choices=choices, default=choices)
    parser.add_argument("--count", type=int, help="recordings, all by default")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    codec = vokens.load(args.weights) if args.weights else random_release(args.model)
    if not isinstance(codec, S3Tokenizer):
        raise SystemExit(f"--weights {args.weights} is no S3Tokenizer")
    mels = log_mels(codec, args.data, args.count)
    hours = sum(mel.shape[1] for mel in mels) / 360_000
    print(
        f"{codec.name}; {len(mels)} recordings, {hours:.2f} h; torch {torch.__version__}, {args.threads} threads"
    )
    for budget, place in ((FRAMES_ON_CPU, "CPU"), (FRAMES_PER_FORWARD, "GPU")):
        print(f"padding: {padding(mels, budget):.2%} of frames in batches of {budget} frames ({place})")
    exact = [Decisions(*(part[0] for part in codec._exactly(mel[None]))) for mel in mels]
    print(
        "\n| precision | other ids | other digits | widest margin | narrower | moved | bound | again | left |"
    )
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for name in sorted(args.precisions, key=choices.index):
        fast = copy.deepcopy(codec).set_dtype(getattr(torch, name))
        print(compare(name, fast, exact, batched(fast, mels)), flush=True)


if __name__ == "__main__":
    main()
