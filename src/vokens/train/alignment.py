"""Monotonic alignment of texts to speech tokens by hard EM: which symbol of its text each token belongs to.

A hidden Markov model (HTK's flat start and Viterbi training) whose states are the symbols of a text, in order. A state
emits a token with the mean of two probabilities: by the symbol and the one before it, and by the symbol and the one
behind it. A token moves on by 0 to 3 symbols, since letters may be silent. It needs neither a recogniser nor audio.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

MOVES = 4
ROUNDS = 10
WIDEST = 2.0  # standard deviation, in symbols, around the even pace that training starts from
PRIOR = 20.0  # observations that a pair of symbols borrows from the symbol alone
BATCH = 64


def align(texts: Sequence[Sequence[int]], codes: Sequence[np.ndarray], codebook: int) -> list[np.ndarray]:
    """Tokens of each symbol, int64 (L,) that sum to T, for texts (L,) and codes (T,): learned from them all.

    Texts of more than 3 symbols a token are aligned at an even pace.
    """
    model = Aligner(max(max(text) for text in texts) + 1, codebook)
    pairs = list(zip(texts, codes, strict=True))
    model.learn(pairs)
    return model.durations(pairs)


class Aligner:
    """Tables of the model: log-probabilities of tokens by pairs of symbols, and of moves.

    Args:
        symbols: size of the alphabet. codebook: number of tokens.
    """

    def __init__(self, symbols: int, codebook: int) -> None:
        self.symbols, self.codebook = symbols, codebook
        self.tables: tuple[Tensor, Tensor] | None = None
        self.moves = torch.full((MOVES,), 1 / MOVES).log()

    def learn(self, pairs: Sequence[tuple[Sequence[int], np.ndarray]], rounds: int = ROUNDS) -> None:
        """Rounds of alignment and counting, from an even pace."""
        for _ in range(rounds):
            counts = [torch.zeros(self.symbols**2, self.codebook) for _ in range(2)]
            moves = torch.ones(MOVES)
            for _, left, right, codes, lengths, counts_of in self._batches(pairs):
                states = self._states(left, right, codes, lengths, counts_of)
                self._count(counts, states, left, right, codes)
                if self.tables is not None:
                    moves += _moves(states, counts_of)
            self.tables = (self._emission(counts[0], 1), self._emission(counts[1], 0))
            self.moves = (moves / moves.sum()).log()

    def durations(self, pairs: Sequence[tuple[Sequence[int], np.ndarray]]) -> list[np.ndarray]:
        """Tokens of each symbol, as `align` gives them."""
        found: dict[int, np.ndarray] = {}
        for numbers, left, right, codes, lengths, counts in self._batches(pairs):
            states = self._states(left, right, codes, lengths, counts).argmax(-1)
            for row, number in enumerate(numbers):
                path = states[row, : counts[row]]
                found[number] = torch.bincount(path, minlength=int(lengths[row])).numpy()
        return [found[number] for number in range(len(pairs))]

    def _batches(
        self, pairs: Sequence[tuple[Sequence[int], np.ndarray]]
    ) -> Iterator[tuple[list[int], Tensor, Tensor, Tensor, Tensor, Tensor]]:
        """Numbers, pairs (B, L) with the symbol before and behind, codes (B, T), and both lengths (B,)."""
        order = sorted(range(len(pairs)), key=lambda number: len(pairs[number][1]))
        for start in range(0, len(order), BATCH):
            numbers = order[start : start + BATCH]
            texts = [torch.tensor(list(pairs[number][0])) for number in numbers]
            tokens = [torch.from_numpy(pairs[number][1].astype(np.int64)) for number in numbers]
            text = pad_sequence(texts, batch_first=True)
            before, behind = text.roll(1, 1), text.roll(-1, 1)
            before[:, 0], behind[:, -1] = 0, 0
            yield (
                numbers,
                before * self.symbols + text,
                text * self.symbols + behind,
                pad_sequence(tokens, batch_first=True),
                torch.tensor([len(each) for each in texts]),
                torch.tensor([len(each) for each in tokens]),
            )

    def _states(self, left: Tensor, right: Tensor, codes: Tensor, lengths: Tensor, counts: Tensor) -> Tensor:
        """Weights (B, T, L) of the symbols at each token: one-hot, but in the first round."""
        inside = torch.arange(codes.shape[1]) < counts[:, None]
        if self.tables is None:
            return _even(codes.shape[1], lengths, counts, left.shape[1]) * inside[..., None]
        index = codes[:, None].expand(-1, left.shape[1], -1)
        scores = torch.logaddexp(
            self.tables[0][left].gather(2, index), self.tables[1][right].gather(2, index)
        )
        path = _viterbi(scores.transpose(1, 2), self.moves, lengths, counts)
        return torch.nn.functional.one_hot(path, left.shape[1]) * inside[..., None]

    def _count(
        self, tables: list[Tensor], states: Tensor, left: Tensor, right: Tensor, codes: Tensor
    ) -> None:
        """Add what the states say to the counts of (pair, token)."""
        row, token, symbol = states.nonzero(as_tuple=True)
        weight, code = states[row, token, symbol].float(), codes[row, token]
        for table, pairs in zip(tables, (left, right), strict=True):
            table.view(-1).index_add_(0, pairs[row, symbol] * self.codebook + code, weight)

    def _emission(self, counts: Tensor, axis: int) -> Tensor:
        """Log-probabilities (pairs, tokens): counts smoothed by those of the symbol, those by the tokens' shares."""
        shares = counts.sum(0) + 1
        shares = shares / shares.sum()
        single = counts.view(self.symbols, self.symbols, -1).sum(1 - axis)
        single = (single + shares) / (single.sum(1, keepdim=True) + 1)
        prior = single[None] if axis else single[:, None]
        cube = counts.view(self.symbols, self.symbols, -1)
        total = cube.sum(2, keepdim=True)
        return ((cube + PRIOR * prior) / (total + PRIOR)).log().flatten(0, 1)


