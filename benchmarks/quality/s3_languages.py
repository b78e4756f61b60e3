"""What tokens of a small S3Tokenizer keep in each language: the trunk's states, told again from the tokens alone.

    python benchmarks/quality/s3_languages.py --data MANIFEST --recogniser runs/s3_mini/recogniser.safetensors \
        [--limit 60]

For each language held out: how near the recogniser's guess of the trunk's states is to them (cosine, mean
over frames, of states less their mean over all languages), beside those of other frames of the same recording (chance);
entropy of the ids and the share of entries that occur. A language that the tokens lost would be near chance.
"""

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from vokens import audio
from vokens.audio import LogMel
from vokens.audio.mel import WHISPER_128
from vokens.models.s3tokenizer.recogniser import Recogniser
from vokens.tokens import codebook_use

LONGEST = 28.0  # seconds, one window


@torch.inference_mode()
def states_of(model: Recogniser, mel: LogMel, path: Path) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The trunk's states in pairs (T, 2 D), the guess of them (T, 2 D), and ids (T,) of a recording."""
    wave = torch.from_numpy(audio.load(path, 16000)[0][: int(LONGEST * 16000)])[None]
    features = mel(wave)
    trunk = model.encoder.trunk(features)[0]
    lengths = torch.tensor([features.shape[2]])
    guess = model(features, lengths, trunk=trunk)
    pairs = F.pad(trunk, (0, 0, 0, trunk.shape[1] % 2)).unflatten(1, (-1, 2)).flatten(2)
    assert guess.after is not None
    return pairs[0], guess.after[0], guess.codes[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="manifest with split, language and path")
    parser.add_argument("--recogniser", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=60, help="recordings of each language")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = Recogniser.open(args.recogniser)
    mel = LogMel(dataclasses.replace(WHISPER_128, n_mels=model.config.n_mels))
    paths: dict[str, list[Path]] = {}
    for record in map(json.loads, args.data.read_text().splitlines()):
        if record["split"] in ("valid", "test"):
            paths.setdefault(record["language"], []).append(args.data.parent / record["path"])
    found = {}
    for language, some in sorted(paths.items()):
        places = np.linspace(0, len(some) - 1, min(args.limit, len(some))).astype(int)
        found[language] = [states_of(model, mel, some[place]) for place in places]
    mean = torch.cat([states for rows in found.values() for states, _, _ in rows]).mean(0)
    print(
        "| language | recordings | cosine | chance | bits per token | entries used |\n|---|---:|---:|---:|---:|---:|"
    )
    for language, rows in found.items():
        near = torch.cat([F.cosine_similarity(guess - mean, states - mean) for states, guess, _ in rows])
        chance = torch.cat(
            [
                F.cosine_similarity(guess - mean, states.roll(len(states) // 2, 0) - mean)
                for states, guess, _ in rows
            ]
        )
        use, bits = codebook_use(torch.cat([ids for _, _, ids in rows]).numpy(), model.config.codebook_size)
        print(
            f"| {language} | {len(rows)} | {near.mean():.3f} | {chance.mean():.3f} | {bits:.2f} | {use:.3f} |"
        )


if __name__ == "__main__":
    main()
