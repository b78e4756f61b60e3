"""Sampling of the next code: temperature, top-k and top-p (nucleus, arXiv 1904.09751), repetition awareness.

Repetition-aware sampling is VALL-E 2's (arXiv 2406.05370 §3.2): a nucleus draw that its near past already holds
too often is drawn again from the whole distribution, which ends loops without forbidding pauses.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vokens.errors import ConfigError


@dataclass(frozen=True)
class Sampling:
    """The law of one draw.

    Attributes:
        temperature: what logits are divided by; 0 takes the likeliest. top_k: of so many likeliest; 0: of all.
        top_p: of the likeliest whose probabilities first exceed it together; 1: of all.
        window, repetition: draw again from all where the last `window` codes are the drawn one in more than this
            part (VALL-E 2: 10, 0.1); 1: never.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    window: int = 10
    repetition: float = 1.0

    def __post_init__(self) -> None:
        accepted = {
            "temperature": (self.temperature >= 0, "0 (greedy) and above"),
            "top_k": (self.top_k >= 0, "0 (off) and above"),
            "top_p": (0 < self.top_p <= 1, "above 0, up to 1 (off)"),
            "window": (self.window >= 1, "1 and above"),
            "repetition": (0 <= self.repetition <= 1, "0 to 1 (off)"),
        }
        for name, (good, range_) in accepted.items():
            if not good:
                raise ConfigError(f"{name}={getattr(self, name)} was given: {range_} are accepted")


GREEDY = Sampling(temperature=0.0)


def draw(
    logits: Tensor, law: Sampling, past: Sequence[int] = (), generator: torch.Generator | None = None
) -> int:
    """One class of logits (V,), given the classes drawn before. The draw is of torch.multinomial."""
    if law.temperature == 0:
        return int(logits.argmax())
    logits = logits.float() / law.temperature
    chosen = _multinomial(keep_likeliest(logits, law.top_k, law.top_p), generator)
    recent = list(past)[-law.window :]
    if recent.count(chosen) > law.repetition * law.window:
        chosen = _multinomial(logits, generator)
    return chosen


def keep_likeliest(logits: Tensor, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Logits (..., V) with -inf outside the top_k and outside the nucleus of top_p; the likeliest always stays."""
    if top_k:
        least = logits.topk(min(top_k, logits.shape[-1])).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p < 1:
        ordered, order = logits.sort(descending=True)
        mass = ordered.softmax(-1).cumsum(-1)
        beyond = (mass > top_p).roll(1, -1)  # the class that crosses top_p still belongs
        beyond[..., 0] = False
        logits = logits.masked_fill(beyond.scatter(-1, order, beyond), -torch.inf)
    return logits


def _multinomial(logits: Tensor, generator: torch.Generator | None) -> int:
    probabilities = logits.softmax(-1)
    if generator is not None:
        probabilities = probabilities.to(generator.device)
    return int(torch.multinomial(probabilities, 1, generator=generator))
