"""DNSMOS P.835 (Reddy et al. 2021, arXiv 2110.01763): a non-intrusive MOS predictor.

The released graph takes 9.01 s at 16 kHz: shorter recordings are repeated, longer ones are rated every second and
averaged, after the released polynomials that map the outputs to the MOS scale.
"""

import hashlib
from pathlib import Path

import numpy as np

from vokens.errors import ConfigError
from vokens.evaluator_files import FILES, check_files, open_graph

RATE = 16000
WINDOW = 144160  # samples of the graph's input, 9.01 s
# Of the released evaluation script (microsoft/DNS-Challenge, DNSMOS/dnsmos_local.py): a x^2 + b x + c.
_LISTENERS = {
    "dnsmos-sig": (-0.08397278, 1.22083953, 0.0052439),
    "dnsmos-bak": (-0.13166888, 1.60915514, -0.39604546),
    "dnsmos": (-0.06766283, 1.11546468, 0.04602535),
}
_PERSONALISED = "9e3a197449ca2177f0997afec3bd6b890117ce2f17b89d6eea7fa0d47272c81c"


class DNSMOS:
    """The graph from the folder that holds sig_bak_ovr.onnx."""

    def __init__(self, folder: str | Path, threads: int = 1) -> None:
        home = check_files(folder, "dnsmos")
        path = home / FILES["dnsmos"][0]
        if hashlib.sha256(path.read_bytes()).hexdigest() == _PERSONALISED:
            raise ConfigError(
                f"{path} is the graph of the personalised DNSMOS, which rates other voices as noise: use the file "
                "of that name from the folder dnsmos_models of the package speechmos"
            )
        self._session = open_graph(path, threads, "DNSMOS")

    def rate(self, wave: np.ndarray) -> dict[str, float]:
        """dnsmos-sig (speech), dnsmos-bak (noise), dnsmos (overall), 1 to 5, of a 16 kHz wave (T,) in [-1, 1]."""
        wave = np.asarray(wave, np.float32).clip(-1, 1)
        while len(wave) < WINDOW:
            wave = np.concatenate([wave, wave])
        last = int(len(wave) // RATE - WINDOW / RATE)
        starts = [second * RATE for second in range(last + 1)]
        windows = [wave[None, start : start + WINDOW] for start in starts if start + WINDOW <= len(wave)]
        raw = np.stack([self._session.run(None, {"input_1": window})[0][0] for window in windows])
        columns = zip(_LISTENERS.items(), raw.T, strict=True)
        return {name: float(np.polyval(poly, column).mean()) for (name, poly), column in columns}
