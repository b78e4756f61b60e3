"""Speaker encoder of a run: CAM++ embeddings of the utterances."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from vokens import audio, checkpoint
from vokens.errors import ConfigError
from vokens.models.s3gen.releases import find_part
from vokens.nn.campplus import SHORTEST, merge_norms
from vokens.nn.campplus_onnx import open_campplus

RATE = 16000


class SpeakerEncoder:
    """CAM++ on a device. fingerprint: 16 hex digits of the weights.

    source: these weights (campplus.onnx, campplus_cn_en_common.pt, .safetensors), or their folder. Raises ConfigError
    for a missing path, CheckpointError for other weights.
    """

    def __init__(self, source: Path, device: torch.device) -> None:
        if not source.exists():
            raise ConfigError(
                f"--speaker {source} does not exist: give the file of CAM++ (campplus.onnx of CosyVoice, "
                "campplus_cn_en_common.pt of 3D-Speaker) or its folder"
            )
        model = open_campplus(find_part(source, "campplus") or source)
        self.fingerprint = checkpoint.fingerprint(model.state_dict(), {})
        self.device = device
        self.model = merge_norms(model).to(device)

    def embed(self, waves: Sequence[np.ndarray], sample_rate: int) -> list[np.ndarray | str]:
        """An embedding (192,) float32 of each wave (T,), not normalised, or the reason of its failure.

        Batch-invariant, up to the order of sums on GPUs.
        """
        ready = [torch.from_numpy(audio.resample(wave, sample_rate, RATE)) for wave in waves]
        long = [place for place, wave in enumerate(ready) if len(wave) >= SHORTEST]
        short = f"too short for a speaker embedding: {SHORTEST / RATE * 1000:.0f} ms are needed"
        embeddings: list[np.ndarray | str] = [short] * len(waves)
        if long:
            vectors = self.model.embed([ready[place].to(self.device) for place in long])
            for place, embedding in zip(long, vectors.float().cpu().numpy(), strict=True):
                embeddings[place] = embedding
        return embeddings
