"""Sampling of the next token: temperature, top-k, top-p (nucleus, arXiv 1904.09751) and repetition awareness (RAS,
VALL-E 2, arXiv 2406.05370 §3.2), each in the order in which the published systems have them, so that a seed gives their
draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vokens.errors import ConfigError


@dataclass(frozen=True)
class SamplingParams:
    """Sampling parameters; the defaults draw from the whole distribution."""

    temperature: float = 1.0  # logits are divided by it; 0 takes the likeliest token (greedy)
    top_k: int = 0  # keep the k likeliest; 0 keeps all
    top_p: float = 1.0  # keep the likeliest until their probabilities exceed it; 1 keeps all
    window: int = 10  # draw again, from all, a token that is `repeats` times or more among the last `window`
    repeats: int = 0  # 0: never. CosyVoice: 10, 1; VALL-E 2: 10, 2
    mask_repeated: bool = False  # the second draw cannot give the repeated token again (CosyVoice 3)
    # top_p is of the whole distribution, top_k a cap on it, and draws go by rank (CosyVoice). Else top_p is of the
    # top_k's probabilities, and draws go by id (VALL-E, transformers).
    top_p_first: bool = False

    def __post_init__(self) -> None:
        accepted = {
            "temperature": (self.temperature >= 0, "0 (greedy) and above"),
            "top_k": (self.top_k >= 0, "0 (off) and above"),
            "top_p": (0 < self.top_p <= 1, "above 0, up to 1 (off)"),
            "window": (self.window >= 1, "1 and above"),
            "repeats": (self.repeats >= 0, "0 (off) and above"),
        }
        for name, (good, range_) in accepted.items():
            if not good:
                raise ConfigError(f"{name}={getattr(self, name)} was given: {range_} is accepted")

    def draw(
        self, logits: Tensor, history: Sequence[int] = (), generator: torch.Generator | None = None
    ) -> int:
        """The next token of logits (V,), -inf where forbidden, behind `history`, which repetition awareness reads.

        The generator may be of any device; None is torch's own of the logits' device.
        """
        if self.temperature == 0:
            return int(logits.argmax())
        logits = logits.float() / self.temperature
        ids, probabilities = self._nucleus(logits)
        token = int(ids[_multinomial(probabilities, generator)])
        if self.repeats and list(history[-self.window :]).count(token) >= self.repeats:
            if self.mask_repeated:
                others = logits.index_fill(0, torch.tensor([token], device=logits.device), -torch.inf)
                logits = others if others.isfinite().any() else logits
            return _multinomial(logits.softmax(0), generator)
        return token

    def _nucleus(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Ids and probabilities (n,), not always of sum 1, among which a draw is made; scaled logits (V,)."""
        if self.top_p_first and (self.top_k or self.top_p < 1):
            return by_rank(logits, self.top_p, self.top_k or len(logits))
        kept = keep_likeliest(logits, self.top_k, self.top_p)
        return torch.arange(len(logits), device=logits.device), kept.softmax(0)


GREEDY = SamplingParams(temperature=0.0)
COSYVOICE = SamplingParams(top_k=25, top_p=0.8, repeats=1, top_p_first=True)


def by_rank(logits: Tensor, top_p: float, top_k: int) -> tuple[Tensor, Tensor]:
    """Ids and probabilities (n,) of the nucleus, likeliest first, n <= top_k; the one that passes top_p is in it.

    Equal probabilities stay in the order of their ids.
    """
    values, ids = logits.softmax(0).sort(descending=True, stable=True)
    values, ids = values[:top_k], ids[:top_k]
    inside = (values.cumsum(0) - values < top_p) & (values > 0)
    inside[0] = True
    return ids[inside], values[inside]


def keep_likeliest(logits: Tensor, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Logits (..., V) with -inf outside the top_k and then their nucleus of top_p; the likeliest always stays."""
    if top_k:
        least = logits.topk(min(top_k, logits.shape[-1])).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p < 1:
        ordered, order = logits.sort(descending=True)
        # The one that crosses top_p still belongs.
        beyond = (ordered.softmax(-1).cumsum(-1) > top_p).roll(1, -1)
        beyond[..., 0] = False
        logits = logits.masked_fill(beyond.scatter(-1, order, beyond), -torch.inf)
    return logits


def _multinomial(probabilities: Tensor, generator: torch.Generator | None) -> int:
    if generator is not None:
        probabilities = probabilities.to(generator.device)
    return int(torch.multinomial(probabilities, 1, generator=generator))
