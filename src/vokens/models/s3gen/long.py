"""Utterances of any length in bounded memory: the flow by pieces that cross-fade, the vocoder as one stream.

Mels are faded, not waves: phases of two pieces do not agree, and the vocoder runs on through the joint.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

from vokens.models.s3gen.hift import HiFTNetModel
from vokens.nn.padding import StreamPadding
from vokens.nn.streaming import StreamState

LONGEST = 750  # tokens, 30 s: longer than utterances in training, and attention grows with the square
PIECE = 500  # tokens at most in a piece, 20 s
OVERLAP = 25  # tokens that two pieces share, 1 s


def spans(tokens: int) -> list[tuple[int, int]]:
    """Start and end of each piece, equally long to a token, each sharing OVERLAP with the next."""
    if tokens <= LONGEST:
        return [(0, tokens)]
    count = -(-(tokens - OVERLAP) // (PIECE - OVERLAP))
    borders = [round(number * (tokens - OVERLAP) / count) for number in range(count + 1)]
    return [(start, end + OVERLAP) for start, end in pairwise(borders)]


def faded_mels(tokens: Tensor, speak: Callable[[Tensor], Tensor], ratio: int) -> Iterator[Tensor]:
    """Consecutive mels (1, bands, F) of tokens (N,), whose pieces speak(tokens) -> (1, bands, F) makes.

    A piece may lack a frame at its start (an odd prompt of Chatterbox): there the piece before goes on alone.
    """
    tail: Tensor | None = None
    pieces = spans(len(tokens))
    for number, (start, end) in enumerate(pieces):
        mel = speak(tokens[start:end])
        if tail is not None:
            shared = tail.shape[2] - (ratio * (end - start) - mel.shape[2])
            alone = tail.shape[2] - shared
            weight = (torch.arange(shared, device=mel.device) + 0.5) / shared
            mixed = tail[..., alone:] * (1 - weight) + mel[..., :shared] * weight
            mel = torch.cat([tail[..., :alone], mixed, mel[..., shared:]], 2)
        keep = ratio * OVERLAP if number + 1 < len(pieces) else 0
        tail = mel[..., mel.shape[2] - keep :]
        yield mel[..., : mel.shape[2] - keep]


def vocode(vocoder: HiFTNetModel, mels: Iterable[Tensor], seed: int) -> Iterator[Tensor]:
    """The wave (1, n) of consecutive mels (1, bands, F), as `HiFTNetModel.inference` with this seed gives it."""
    state, last = vocoder.init_state(1, seed), None
    for last in mels:
        wave, state = vocoder.step(last, state)
        if wave.shape[1]:
            yield wave
    if last is not None:
        yield vocoder.step(last[..., :0], state, last=True)[0]


def source_of(vocoder: HiFTNetModel, mels: Iterable[Tensor], seed: int) -> Iterator[Tensor]:
    """The source (1, 1, n) that drives `vocode`."""
    draws, state, samples, last = vocoder.init_state(1, seed).draws, StreamState(), 0, None
    for last in mels:
        padding = StreamPadding(state, samples, last=False)
        source = vocoder.m_source(vocoder.f0_predictor(last, padding), draws, padding)
        state, samples = padding.state, samples + source.shape[2]
        yield source
    if last is not None:
        padding = StreamPadding(state, samples, last=True)
        yield vocoder.m_source(vocoder.f0_predictor(last[..., :0], padding), draws, padding)
