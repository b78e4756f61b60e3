"""Put a trained mini into the package: python recipes/mini/embed_mini.py runs/mini/codec

Weights are rounded to fp16 (they are computed with in float32), and the model card names the data.
"""

import sys
from pathlib import Path

import torch

import vokens

HOME = Path(__file__).parent
WEIGHTS = HOME.parents[1] / "src" / "vokens" / "weights" / "mini"
LARGEST = 16_000_000  # bytes in the wheel


def main(folder: str) -> None:
    codec = vokens.load(folder)
    codec.name = "mini"
    codec.save_pretrained(WEIGHTS, dtype=torch.float16, card=(HOME / "mini_card.md").read_text())
    size = (WEIGHTS / "model.safetensors").stat().st_size
    if size > LARGEST:
        raise SystemExit(
            f"{size / 1e6:.1f} MB: the wheel holds {LARGEST / 1e6:.0f} MB; train a smaller network"
        )
    print(f"{WEIGHTS}: {size / 1e6:.1f} MB, fingerprint {vokens.load('mini').fingerprint}")


if __name__ == "__main__":
    main(*sys.argv[1:])
