"""Predictability of tokens by language models: bits per second on held-out recordings.

A tokenizer that is easier to model needs fewer bits per second; tokenizers of any frame rate and number of codebooks
are comparable on the same recordings. Recordings are split by a hash of their ids.
"""

import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vokens.bench.tasks.information import KneserNey
from vokens.models.socodec.lm import TokenLM, TokenLMConfig
from vokens.tokens import Tokens

ORDER = 3
WIDTH, LAYERS, HEADS, DROPOUT = 128, 3, 4, 0.1
RATE, WARM_UP = 2e-3, 20  # of AdamW, followed by cosine decay to a tenth
STEP_SECONDS = 16.0  # seconds of audio per step
CHECKS = 8  # validations during training
FEWEST = 10  # recordings


@dataclass(frozen=True)
class Parts:
    """Indices of training, validation and test recordings."""

    train: list[int]
    valid: list[int]
    test: list[int]


def divide(ids: Sequence[str]) -> Parts:
    """Split by a hash of ids: one tenth (at least one) test, one tenth validation, the rest training."""
    order = sorted(range(len(ids)), key=lambda i: (zlib.crc32(ids[i].encode()), ids[i]))
    tenth = max(1, len(ids) // 10)
    return Parts(sorted(order[2 * tenth :]), sorted(order[tenth : 2 * tenth]), sorted(order[:tenth]))


def ngram_bits(tokens: Sequence[Tokens], parts: Parts) -> list[float]:
    """Bits (K,) of the test part under an n-gram model per codebook."""
    bits = []
    for k, size in enumerate(tokens[0].codebook_sizes):
        model = KneserNey((tokens[i].codes[0, k].tolist() for i in parts.train + parts.valid), size, ORDER)
        bits.append(sum(float(model.bits(tokens[i].codes[0, k].tolist()).sum()) for i in parts.test))
    return bits


def transformer_bits(
    tokens: Sequence[Tokens],
    parts: Parts,
    steps: int,
    seed: int,
    report: Callable[[int], object] = lambda step: None,
) -> list[float]:
    """Bits (K,) of the test part under a small transformer over all codebooks, including end-of-sequence.

    A TokenLM with a delay of one frame between codebooks, of fixed size, trained for `steps` steps of 16 s of audio
    each; the best of 8 checkpoints on the validation part is used.
    """
    sizes, frame_rate = tokens[0].codebook_sizes, tokens[0].frame_rate
    config = TokenLMConfig(sizes, 1, WIDTH, LAYERS, HEADS, DROPOUT, frame_rate=frame_rate)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TokenLM(config)
        optimiser = torch.optim.AdamW(model.parameters(), RATE, betas=(0.9, 0.95), weight_decay=0.1)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, steps))
        batches = _batches(tokens, parts.train, torch.Generator().manual_seed(seed))
        checks = {math.ceil(steps * (i + 1) / CHECKS) for i in range(CHECKS)}
        best, state = math.inf, model.state_dict()
        for step in range(1, steps + 1):
            model.train()
            batch = Tokens.cat([tokens[i] for i in next(batches)])
            loss = model.losses(batch.codes, batch.lengths).mean()
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            if step in checks:
                bits = sum(_measure(model, [tokens[i] for i in parts.valid]))
                report(step)
                if bits < best:
                    best, state = bits, {key: value.clone() for key, value in model.state_dict().items()}
        model.load_state_dict(state)
        return _measure(model, [tokens[i] for i in parts.test])


@torch.inference_mode()
def _measure(model: TokenLM, tokens: Sequence[Tokens]) -> list[float]:
    """Bits (K,) of the tokens and end-of-sequence."""
    model.eval()
    total: Tensor = torch.zeros(len(model.config.codebook_sizes), dtype=torch.float64)
    for one in tokens:
        total += model.losses(one.codes, one.lengths).double() * float(one.lengths.sum() + len(one))
    return (total / math.log(2)).tolist()


def _rate(step: int, steps: int) -> float:
    warm = min(1.0, (step + 1) / WARM_UP)
    return warm * (0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, step / steps))))


def _batches(tokens: Sequence[Tokens], rows: Sequence[int], draw: torch.Generator) -> Iterator[list[int]]:
    """Endless batches of rows in random order, as many as fit into 16 s, at least one."""
    group: list[int] = []
    seconds = 0.0
    while True:
        for place in torch.randperm(len(rows), generator=draw).tolist():
            row = rows[place]
            duration = float(tokens[row].duration)
            if group and seconds + duration > STEP_SECONDS:
                yield group
                group, seconds = [], 0.0
            group.append(row)
            seconds += duration


def streams(tokens: Sequence[Tokens]) -> list[np.ndarray]:
    """The codes of each codebook (N,) over all recordings, one after another."""
    books = range(tokens[0].num_codebooks)
    return [np.concatenate([one.codes[0, k].numpy() for one in tokens]) for k in books]
