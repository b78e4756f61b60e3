"""Distill-MOS (Stahl and Gamper 2025, arXiv 2502.05356): a non-intrusive MOS predictor.

A student distilled from a teacher on XLS-R features. Its input is 7.68 s at 16 kHz: shorter recordings are padded with
silence, longer ones are rated in evenly spaced windows, at most a second apart, and averaged.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vokens import checkpoint
from vokens.evaluator_files import FILES, check_files

WINDOW = 122880  # samples the network was trained on, 7.68 s
LARGEST_HOP = 16000
HOP, FFT = 160, 320
CHANNELS = (64, 64, 128, 256, 256, 256)
FRAMES, WIDTH, HEADS, LAYERS = 384, 200, 8, 7
BINS = 4  # of the spectrum's 161, after the convolutions
AT_ONCE = 8  # windows per batch: an hour needs no more memory than 15 s
# The released file's names -> ours.
_NAMES = (
    ("cnn.cnn.", "convolutions."),
    ("transformer_pool_attn.", ""),
    ("transformer.transformer_encoder.", "encoder."),
    ("transformer.position_encoding.pe", "positions"),
    ("transformer.linear_proj.", "project."),
    ("transformer.norm.", "norm_again."),
    ("pool.linear1.", "attend.0."),
    ("pool.linear2.", "attend.2."),
    ("pool.linear3.", "score."),
)


class DistillMOS(nn.Module):
    """The released network from the folder that holds distill_mos_v7.pt."""

    positions: Tensor

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        widths = (2, *CHANNELS)
        for i, (before, after) in enumerate(zip(widths, CHANNELS, strict=False)):
            stride = (1 if i == 0 else 2, 2 if i == len(CHANNELS) - 1 else 1)  # over bins, over frames
            layers += [nn.Conv2d(before, after, 3, stride, padding=(0, 1)), nn.LeakyReLU(0.1)]
        self.convolutions = nn.Sequential(*layers)
        features = CHANNELS[-1] * BINS
        self.norm_input, self.norm_again = nn.BatchNorm1d(features), nn.BatchNorm1d(features)
        self.project = nn.Linear(features, WIDTH)
        self.register_buffer("positions", torch.zeros(1, FRAMES, WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 2 * WIDTH, 0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.norm_trans = nn.BatchNorm1d(WIDTH)
        self.attend = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.ReLU(), nn.Linear(2 * WIDTH, 1))
        self.score = nn.Linear(WIDTH, 1)
        home = check_files(folder, "distillmos")
        state = checkpoint.read_state_dict(home / FILES["distillmos"][0])
        checkpoint.load_strict(self, {_ours(name): value for name, value in state.items()}, "distill_mos_v7")
        self.eval().requires_grad_(False)

    @torch.inference_mode()
    def rate(self, wave: np.ndarray) -> dict[str, float]:
        """distill-mos, 1 to 5, of a 16 kHz wave (T,) of any level."""
        x = torch.from_numpy(np.ascontiguousarray(wave, np.float32))
        x = F.pad(x, (0, max(0, WINDOW - len(x))))
        over = len(x) - WINDOW
        places = np.linspace(0, 1, -(-over // LARGEST_HOP) + 1)
        windows = torch.stack([x[int(place * over) :][:WINDOW] for place in places])
        rated = torch.cat([self._rate(part) for part in windows.split(AT_ONCE)])
        return {"distill-mos": float(rated.mean())}

    def _rate(self, x: Tensor) -> Tensor:
        """Ratings (B,) of windows (B, WINDOW)."""
        x = x / (x.abs().amax(1, keepdim=True) + 1e-8)
        x = self.convolutions(_compressed_spectrum(x)).flatten(1, 2)  # (B, channels x bins, frames)
        x = self.project(self.norm_again(self.norm_input(x)).mT)
        x = self.encoder(x + self.positions)
        x = self.norm_trans(x.mT).mT
        x = (self.attend(x).softmax(1) * x).sum(1)
        return 1 + 4 * self.score(x).sigmoid().squeeze(1)


def _compressed_spectrum(x: Tensor) -> Tensor:
    """Real and imaginary part (B, 2, bins, frames), the magnitude to the power of 0.3."""
    x = F.pad(x, ((FFT - HOP) // 2, (FFT - HOP) // 2), mode="reflect")
    spectrum = torch.stft(x, FFT, HOP, window=torch.hann_window(FFT), center=False, return_complex=True)
    spectrum = spectrum * spectrum.abs().clamp(min=1e-12) ** (0.3 - 1)
    return torch.view_as_real(spectrum).permute(0, 3, 1, 2)


def _ours(name: str) -> str:
    for theirs, ours in _NAMES:
        name = name.replace(theirs, ours)
    return name
