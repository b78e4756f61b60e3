"""Put a trained mini into the package: python recipes/mini/embed_mini.py runs/mini_third/codec MANIFEST

Its level is set so that resyntheses of the manifest's validation split are as loud as the recordings: losses on the
wave make quieter ones. Weights are rounded to fp16 (they are computed with in float32), and the model card names the
data.
"""

import sys
from pathlib import Path

import numpy as np
import torch

import vokens
from vokens import audio
from vokens.models.mini import Mini
from vokens.train.data import read_clips

HOME = Path(__file__).parent
WEIGHTS = HOME.parents[1] / "src" / "vokens" / "weights" / "mini"
LARGEST = 33_000_000  # bytes in the wheel
CLIPS = 100


def main(folder: str, manifest: str) -> None:
    codec = Mini.from_pretrained(folder)
    codec.name = "mini"
    clips = read_clips(manifest, "valid", None)
    waves = [audio.load(clip.path, codec.sample_rate)[0] for clip in clips[:: max(1, len(clips) // CLIPS)]]
    lacking = level(waves) - level(codec.decode(codec.encode(waves, codec.sample_rate)))
    codec.decoder.spectrum.bias("log_magnitude").add_(lacking)
    codec.save_pretrained(WEIGHTS, dtype=torch.float16, card=(HOME / "mini_card.md").read_text())
    size = (WEIGHTS / "model.safetensors").stat().st_size
    if size > LARGEST:
        raise SystemExit(
            f"{size / 1e6:.1f} MB: the wheel holds {LARGEST / 1e6:.0f} MB; train a smaller network"
        )
    print(
        f"{WEIGHTS}: {size / 1e6:.1f} MB, {20 / np.log(10) * lacking:+.1f} dB, {vokens.load('mini').fingerprint}"
    )


def level(waves: list[np.ndarray]) -> float:
    """Mean over waves of the natural logarithm of their RMS."""
    return float(np.mean([np.log(np.sqrt(np.mean(np.square(wave, dtype=np.float64)))) for wave in waves]))


if __name__ == "__main__":
    main(*sys.argv[1:])
