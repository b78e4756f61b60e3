"""KV cache of a language model: the backbone's keys and values, and the scores of what comes next.

Rows of a ragged batch are filled up on the left; the filling is masked and positions count without it, so that a
row gets the scores it has alone, and reading in pieces those of reading at once.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from vokens.models.learnable.backbone import Qwen2
from vokens.nn.transformer import Cache


class Reader:
    """Reads embeddings of B rows, first all their prefixes, then n places of each at a time."""

    def __init__(self, backbone: Qwen2, head: nn.Module) -> None:
        self.backbone, self.head = backbone, head
        self.cache = Cache()
        self.filling: Tensor | None = None  # (B,), where rows are of different lengths

    def start(self, prefixes: list[tuple[Tensor, Tensor | None]]) -> Tensor:
        """Scores (B, V) float32 behind prefixes (n, W) of any lengths, at positions (n,) if they are not 0, 1, 2 …"""
        longest = max(len(x) for x, _ in prefixes)
        if any(len(x) < longest for x, _ in prefixes):
            self.filling = torch.tensor([longest - len(x) for x, _ in prefixes], device=prefixes[0][0].device)
        places = [at for _, at in prefixes if at is not None]
        at = pad_sequence(places, batch_first=True, padding_side="left") if places else None
        return self.read(pad_sequence([x for x, _ in prefixes], batch_first=True, padding_side="left"), at)

    def more(self, x: Tensor, positions: Tensor | None) -> Tensor:
        """Scores (1, V) behind x (n, W) of a single utterance."""
        if not self.cache.length:
            return self.start([(x, positions)])
        return self.read(x[None], None if positions is None else positions[None])

    def read(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """Scores (B, V) float32 behind x (B, n, W), which follows what was read, at positions (B, n)."""
        if positions is None and self.filling is not None:
            first = self.cache.length
            places = torch.arange(first, first + x.shape[1], device=x.device)
            positions = (places - self.filling[:, None]).clamp(min=0)
        states, self.cache = self.backbone(x, positions, self.filling, self.cache)
        return self.head(states[:, -1]).float()
