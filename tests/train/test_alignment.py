"""Alignment of texts to tokens, on tokens that were drawn from a known alignment."""

import numpy as np
from conftest import refused

from vokens.errors import ConfigError
from vokens.train.alignment import Aligner

SYMBOLS, CODEBOOK = 12, 40


def spoken(count: int, seed: int = 0) -> tuple[list[list[int]], list[np.ndarray], list[np.ndarray]]:
    """Texts, tokens of which each symbol has three of its own, and durations of 0 (seldom) to 3."""
    draw = np.random.default_rng(seed)
    texts, codes, durations = [], [], []
    for _ in range(count):
        text = draw.integers(1, SYMBOLS, draw.integers(5, 25)).tolist()
        lengths = draw.choice([0, 1, 2, 3], len(text), p=[0.1, 0.3, 0.4, 0.2])
        lengths[0] = lengths[-1] = 2
        tokens = [
            3 * symbol + draw.integers(3) for symbol, n in zip(text, lengths, strict=True) for _ in range(n)
        ]
        texts.append(text)
        codes.append(np.array(tokens))
        durations.append(lengths)
    return texts, codes, durations


def test_known_durations_are_found():
    texts, codes, durations = spoken(300)
    pairs = list(zip(texts, codes, strict=True))
    found = Aligner(pairs, SYMBOLS, CODEBOOK).durations(pairs)
    ends = [np.abs(a.cumsum() - b.cumsum()) for a, b in zip(found, durations, strict=True)]
    assert all(a.sum() == len(c) and len(a) == len(t) for a, c, t in zip(found, codes, texts, strict=True))
    assert np.concatenate(ends).mean() < 0.15  # tokens; at an even pace 1.6
    again = Aligner(pairs, SYMBOLS, CODEBOOK).durations(pairs)
    assert all((a == b).all() for a, b in zip(found, again, strict=True))


def test_other_texts_are_aligned_by_what_was_learned():
    aligner = Aligner(list(zip(*spoken(300)[:2], strict=True)), SYMBOLS, CODEBOOK)
    texts, codes, durations = spoken(20, seed=1)
    together = aligner.durations(list(zip(texts, codes, strict=True)))
    for text, tokens, found, durations_ in zip(texts, codes, together, durations, strict=True):
        assert (found == aligner.durations([(text, tokens)])[0]).all()  # whatever else is in the batch
        assert np.abs(found.cumsum() - durations_.cumsum()).mean() < 1


def test_a_text_too_long_for_its_tokens_goes_at_an_even_pace():
    texts, codes, _ = spoken(30)
    pairs = list(zip([*texts, [1, 2] * 20, [3]], [*codes, np.arange(4), np.array([9, 10])], strict=True))
    found = Aligner(pairs, SYMBOLS, CODEBOOK).durations(pairs)
    assert found[-2].sum() == 4
    assert set(np.flatnonzero(found[-2])) == {5, 15, 25, 35}
    assert found[-1].tolist() == [2]


def test_an_alphabet_may_be_as_large_as_bytes():
    pairs = list(zip(*spoken(20)[:2], strict=True))
    assert [each.sum() for each in Aligner(pairs, 259, 6561, rounds=2).durations(pairs)] == [
        len(tokens) for _, tokens in pairs
    ]
    refused(ConfigError, "at most 512 are accepted", Aligner, pairs, 151_936, 6561)
