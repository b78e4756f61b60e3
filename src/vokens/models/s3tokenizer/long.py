"""S3Tokenizer beyond 30 s: overlapping windows of the length it was trained on, merged in the middle of overlaps.

Windows of 30 s start every 26 s; on either side of a seam the 2 s next to a window's edge are left out. The published
package opens one window too many when the last 4 s are already covered, and then cuts tokens that exist only
once: 54 s give 1300 tokens instead of 1350. Here the last window is the first that reaches the end.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vokens.audio import LogMel
from vokens.nn.windows import windows as pieces

WINDOW = 3000  # mel frames, 30 s
OVERLAP = 400  # of neighbouring windows


@dataclass(frozen=True)
class Window:
    """Mel frames start..end of a recording, and which of the window's tokens are kept."""

    start: int
    end: int
    first: int
    last: int  # exclusive


def windows(
    frames: int, hop: int, published: bool = False, size: int = WINDOW, overlap: int = OVERLAP
) -> list[Window]:
    """Windows of a recording of mel frames, `hop` frames to a token.

    One window where it fits. Otherwise kept tokens are ceil(frames / hop), in order; with `published` those
    that s3tokenizer 0.3.0 keeps, up to overlap / 2 fewer.
    """
    if frames <= size:
        return [Window(0, frames, 0, -(-frames // hop))]
    step, cut = size - overlap, overlap // 2 // hop
    covered = 0 if published else overlap  # frames at the end that need no window of their own
    starts = range(0, frames - covered, step)
    plan = []
    for start in starts:
        end = min(start + size, frames)
        tokens = -(-(end - start) // hop)
        first = 0 if start == 0 else cut
        last = tokens if start == starts[-1] else tokens - cut
        plan.append(Window(start, end, first, max(first, last)))
    return plan


def log_mel(mel: LogMel, wave: Tensor, longest: int = WINDOW) -> Tensor:
    """Log-mel (n_mels, F) of one recording (N,), computed in pieces of `longest` frames to bound memory."""
    hop, frames = mel.config.hop_length, mel.config.frames(len(wave))
    log_mel = wave.new_empty(mel.config.n_mels, frames)
    for w in pieces(frames, longest, 2):  # two frames reach over the end of a piece
        log_mel[:, w.start : w.end] = w.cut(mel(w.read(wave[None], hop))[0])
    return log_mel


def seam_agreement(
    tokenize: Callable[[Tensor], Tensor], mel: Tensor, hop: int, size: int = WINDOW, overlap: int = OVERLAP
) -> tuple[Tensor, Tensor]:
    """Share (D,) of windowed ids that equal those of the whole recording, and their count (D,), for distances of
    0 .. D - 1 tokens from the nearest seam.

    tokenize: log-mel (n_mels, F) of any length -> ids (T,), in one piece.
    mel: log-mel (n_mels, F), F > size. size, overlap: of the windows, in mel frames, multiples of 2 * hop.
    """
    plan = windows(mel.shape[1], hop, size=size, overlap=overlap)
    merged = torch.cat([tokenize(mel[:, w.start : w.end])[w.first : w.last] for w in plan])
    equal = (merged == tokenize(mel)).float()
    seams = torch.tensor([w.last - w.first for w in plan[:-1]]).cumsum(0)  # first token after each seam
    after = torch.arange(len(merged))[:, None] - seams
    distance = torch.where(after < 0, -after - 1, after).amin(1)
    count = torch.bincount(distance).float()
    return torch.bincount(distance, equal.cpu()) / count.clamp(min=1), count.long()