def _even(tokens: int, lengths: Tensor, counts: Tensor, symbols: int) -> Tensor:
    """Weights (B, T, L) around an even pace; below 1 % of the largest they are left out."""
    place = (torch.arange(tokens) + 0.5) * (lengths / counts)[:, None] - 0.5
    distance = (torch.arange(symbols) - place[..., None]) / WIDEST
    weights = (-0.5 * distance.square()).exp() * (torch.arange(symbols) < lengths[:, None])[:, None]
    weights = weights * (distance.abs() < 3)
    return weights / weights.sum(2, keepdim=True).clamp(min=1e-9)


def _viterbi(scores: Tensor, moves: Tensor, lengths: Tensor, counts: Tensor) -> Tensor:
    """Best states (B, T) of scores (B, T, L): from one of the first symbols to one of the last, by 0 to 3 a token.

    A row whose text is too long for its tokens goes at an even pace.
    """
    rows, tokens, symbols = scores.shape
    best = scores[:, 0].clone()
    best[:, MOVES:] = -torch.inf
    back = torch.zeros(rows, tokens, symbols, dtype=torch.long)
    last = best.clone()
    for token in range(1, tokens):
        steps = torch.nn.functional.pad(best, (MOVES - 1, 0), value=-torch.inf)
        ways = torch.stack(
            [steps[:, MOVES - 1 - move :][:, :symbols] + moves[move] for move in range(MOVES)], -1
        )
        best, back[:, token] = ways.max(-1)
        best = best + scores[:, token]
        last = torch.where((token < counts)[:, None], best, last)
    places = torch.arange(symbols)
    ends = (places < lengths[:, None]) & (places >= lengths[:, None] - MOVES)
    value, state = last.masked_fill(~ends, -torch.inf).max(1)
    path = torch.zeros(rows, tokens, dtype=torch.long)
    for token in range(tokens - 1, -1, -1):
        path[:, token] = state
        within = token < counts
        move = back[:, token].gather(1, state[:, None])[:, 0]
        state = torch.where(within, state - move, state).clamp(min=0)
    even = ((torch.arange(tokens) + 0.5) * (lengths / counts)[:, None]).long()
    even = torch.minimum(even, lengths[:, None] - 1)
    return torch.where(value.isinf()[:, None], even, path)


def _moves(states: Tensor, counts: Tensor) -> Tensor:
    """How often a token moves on by 0, 1, 2, 3 symbols (4,)."""
    path = states.argmax(-1)
    inside = torch.arange(1, path.shape[1]) < counts[:, None]
    return torch.bincount(path.diff(dim=1)[inside].clamp(0, MOVES - 1), minlength=MOVES).float()
