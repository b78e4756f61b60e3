"""Autoregressive decoding: sample a token of each row, feed it back, and stop each row at its end."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from vokens.lm.sampling import SamplingParams


def decode(
    logits: Tensor,
    step: Callable[[Tensor], Tensor],
    sampling: SamplingParams,
    *,
    end: int,
    limits: Sequence[tuple[int, int]],
    generators: Sequence[torch.Generator | None],
    history: Sequence[Sequence[int]] = (),
    end_if_likeliest: bool = False,
) -> Iterator[list[int | None]]:
    """Yield the next token of each of B rows, step by step; None for rows that have ended. Ends are not yielded.

    logits: (B, V) of the first tokens; -inf forbids one.
    step: logits (B, V) after the last tokens (B,), undefined in ended rows. It is called lazily, when the next tokens
        are requested.
    end: the token that ends a row. limits: minimum and maximum number of tokens of each row.
    history: tokens before the first, for the repetition awareness of `sampling`.
    end_if_likeliest: a row ends as soon as its end is the most likely, whatever is sampled (VALL-E as published).
    """
    rows = [list(tokens) for tokens in history] or [[] for _ in limits]
    running = [row for row, (_, most) in enumerate(limits) if most > 0]
    count = 0
    while running:
        scores = logits.float().cpu()
        tokens: list[int | None] = [None] * len(limits)
        for row in list(running):
            if count < limits[row][0]:
                scores[row, end] = -torch.inf
            token = sampling.draw(scores[row], rows[row], generators[row])
            if token == end or (end_if_likeliest and int(scores[row].argmax()) == end):
                running.remove(row)
                continue
            tokens[row] = token
            rows[row].append(token)
            if count + 1 == limits[row][1]:
                running.remove(row)
        count += 1
        if any(token is not None for token in tokens):
            yield tokens
        if running:
            logits = step(torch.tensor([token or 0 for token in tokens]))


def by_rows(steps: Iterator[list[int | None]], rows: int) -> list[Tensor]:
    """Collect the tokens (n,) int64 of each row from `decode`."""
    tokens = list(steps)
    return [torch.tensor([t[row] for t in tokens if t[row] is not None]).long() for row in range(rows)]
