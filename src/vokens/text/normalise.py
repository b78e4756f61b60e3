"""Text normalisation: clean Unicode without markup in every language, and for English numbers, dates, times, money,
units, abbreviations and signs as words.

Plain words are unchanged. All steps take linear time on any text.
"""

import html
import re
import unicodedata
from collections.abc import Iterator

from vokens.text.english import Words, spell

_MARKS = 8  # combining marks on one letter; NFC takes quadratic time on more
_PICTURE = "\ufffc"
# Placeholder letters for the stress digits of phonemes such as CosyVoice 3's [AA1], which stay.
_CLICKS = "ǀǁǂ"
_STRESS = re.compile(rf"(?<=\[[A-Z]{{2}})[0-2{_CLICKS}](?=\])")
_DROPPED = re.compile(f" ?{_PICTURE}[ {_PICTURE}]*(?P<stop>[.,!?;:)\n]|$)?")

# Marks of markdown and HTML, which language models write, with their replacements, applied in order.
_TAGS = (
    "a abbr b big blockquote body br center cite code dd div dl dt em font h1 h2 h3 h4 h5 h6 head hr html i img ins "
    "kbd li main mark ol p pre q s section small span sub summary sup table tbody td th thead title tr tt u ul"
)
_MARKUP: list[tuple[str, Words]] = [
    (r"(?m)^(?:```|~~~).*$", ""),  # the fences of code
    (r"(?m)^[-*_=|:+~ ]+$", ""),  # rules, and those of tables
    (r"(?m)^(?:> ?)+", ""),  # quotations
    (r"(?m)^(?:[-*+•◦▪‣] (?:\[[ xX]\] )?|#{1,6} )", ""),  # bullets, boxes, headings
    (r"(?m)^\|(.*?)\|?$", lambda m: ", ".join(filter(None, map(str.strip, m[1].split("|"))))),
    (r"!?\[([^\[\]\n]*)\]\((?:[^()\n]|\([^()\n]*\))*+\)", r"\1"),  # links and pictures
    (r"\[\^\w+\]:?", ""),  # footnotes
    (r"(?i)<br\s?/?>", "\n"),
    (rf"(?i)</?(?:{'|'.join(_TAGS.split())})\b(?:\s[^<>=]*+=[^<>]*+)?\s?/?>", " "),
    (r"(?<![\w$])\$(?=[^\s\d$])([^$\n]{1,99})\$(?![\w$])|\\[()\[\]]|\$\$", r"\1"),  # formulas
    (r"\\(?=[\\`*_{}\[\]()#+.!>~|-])", ""),
    (r"\*{2,}|(?<![\d\s])\*|\*(?![\d\s])|~~+|`+", ""),  # bold, italic, struck out, code; not 2 * 3
    (r"(?<![^\W_])_+(?=[^\W_])|(?<=[^\W_])_+(?!\w)", ""),
    (r"(?<!\S)[:;]['-]?[()DP](?!\S)", ""),
]


def normalise(text: str, language: str = "en") -> str:
    """The text as words, without pictures (emoji) and the marks of markdown and HTML.

    language: its code, such as "en", "en-gb" (days before months) or "zh"; text in
    other languages than English is only cleaned.
    """
    text = plain(clean(text))
    kind, _, region = language.lower().replace("_", "-").partition("-")
    if kind != "en":
        return text
    kept = _STRESS.sub(lambda sign: _CLICKS[int(sign[0])], text)
    spelt = spell(kept, day_first=region not in ("", "us"))
    return clean(_STRESS.sub(lambda sign: str(_CLICKS.index(sign[0])), spelt))


def clean(text: str) -> str:
    """Composed characters (NFC), no control characters or pictures, single blanks; line ends stay."""
    text = unicodedata.normalize("NFC", "".join(_characters(text)))
    text = "\n".join(" ".join(line.split()) for line in text.splitlines())
    text = _DROPPED.sub(lambda m: m["stop"] or ("" if m["stop"] == "" else " "), text)
    return "\n".join(line for line in map(str.strip, text.split("\n")) if line)


def plain(text: str) -> str:
    """A clean text without the marks of markdown and HTML."""
    text = re.sub(r"&#?\w{1,31};", lambda entity: html.unescape(entity[0]), text)
    for pattern, words in _MARKUP:
        text = re.sub(pattern, words, text)
    return clean(text)


def _characters(text: str) -> Iterator[str]:
    """Characters that stand for sound, `_PICTURE` for pictures."""
    marks = 0
    for character in text:
        if character < "\x7f":
            marks = 0
            if character >= " " or character.isspace():
                yield character
            continue
        marks = marks + 1 if unicodedata.combining(character) else 0
        category = unicodedata.category(character)
        if marks > _MARKS or "\ufe00" <= character <= "\ufe0f" or character == "\u20e3":
            continue  # variation selectors, joiners
        own = category == "So" and unicodedata.normalize("NFKC", character) == character
        tone = "\U0001f3fb" <= character <= "\U0001f3ff"  # of skin
        if (own and character not in "°©®") or tone:
            yield _PICTURE
        elif character.isspace() or category[0] != "C":
            yield character
