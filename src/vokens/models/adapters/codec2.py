"""Codec2 (Rowe), a parametric 8 kHz vocoder for radio, by its programs c2enc and c2dec: 0.7 to 3.2 kbit/s.

A frame's bits are packed from the highest bit of its first byte on, so the last code has only the bits that are
left: 52 bits of mode 1300 are six codebooks of 256 and one of 16. Programs and not the library, as the library draws
the phases of unvoiced sounds from one random state per process, which is not deterministic.
"""

import subprocess
from dataclasses import dataclass

import numpy as np

from vokens import needs
from vokens.errors import ConfigError
from vokens.models.adapters.library import LibraryCodec

RATE = 8000
MODES = {  # bits and samples of a frame
    "3200": (64, 160),
    "2400": (48, 160),
    "1600": (64, 320),
    "1400": (56, 320),
    "1300": (52, 320),
    "1200": (48, 320),
    "700C": (28, 320),
}
# Delay in samples: STOI over trial shifts of 2.5 ms peaks at 20 ms (0.69 at 0, 0.90 there, mode 3200), for
# 700C at 30 ms (0.68 at 20 ms, 0.74 there).
_DELAY, _DELAY_700C = 160, 240


@dataclass(frozen=True)
class Codec2Config:
    """mode: bit/s, "3200", "2400", "1600", "1400", "1300", "1200" or "700C"."""

    mode: str = "3200"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ConfigError(f"mode={self.mode!r} was given: Codec2 has {', '.join(MODES)}")


class Codec2(LibraryCodec):
    """`vokens.load("codec2-1300")`. Codes: the bits of each frame, eight at a time."""

    system = "codec2"
    Config = Codec2Config

    def __init__(self, config: Codec2Config) -> None:
        super().__init__(config)
        needs.check("codec2")
        self.sample_rate, self.delay = RATE, _DELAY_700C if config.mode == "700C" else _DELAY
        self._bits, self.hop_length = MODES[config.mode]
        whole, rest = divmod(self._bits, 8)
        self.codebook_sizes = (256,) * whole + ((2**rest,) if rest else ())

    def encode_row(self, wave: np.ndarray, frames: int) -> np.ndarray:
        pcm = (np.clip(wave, -1, 1) * 32767).round().astype("<i2")
        packets = np.frombuffer(self._run("c2enc", pcm.tobytes()), np.uint8)
        codes = packets.reshape(frames, self.num_codebooks).astype(np.int64)
        codes[:, -1] >>= -self._bits % 8
        return codes.T

    def decode_row(self, codes: np.ndarray, first_codebook: int) -> np.ndarray:
        packets = codes.T.copy()
        packets[:, -1] <<= -self._bits % 8
        pcm = np.frombuffer(self._run("c2dec", packets.astype(np.uint8).tobytes()), "<i2")
        return pcm.astype(np.float32) / 32768

    def _run(self, program: str, data: bytes) -> bytes:
        command = [program, self.config.mode, "-", "-"]
        done = subprocess.run(command, input=data, capture_output=True, check=False)
        if done.returncode:
            raise ConfigError(f"{' '.join(command)} failed: {done.stderr.decode(errors='replace')[-300:]}")
        return done.stdout
