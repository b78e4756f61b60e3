"""Transcripts: words and their edit distance, and the symbols of CTC (characters of an alphabet, 0 its blank)."""

import re
import unicodedata
from collections.abc import Sequence
from itertools import pairwise

PUNCTUATION = re.compile(r"[.,;:!?\"()\[\]“”„«»…]")


def normalise(text: str) -> str:
    """Lower case, one blank between words, hyphens and dashes as blanks, no punctuation but the apostrophe."""
    text = re.sub(r"[-‐-―]", " ", text.lower().replace("’", "'"))
    return " ".join(PUNCTUATION.sub(" ", text).split())


def spell(text: str, alphabet: str) -> list[int] | None:
    """Symbols 1 .. len(alphabet) of a text once normalised; None where it is empty or needs other characters.

    Letters lose accents that are not in the alphabet: "für" is spelled "fur".
    """
    text = normalise(text)
    if not set(text) <= set(alphabet):
        text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    if not text or not set(text) <= set(alphabet):
        return None
    return [alphabet.index(character) + 1 for character in text]


def read(symbols: Sequence[int], alphabet: str) -> str:
    """The text of CTC's best symbols, frame by frame: repeats are merged, blanks dropped."""
    kept = [symbol for place, symbol in enumerate(symbols) if place == 0 or symbol != symbols[place - 1]]
    return "".join(alphabet[symbol - 1] for symbol in kept if symbol)


def frames_needed(symbols: Sequence[int]) -> int:
    """Minimum number of CTC frames for a text: equal neighbours need a blank between them."""
    return len(symbols) + sum(a == b for a, b in pairwise(symbols))


def normalised_words(text: str) -> list[str]:
    """Words as word error compares them: lower case, hyphens to blanks, then letters and apostrophes only."""
    text = re.sub(r"[-‐-―]", " ", text.lower().replace("’", "'"))
    return "".join(c for c in text if c.isalpha() or c == "'" or c.isspace()).split()


def word_edits(reference: list[str], hypothesis: list[str]) -> int:
    """Least number of substitutions, deletions and insertions between two word lists (Levenshtein 1966)."""
    row = list(range(len(hypothesis) + 1))
    for i, word in enumerate(reference, start=1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(hypothesis, start=1):
            diagonal, row[j] = row[j], min(diagonal + (word != other), row[j] + 1, row[j - 1] + 1)
    return row[-1]
