"""Long text as pieces that a language model can speak: whole sentences, merged or cut to about 80 units.

Joined, the pieces are the text, character by character; none consists of punctuation only.
"""

import re
from itertools import pairwise

MOST, LEAST, SHORT = 80, 60, 20  # units, like CosyVoice 2's text tokens: cut above, merge up to, join below

_WIDE = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"  # kana, hanzi, hangul
_UNITS = re.compile(rf"[{_WIDE}]|[^\W_{_WIDE}]+|[^\w\s]|_")
_CLOSING = r"[\"'”’»)\]」』）】]*+"
# The end of a sentence: signs of Latin scripts before white space, those of Chinese, Japanese and others anywhere.
# A mark begins where a run of signs does, and runs are possessive, so that no text takes more than linear time.
_END = re.compile(
    rf"(?:(?<![.!?…])[.!?…]++{_CLOSING}(?=\s)|[。！？｡।؟۔]++{_CLOSING})\s*+|(?<![^\S\n])[^\S\n]*+\n\s*+"
)
_CLAUSE = re.compile(rf"(?:(?<![,;:—–])[,;:—–]++{_CLOSING}(?=\s)|—|[，、；：]++{_CLOSING})\s*+")
_SPACE = re.compile(r"\s++")
_UNIT = re.compile(rf"\s*+(?:[{_WIDE}]|[^\W_{_WIDE}]{{1,6}}|[^\w\s]|_|$)\s*+")
_ABBREVIATION = re.compile(
    r"(?:^|[^\w.])(?:Mrs?|Ms|Dr|Prof|Capt|Col|Gen|Gov|Hon|Lt|Mt|Ft|Pres|Rep|Rev|Sen|Sgt|St|vs|approx|dept|Dept"
    r"|e\.g|i\.e|cf|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec|z\.B|d\.h|bzw|M|Mme|Mlle|Sra?|Dra?"
    r"|[A-HJ-Z])\.$"
)


def sentences(text: str, most: int = MOST, least: int = LEAST, short: int = SHORT) -> list[str]:
    """Pieces of a text, each with the white space after it: "".join(pieces) is the text.

    Sentences are merged until a piece has `least` units, unless it would exceed `most`; longer ones are cut at commas,
    else between words. A piece of less than `short` units joins its neighbour; so a
    piece has up to most + 2 * short.
    A text without a letter or digit has no pieces.

    most, least, short: in units, see `units`: a word of English is about one and a half.
    """
    pieces: list[str] = []
    gathered: list[str] = []
    size, spoken = 0, False
    for atom in (piece for sentence in _cut(text, _END) for piece in _fitting(sentence, most)):
        more = units(atom)
        if spoken and size >= short and (size >= least or size + more > most):
            pieces.append("".join(gathered))
            gathered, size, spoken = [], 0, False
        gathered.append(atom)
        size, spoken = size + more, spoken or speaks(atom)
    if pieces and (not spoken or size < short):
        pieces[-1] += "".join(gathered)
    elif spoken:
        pieces.append("".join(gathered))
    return pieces


def units(text: str) -> int:
    """Approximate spoken length of a text: one for each Chinese, Japanese or Korean character and each sign, and
    one for each six letters of a word."""
    return sum(-(-len(unit) // 6) for unit in _UNITS.findall(text))


def speaks(text: str) -> bool:
    """True if the text has a letter or a digit."""
    return any(character.isalnum() for character in text)


def _fitting(text: str, most: int) -> list[str]:
    """Parts of at most `most` units, cut at clauses, then words, then anywhere."""
    parts = [text]
    for mark in (_CLAUSE, _SPACE, _UNIT):
        parts = [piece for part in parts for piece in _gather(part, mark, most)]
    return parts


def _gather(text: str, mark: re.Pattern[str], most: int) -> list[str]:
    """The text cut at marks, where it is too long, with neighbours merged as far as they fit."""
    if units(text) <= most:
        return [text]
    gathered: list[list[str]] = []
    size = most
    for part in _cut(text, mark):
        more = units(part)
        if size + more > most or not gathered:
            gathered.append([])
            size = 0
        gathered[-1].append(part)
        size += more
    return ["".join(parts) for parts in gathered]


def _cut(text: str, mark: re.Pattern[str]) -> list[str]:
    """The text cut after each mark that ends a sentence or clause."""
    borders = [0, *(m.end() for m in mark.finditer(text) if mark is not _END or _ends(text, m)), len(text)]
    return [text[start:end] for start, end in pairwise(borders) if start < end]


def _ends(text: str, mark: re.Match[str]) -> bool:
    """True if a sentence ends here: not after an abbreviation, nor before a small letter."""
    if not mark[0].startswith((".", "!", "?", "…")):
        return True
    small = text[mark.end() : mark.end() + 1].islower()
    return not small and not (
        mark[0].startswith(".") and _ABBREVIATION.search(text[max(0, mark.start() - 12) : mark.start() + 1])
    )
