"""S3Tokenizer beyond 30 s: overlapping windows of the length it was trained on, merged in the middle of overlaps.

Windows of 30 s start every 26 s; on either side of a seam the 2 s next to a window's edge are left out. The published
package opens one window too many when the last 4 s are already covered, and then cuts tokens that exist only
once: 54 s give 1300 tokens instead of 1350. Here the last window is the first that reaches the end.
"""

from torch import Tensor

from vokens.audio import LogMel
from vokens.nn.windows import Window, window
from vokens.nn.windows import windows as pieces

WINDOW = 3000  # mel frames, 30 s
OVERLAP = 400  # of neighbouring windows


def windows(
    frames: int, hop: int, published: bool = False, size: int = WINDOW, overlap: int = OVERLAP
) -> list[Window]:
    """Windows of a recording of mel frames, counted in tokens of `hop` frames each.

    One window where it fits. Otherwise kept tokens are ceil(frames / hop), in order; with `published` those
    that s3tokenizer 0.3.0 keeps, up to overlap / 2 fewer.
    """
    if frames <= size:
        return [window(0, -(-frames // hop), 0)]
    cut = overlap // 2 // hop
    covered = 0 if published else overlap  # frames at the end that need no window of their own
    starts = range(0, frames - covered, size - overlap)
    plan = []
    for start in starts:
        left, right = start // hop, -(-min(start + size, frames) // hop)
        first = left + cut if start else 0
        last = right if start == starts[-1] else right - cut
        plan.append(Window(first, max(first, last), left, right))
    return plan


def log_mel(mel: LogMel, wave: Tensor, longest: int = WINDOW) -> Tensor:
    """Log-mel (n_mels, F) of one recording (N,), computed in pieces of `longest` frames to bound memory."""
    hop, frames = mel.config.hop_length, mel.config.frames(len(wave))
    log_mel = wave.new_empty(mel.config.n_mels, frames)
    for w in pieces(frames, longest, 2):  # two frames reach over the end of a piece
        log_mel[:, w.start : w.end] = w.cut(mel(w.read(wave[None], hop))[0])
    return log_mel
