"""Drawing the next token of a language model: greedy, nucleus (arXiv 1904.09751) and repetition-aware (RAS, VALL-E 2,
arXiv 2406.05370) as CosyVoice 2 has them.

The trick: the draw happens among the kept probabilities as they are, so a seed gives the published draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vokens.errors import ConfigError


@dataclass(frozen=True)
class Sampler:
    """Sampling parameters of the next token; the defaults are CosyVoice 2's.

    Attributes:
        kind: "greedy" takes the likeliest; "full" draws among all; "nucleus" among the likeliest `top_k` whose
            predecessors sum to less than `top_p`; "ras" as nucleus, and once more among all where the token is
            already `repeats * window` times or more among the last `window` tokens.
        mask_repeated: the second draw of "ras" cannot give the repeated token again (later CosyVoice).
        temperature: scores are divided by it; above 0.
    """

    kind: Literal["greedy", "full", "nucleus", "ras"] = "ras"
    top_p: float = 0.8
    top_k: int = 25
    window: int = 10
    repeats: float = 0.1
    mask_repeated: bool = False
    temperature: float = 1.0

    def __post_init__(self) -> None:
        kinds = ("greedy", "full", "nucleus", "ras")
        if self.kind not in kinds:
            raise ConfigError(f"kind={self.kind!r} was given: {', '.join(kinds)} are accepted")
        if not (0 < self.top_p <= 1 and self.top_k > 0 and self.temperature > 0 and self.window > 0):
            raise ConfigError(
                f"top_p in (0, 1], top_k, window and temperature above 0 are accepted; got {self}"
            )

    def draw(
        self, scores: Tensor, history: Sequence[int] = (), generator: torch.Generator | None = None
    ) -> int:
        """The next token.

        Args:
            scores: (V,) logits or log-probabilities; -inf forbids a token.
            history: the tokens drawn before; only "ras" looks at them.
            generator: of the scores' device; None is torch's own.
        """
        if self.kind == "greedy":
            return int(scores.argmax())
        scores = scores / self.temperature
        if self.kind == "full":
            return draw(scores, generator)
        token = nucleus(scores, self.top_p, self.top_k, generator)
        if self.kind == "ras" and list(history[-self.window :]).count(token) >= self.window * self.repeats:
            if self.mask_repeated:
                repeated = torch.arange(len(scores), device=scores.device) == token
                only = bool(torch.isneginf(scores[~repeated]).all())
                scores = scores if only else scores.masked_fill(repeated, -torch.inf)
            return draw(scores, generator)
        return token


def draw(scores: Tensor, generator: torch.Generator | None = None) -> int:
    """A token drawn from softmax(scores); scores (V,)."""
    return int(torch.multinomial(scores.softmax(0), 1, generator=generator))


def nucleus(scores: Tensor, top_p: float, top_k: int, generator: torch.Generator | None = None) -> int:
    """A token drawn among those of `kept`; scores (V,)."""
    ids, values = kept(scores, top_p, top_k)
    return int(ids[torch.multinomial(values, 1, generator=generator)])


def kept(scores: Tensor, top_p: float, top_k: int) -> tuple[Tensor, Tensor]:
    """Ids and probabilities (n,) of the nucleus, likeliest first, n <= top_k; the one that passes top_p is in it.

    Equal probabilities stay in the order of their ids.
    """
    values, ids = scores.softmax(0).sort(descending=True, stable=True)
    values, ids = values[:top_k], ids[:top_k]
    inside = (values.cumsum(0) - values < top_p) & (values > 0)
    inside[0] = True
    return ids[inside], values[inside]
