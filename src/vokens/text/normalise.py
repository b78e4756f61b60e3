"""Text as it is to be read aloud: clean Unicode and white space in every language, and in English words for numbers,
dates, times, money, units, abbreviations and signs.

Text that is plain words already stays as it is.
"""

import re
import unicodedata

from vokens.text import english

# Signs that nobody says: soft hyphen, zero-width signs, marks of direction and byte order, the replacement of the
# unreadable.
_SILENT = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff\ufffd]")


def normalise(text: str, language: str = "en") -> str:
    """The text in words.

    Args:
        language: its code, such as "en", "en-gb" (days before months) or "zh"; other than English, text is cleaned and
            not changed.
    """
    text = clean(text)
    kind, _, region = language.lower().replace("_", "-").partition("-")
    return english.spell(text, day_first=region not in ("", "us")) if kind == "en" else text


def clean(text: str) -> str:
    """Composed characters (NFC), no control characters, one blank for white space; a line's end stays one."""
    text = unicodedata.normalize("NFC", _SILENT.sub("", text))
    text = "".join(c for c in text if c.isspace() or unicodedata.category(c) != "Cc")
    lines = (" ".join(line.split()) for line in text.splitlines())
    return "\n".join(line for line in lines if line)
