"""Deprecated names of `vokens.lm.SamplingParams`; they go with the next release."""

from math import ceil, floor

from vokens.errors import ConfigError
from vokens.lm.sampling import GREEDY, SamplingParams


def Sampler(
    kind: str = "ras",
    top_p: float = 0.8,
    top_k: int = 25,
    window: int = 10,
    repeats: float = 0.1,
    mask_repeated: bool = False,
    temperature: float = 1.0,
) -> SamplingParams:
    """Deprecated: `vokens.lm.sampling.COSYVOICE`, `GREEDY` or `SamplingParams`."""
    if kind not in (kinds := ("greedy", "full", "nucleus", "ras")):
        raise ConfigError(f"kind={kind!r} was given: {', '.join(kinds)} are accepted")
    if kind in ("greedy", "full"):
        return GREEDY if kind == "greedy" else SamplingParams(temperature)
    count = ceil(window * repeats) if kind == "ras" else 0
    return SamplingParams(temperature, top_k, top_p, window, count, mask_repeated, top_p_first=True)


def Sampling(
    temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, window: int = 10, repetition: float = 1.0
) -> SamplingParams:
    """Deprecated: `vokens.lm.SamplingParams`, of which repeats is the least count above `repetition * window`."""
    return SamplingParams(
        temperature, top_k, top_p, window, floor(repetition * window) + 1 if repetition < 1 else 0
    )
