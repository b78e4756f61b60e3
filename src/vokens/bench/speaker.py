"""Speaker similarity: the cosine of CAM++ embeddings of two recordings, with the published zh-en weights."""

from pathlib import Path

import numpy as np
import torch

from vokens import checkpoint
from vokens.bench.judges import FILES, check_files
from vokens.models.s3gen.campplus import CAMPPlus


class SpeakerJudge:
    """CAM++ from the folder of its published weights (campplus_cn_en_common.pt, 192 numbers a voice)."""

    def __init__(self, folder: str | Path) -> None:
        home = Path(folder).expanduser()
        check_files(home, FILES["campplus-zh-en"])
        path = home / FILES["campplus-zh-en"][0]
        self._model = CAMPPlus().eval()
        checkpoint.load_strict(self._model, checkpoint.read_state_dict(path), str(path))

    def embed(self, wave: np.ndarray) -> np.ndarray:
        """The voice (192,) of a 16 kHz wave (T,) of at least 45 ms."""
        return self._model.embed([torch.from_numpy(np.ascontiguousarray(wave))])[0].numpy()
