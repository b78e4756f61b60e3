"""Long text in pieces that a language model can say at once: whole sentences, gathered or cut to about 80 units.

The pieces put together are the text, character by character; none is made of punctuation alone.
"""

import re
from itertools import pairwise

MOST, LEAST, SHORT = (
    80,
    60,
    20,
)  # units, as CosyVoice 2 counts text tokens: cut above, gather up to, join below

_WIDE = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"  # kana, hanzi, hangul
_UNITS = re.compile(rf"[{_WIDE}]|[^\W_{_WIDE}]+|[^\w\s]|_")
_CLOSING = r"[\"'”’»)\]」』）】]*"
# The end of a sentence: signs of Latin scripts before white space, those of Chinese, Japanese and others anywhere.
_END = re.compile(rf"(?:[.!?…]+{_CLOSING}(?=\s)|[。！？｡।؟۔]+{_CLOSING})\s*|\s*\n\s*")
_CLAUSE = re.compile(rf"(?:[,;:—–]+{_CLOSING}(?=\s)|—|[，、；：]+{_CLOSING})\s*")
_SPACE = re.compile(r"\s+")
_ABBREVIATION = re.compile(
    r"(?:^|[^\w.])(?:Mrs?|Ms|Dr|Prof|Capt|Col|Gen|Gov|Hon|Lt|Mt|Ft|Pres|Rep|Rev|Sen|Sgt|St|vs|approx|dept|Dept"
    r"|e\.g|i\.e|cf|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec|z\.B|d\.h|bzw|M|Mme|Mlle|Sra?|Dra?"
    r"|[A-HJ-Z])\.$"
)


def sentences(text: str, most: int = MOST, least: int = LEAST, short: int = SHORT) -> list[str]:
    """Pieces of a text, each with the white space behind it: "".join(pieces) is the text.

    Sentences are gathered until a piece has `least` units, unless it would have more than `most`; what has more is cut
    at commas, else between words. A piece of less than `short` units joins its neighbour; with one before and
    one behind, a piece has up to most + 2 * short.
    A text without a letter or digit has no pieces.

    Args:
        most, least, short: in units, see `units`: a word of English is about one and a half.
    """
    atoms = [piece for sentence in _cut(text, _END) for piece in _fitting(sentence, most)]
    pieces: list[str] = []
    gathered = ""
    for atom in atoms:
        size = units(gathered)
        if gathered and speaks(gathered) and size >= short and (size >= least or size + units(atom) > most):
            pieces.append(gathered)
            gathered = ""
        gathered += atom
    if pieces and (not speaks(gathered) or units(gathered) < short):
        pieces[-1] += gathered
    elif speaks(gathered):
        pieces.append(gathered)
    return pieces


def units(text: str) -> int:
    """A measure of how long a text is to say: one for each Chinese, Japanese or Korean character and each sign, and
    one for each six letters of a word."""
    return sum(-(-len(unit) // 6) for unit in _UNITS.findall(text))


def speaks(text: str) -> bool:
    """Whether there is anything to say: a letter or a digit."""
    return any(character.isalnum() for character in text)


def _fitting(text: str, most: int) -> list[str]:
    """The text in parts of at most `most` units: cut at clauses, then words, then anywhere."""
    parts = [text]
    for mark in (_CLAUSE, _SPACE, None):
        if all(units(part) <= most for part in parts):
            break
        parts = [
            piece
            for part in parts
            for piece in ([part] if units(part) <= most else _gather(part, mark, most))
        ]
    return parts


def _gather(text: str, mark: re.Pattern[str] | None, most: int) -> list[str]:
    """The text cut at marks, neighbours put together again as far as they fit."""
    gathered: list[str] = []
    for part in list(text) if mark is None else _cut(text, mark):
        if gathered and units(gathered[-1] + part) <= most:
            gathered[-1] += part
        else:
            gathered.append(part)
    return gathered


def _cut(text: str, mark: re.Pattern[str]) -> list[str]:
    """The text cut behind each mark that ends something."""
    borders = [0, *(m.end() for m in mark.finditer(text) if mark is not _END or _ends(text, m)), len(text)]
    return [text[start:end] for start, end in pairwise(borders) if start < end]


def _ends(text: str, mark: re.Match[str]) -> bool:
    """Whether a sentence ends here: not behind an abbreviation, nor before a small letter."""
    if not mark[0].startswith((".", "!", "?", "…")):
        return True
    small = text[mark.end() : mark.end() + 1].islower()
    return not small and not (
        mark[0].startswith(".") and _ABBREVIATION.search(text[max(0, mark.start() - 12) : mark.start() + 1])
    )
