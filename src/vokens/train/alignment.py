"""Monotonic alignment of texts to speech tokens by hard EM: which symbol of its text each token belongs to.

A hidden Markov model (HTK's flat start and Viterbi training) whose states are the symbols of a text, in order. A state
emits a token with the mean of two probabilities: by the symbol and the one before it, and by the symbol and the one
after it. A token moves on by 0 to 3 symbols, since letters may be silent. It needs neither a recogniser nor audio.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from vokens.errors import ConfigError
from vokens.nn.masks import padding_mask

MOVES = 4
ROUNDS = 10
WIDTH = 2.0  # standard deviation, in symbols, around the even pace that training starts from
PRIOR = 20.0  # observations that a pair of symbols borrows from the symbol alone
BATCH = 64
# Bytes and phonemes fit; pairs of a trained tokenizer's 150,000 pieces are never seen twice.
MOST_SYMBOLS = 512
ENOUGH = 8000  # utterances to learn from: characters have a thousand pairs, each then seen hundreds of times

Pair = tuple[Sequence[int], np.ndarray]  # symbols (L,) of a text, tokens (T,) of its speech


class Batch(NamedTuple):
    """Texts and tokens, padded with 0."""

    numbers: list[int]  # of the pairs
    text: Tensor  # (B, L)
    text_lengths: Tensor  # (B,)
    tokens: Tensor  # (B, T)
    lengths: Tensor  # (B,)


class Emission:
    """Log-probabilities of tokens by a symbol and its neighbour on one side.

    A pair of symbols that was never seen has those of the symbol alone, whose rows of the table come first.

    Args:
        pairs: (P, 2) symbols and neighbours in the corpus. size: of the alphabet. codebook: number of tokens.
    """

    def __init__(self, pairs: Tensor, size: int, codebook: int) -> None:
        self.size, self.codebook = size, codebook
        self.symbols, neighbours = pairs.T
        self.row_of = torch.arange(size)[:, None].repeat(1, size)  # (symbol, neighbour)
        self.row_of[self.symbols, neighbours] = size + torch.arange(len(pairs))
        self.counts = torch.zeros(size + len(pairs), codebook)
        self.table = self.counts

    def count(self, text: Tensor, neighbours: Tensor, tokens: Tensor, weights: Tensor) -> None:
        """Count tokens (n,) as emitted by symbols (n,) beside neighbours (n,), with weights (n,)."""
        rows = self.row_of[text, neighbours]
        self.counts.view(-1).index_add_(0, rows * self.codebook + tokens, weights)

    def update(self) -> None:
        """Re-estimate the table and reset the counts: pairs are smoothed by symbols, symbols by the unigram."""
        pairs = self.counts[self.size :]
        single = torch.zeros(self.size, self.codebook).index_add_(0, self.symbols, pairs)
        shares = single.sum(0) + 1
        single = (single + shares / shares.sum()) / (single.sum(1, keepdim=True) + 1)
        prior = PRIOR * single[self.symbols]
        smoothed = (pairs + prior) / (pairs.sum(1, keepdim=True) + PRIOR)
        self.table, self.counts = torch.cat([single, smoothed]).log(), torch.zeros_like(self.counts)

    def scores(self, text: Tensor, neighbours: Tensor, tokens: Tensor) -> Tensor:
        """Log-probabilities (B, T, L) of tokens (B, T) by symbols (B, L) beside neighbours (B, L)."""
        index = tokens[:, None].expand(-1, text.shape[1], -1)
        return self.table[self.row_of[text, neighbours]].gather(2, index).transpose(1, 2)


class Aligner:
    """Alignment model, learned from pairs of texts and tokens.

    Args:
        pairs: to learn from; ENOUGH of them are. size: of the alphabet. codebook: number of tokens.

    Raises ConfigError for an alphabet of more than 512 symbols.
    """

    def __init__(self, pairs: Sequence[Pair], size: int, codebook: int, rounds: int = ROUNDS) -> None:
        if size > MOST_SYMBOLS:
            raise ConfigError(
                f"a front end of {size} symbols was given to be aligned: at most {MOST_SYMBOLS} are accepted; take "
                "characters, bytes or phonemes"
            )
        self.emissions: dict[int, Emission] = {}  # by the side of the neighbour: -1 before, 1 after
        for side in (-1, 1):
            seen = {
                (symbol, text[place + side] if 0 <= place + side < len(text) else 0)
                for text, _ in pairs
                for place, symbol in enumerate(text)
            }
            self.emissions[side] = Emission(torch.tensor(sorted(seen)), size, codebook)
        self.moves = torch.full((MOVES,), 1 / MOVES).log()
        for number in tqdm(range(rounds), desc="aligning texts", unit="round"):
            self._round(pairs, even=number == 0)

    def durations(self, pairs: Sequence[Pair]) -> list[np.ndarray]:
        """Durations in tokens of each symbol, int64 (L,) that sum to T, of each pair; batch-invariant.

        A text of more than 3 symbols a token is aligned at an even pace.
        """
        durations = [np.zeros(0, np.int64)] * len(pairs)
        for batch in _batches(pairs):
            for row, path in enumerate(self._paths(batch)):
                counts = torch.bincount(path[: batch.lengths[row]], minlength=int(batch.text_lengths[row]))
                durations[batch.numbers[row]] = counts.numpy()
        return durations

    def _round(self, pairs: Sequence[Pair], even: bool) -> None:
        """One EM round: align all pairs (or weight symbols near an even pace), count, re-estimate."""
        moves = torch.ones(MOVES)
        for batch in _batches(pairs):
            if even:
                weights = _even_weights(batch)
            else:
                path = self._paths(batch)
                weights = F.one_hot(path, batch.text.shape[1]).float()
                advances = path.diff(dim=1)[padding_mask(batch.lengths, path.shape[1])[:, 1:]]
                moves += torch.bincount(advances.clamp(0, MOVES - 1), minlength=MOVES)
            weights = weights * padding_mask(batch.lengths, batch.tokens.shape[1])[..., None]
            row, token, symbol = weights.nonzero(as_tuple=True)
            symbols, tokens = batch.text[row, symbol], batch.tokens[row, token]
            for side, emission in self.emissions.items():
                beside = neighbours(batch.text, side)[row, symbol]
                emission.count(symbols, beside, tokens, weights[row, token, symbol])
        for emission in self.emissions.values():
            emission.update()
        self.moves = (moves / moves.sum()).log()

    def _paths(self, batch: Batch) -> Tensor:
        """Index of the symbol (B, T) that emits each token, by Viterbi."""
        scores = [
            emission.scores(batch.text, neighbours(batch.text, side), batch.tokens)
            for side, emission in self.emissions.items()
        ]
        return _viterbi(torch.logaddexp(*scores), self.moves, batch.text_lengths, batch.lengths)


def neighbours(text: Tensor, side: int) -> Tensor:
    """The symbols before (-1) or after (1) those of texts (B, L), 0 beyond the ends."""
    return F.pad(text, (-side, side))


def _batches(pairs: Sequence[Pair]) -> Iterator[Batch]:
    order = sorted(range(len(pairs)), key=lambda number: len(pairs[number][1]))
    for start in range(0, len(order), BATCH):
        numbers = order[start : start + BATCH]
        texts = [torch.tensor(pairs[number][0]) for number in numbers]
        tokens = [torch.from_numpy(pairs[number][1].astype(np.int64)) for number in numbers]
        text_lengths, lengths = (torch.tensor([len(row) for row in rows]) for rows in (texts, tokens))
        yield Batch(
            numbers,
            pad_sequence(texts, batch_first=True),
            text_lengths,
            pad_sequence(tokens, batch_first=True),
            lengths,
        )


def _even_weights(batch: Batch) -> Tensor:
    """Weights (B, T, L) of the symbols around an even pace, up to three standard deviations; they sum to 1."""
    pace = (batch.text_lengths / batch.lengths)[:, None]
    symbols = torch.arange(batch.text.shape[1])
    middle = (torch.arange(batch.tokens.shape[1]) + 0.5) * pace - 0.5
    distance = (symbols - middle[..., None]).abs() / WIDTH
    weights = (-0.5 * distance.square()).exp() * (distance < 3)
    weights = weights * padding_mask(batch.text_lengths, len(symbols))[:, None]
    return weights / weights.sum(2, keepdim=True).clamp(min=1e-9)


def _viterbi(scores: Tensor, moves: Tensor, text_lengths: Tensor, lengths: Tensor) -> Tensor:
    """Best states (B, T) of scores (B, T, L): from one of the first symbols to one of the last, by 0 to 3 a token.

    A row whose text is too long for its tokens is aligned at an even pace.
    """
    rows, tokens, symbols = scores.shape
    best = scores[:, 0].clone()
    best[:, MOVES:] = -torch.inf
    last, taken = best, torch.zeros(rows, tokens, symbols, dtype=torch.long)
    for token in range(1, tokens):
        from_left = F.pad(best, (MOVES - 1, 0), value=-torch.inf).unfold(1, MOVES, 1).flip(2)  # by 0, 1, 2, 3
        best, taken[:, token] = (from_left + moves).max(2)
        best = best + scores[:, token]
        last = torch.where((token < lengths)[:, None], best, last)
    places = torch.arange(symbols)
    ends = (places < text_lengths[:, None]) & (places >= text_lengths[:, None] - MOVES)
    value, state = last.masked_fill(~ends, -torch.inf).max(1)
    path = torch.zeros(rows, tokens, dtype=torch.long)
    for token in range(tokens - 1, -1, -1):
        path[:, token] = state
        move = taken[:, token].gather(1, state[:, None])[:, 0]
        state = torch.where(token < lengths, state - move, state).clamp(min=0)
    even = ((torch.arange(tokens) + 0.5) * (text_lengths / lengths)[:, None]).long()
    even = torch.minimum(even, text_lengths[:, None] - 1)
    return torch.where(value.isinf()[:, None], even, path)
