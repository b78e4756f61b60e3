"""Long signals in windows with context: memory of one window, and the numbers of the whole."""

from typing import Any, NamedTuple

from torch import Tensor


class Window(NamedTuple):
    """Frames start..end of a signal, and frames left..right from which they are computed; right may lie beyond it."""

    start: int
    end: int
    left: int
    right: int

    def read(self, x: Any, hop: int = 1) -> Any:
        """Frames left..right of x (..., T * hop), a tensor or an array, as far as there are any."""
        return x[..., self.left * hop : self.right * hop]

    def cut(self, y: Tensor, hop: int = 1) -> Tensor:
        """Frames start..end of an output y (..., T * hop) whose first frame is `left`."""
        return y[..., (self.start - self.left) * hop : (self.end - self.left) * hop]

    def lengths(self, lengths: Tensor, size: int, hop: int = 1) -> Tensor | None:
        """Lengths (B,) of rows in the `size` values that were read; None where all fill them, which needs no mask."""
        inside = (lengths - self.left * hop).clamp(0, size)
        return None if bool((inside == size).all()) else inside


def window(start: int, end: int, context: int) -> Window:
    """Frames start..end with as many frames of context on either side."""
    return Window(start, end, max(0, start - context), end + context)


def windows(total: int, size: int, context: int) -> list[Window]:
    """Consecutive windows over `total` frames, `size` of them in each but the last."""
    return [window(start, min(total, start + size), context) for start in range(0, total, size)]
