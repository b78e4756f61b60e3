"""How well CAM++ tells voices apart: its equal error rate over pairs of recordings of a corpus.

Every pair of two recordings is one trial, of the same speaker or of different ones; the score is the cosine of the two
embeddings. At the equal error rate the threshold refuses as large a share of the first as it accepts of the second.

    python benchmarks/quality/speaker_eer.py --data CORPUS --weights FOLDER [--speakers 24] [--recordings 15]
        [--seconds 5]

CORPUS has a manifest.jsonl with path, split, speaker and duration; FOLDER holds campplus_cn_en_common.pt.
"""

import argparse
import json
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

from vokens import audio
from vokens.bench.evaluators import SpeakerEvaluator


def sample(data: Path, split: str, speakers: int, recordings: int, shortest: float) -> dict[str, list[Path]]:
    """Files of each speaker: the speakers with most recordings, and some of theirs by a fixed draw."""
    found: dict[str, list[Path]] = defaultdict(list)
    for line in (data / "manifest.jsonl").read_text().splitlines():
        item = json.loads(line)
        if item["split"] == split and item["duration"] >= shortest:
            found[item["speaker"]].append(data / item["path"])
    most = sorted(found, key=lambda name: (-len(found[name]), name))[:speakers]
    draw = np.random.default_rng(0)
    return {name: [found[name][i] for i in draw.permutation(len(found[name]))[:recordings]] for name in most}


def trials(voices: np.ndarray, speaker: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of all pairs of voices (N, 192): of the same speaker, of different ones."""
    unit = voices / np.linalg.norm(voices, axis=1, keepdims=True)
    upper = np.triu_indices(len(unit), 1)
    cosine, same = (unit @ unit.T)[upper], (speaker[:, None] == speaker)[upper]
    return cosine[same], cosine[~same]


def equal_error_rate(same: np.ndarray, different: np.ndarray) -> tuple[float, float]:
    """The rate and its threshold: where the shares of refused same and accepted different pairs cross."""
    thresholds = np.sort(same)
    refused = np.arange(len(thresholds)) / len(thresholds)
    accepted = 1 - np.searchsorted(np.sort(different), thresholds) / len(different)
    crossing = int(np.argmin(np.abs(refused - accepted)))
    return float(refused[crossing] + accepted[crossing]) / 2, float(thresholds[crossing])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with manifest.jsonl")
    parser.add_argument("--weights", type=Path, required=True, help="folder of campplus_cn_en_common.pt")
    parser.add_argument("--split", default="test")
    parser.add_argument("--speakers", type=int, default=24)
    parser.add_argument("--recordings", type=int, default=15, help="of each speaker, at most")
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="taken from the beginning of each recording"
    )
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    judge = SpeakerEvaluator(args.weights)
    chosen = sample(args.data, args.split, args.speakers, args.recordings, min(2.0, args.seconds))
    start, voices, speaker = time.process_time(), [], []
    for number, files in enumerate(chosen.values()):
        for path in files:
            wave = audio.load(path, 16000)[0][: int(16000 * args.seconds)]
            voices.append(judge.embed(wave))
            speaker.append(number)
        print(f"{number + 1} of {len(chosen)} speakers", end="\r", file=sys.stderr, flush=True)
    same, different = trials(np.stack(voices), np.array(speaker))
    rate, threshold = equal_error_rate(same, different)
    print(
        f"CAM++ zh-en, {args.split} split: {len(chosen)} speakers, {len(voices)} recordings of up to "
        f"{args.seconds:g} s; {len(same)} pairs of the same speaker (cosine {same.mean():.3f} +- {same.std():.3f}), "
        f"{len(different)} of different ones ({different.mean():.3f} +- {different.std():.3f})\n"
        f"equal error rate {100 * rate:.2f} % at cosine {threshold:.3f}; "
        f"{time.process_time() - start:.0f} s of CPU"
    )


if __name__ == "__main__":
    main()
