"""Front ends: a text becomes ids, from UTF-8 bytes, characters, phonemes or the pieces of a trained tokenizer.

One interface: language models know a front end by its name alone, which stands in their configs. Ids 0 to 2 are
padding, <bos> and <eos>, and symbols follow, except in a trained tokenizer, which has its own.
"""

import logging
import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cache

from vokens.errors import ConfigError

PAD, BOS, EOS = 0, 1, 2
FIRST = 3  # the id of the first symbol
NAMES = (
    "bytes",
    "characters",
    "characters:ALPHABET",
    "phonemes",
    "espeak",
    "bpe:FOLDER",
    "cosyvoice3:FOLDER",
)
ALPHABET = " !\"'(),-.:;?abcdefghijklmnopqrstuvwxyz"
_PLAIN = str.maketrans("’‘“”„«»‐‑–—[]{}。、", '\'\'"""""----()().,')
_SHARED = {"ð": "d", "þ": "th", "ŋ": "ng", "ə": "a", "ɡ": "g", "ĸ": "k"}  # letters of no other's shape
_MARK = re.compile(r"</?[a-z_]{1,20}>|<\|[a-z_]{1,20}\|>")  # of trained tokenizers
_log = logging.getLogger(__name__)


class FrontEnd(ABC):
    """Text to ids. `num_ids` is the rows that an embedding of them needs."""

    num_ids: int

    @abstractmethod
    def symbols(self, text: str) -> list[int]:
        """Ids of the text alone. Raises ConfigError for a text that holds what the front end does not know."""

    def sayable(self, text: str) -> str:
        """The text without what this front end cannot spell.

        A warning names letters, figures and signs that are left out; marks of punctuation go without a word. Raises
        ConfigError for a text of which nothing would be left.
        """
        return text

    def ids(self, text: str, prompt_text: str = "") -> list[int]:
        """Ids of the prompt's text and the text after it, between <bos> and <eos>.

        Raises ConfigError for a text without any symbol.
        """
        if not self.symbols(text):
            raise ConfigError(f"the text {text!r} has nothing to say: give at least one letter")
        return self.enclose(self.both(prompt_text, text))

    def both(self, prompt_text: str, text: str) -> list[int]:
        """Ids of a prompt's text, which may be empty, and of the text that goes on from it."""
        return self.symbols(self.join(prompt_text.strip(), text) if prompt_text.strip() else text)

    def join(self, prompt_text: str, text: str) -> str:
        """Both texts as one."""
        return f"{prompt_text} {text}"

    def enclose(self, symbols: list[int]) -> list[int]:
        """Symbols between their marks of begin and end."""
        return [BOS, *symbols, EOS]


class Bytes(FrontEnd):
    """UTF-8 bytes of the text as it is, with outer and repeated white space cut: 3 ... 258."""

    num_ids = FIRST + 256

    def symbols(self, text: str) -> list[int]:
        return [FIRST + byte for byte in " ".join(text.split()).encode()]


class Characters(FrontEnd):
    """Characters of an alphabet, in its order. What it lacks is tried in lower case, without its accent, and as the
    plain sign of a typographic one; numbers have to be words, as `vokens.text.normalise` makes them."""

    def __init__(self, alphabet: str = ALPHABET) -> None:
        if not alphabet.strip() or len(set(alphabet)) != len(alphabet):
            raise ConfigError(f"the alphabet {alphabet!r} was given: at least one letter, each sign once")
        self._id = {character: FIRST + place for place, character in enumerate(alphabet)}
        self.num_ids = FIRST + len(alphabet)

    def symbols(self, text: str) -> list[int]:
        found, unknown = [], set()
        for character in unicodedata.normalize("NFC", " ".join(text.split())):
            spelt = self._spelt(character)
            found += [self._id[sign] for sign in spelt or ""]
            unknown |= set() if spelt else {character}
        if unknown:
            raise ConfigError(
                f"{sorted(unknown)} in {text[:40]!r} are not in this front end's alphabet: write numbers as words "
                "(vokens.text.normalise), or take front_end='bytes', which knows every text"
            )
        return found

    def sayable(self, text: str) -> str:
        return keep_known(text, lambda character: self._spelt(character) is not None)

    def _spelt(self, character: str) -> str | None:
        """The character in signs of the alphabet; None where there are none."""
        plain = character.translate(_PLAIN)
        for form in (character, plain, plain.lower(), without_accents(plain.casefold())):
            if form and all(sign in self._id for sign in form):
                return form
        return None


def keep_known(text: str, known: Callable[[str], bool]) -> str:
    """The text with blanks for the characters that are not known."""
    text = unicodedata.normalize("NFC", _MARK.sub(" ", text))
    unknown = {c for c in set(text) if not c.isspace() and not known(c)}
    kept = "".join(" " if c in unknown else c for c in text)
    named = sorted(c for c in unknown if unicodedata.category(c)[0] in "LNS")
    signs = " ".join(named[:20]) + " …" * (len(named) > 20)
    if named and not any(c.isalnum() for c in kept):
        raise ConfigError(
            f"nothing of the text {text[:40]!r} can be said, for this model's front end does not know {signs}: give "
            "a text in the model's language and script, or a model with front_end='bytes'"
        )
    if named:
        _log.warning("vokens: warning: the model's front end does not know %s: left out of the text", signs)
    return re.sub(r" +", " ", kept)


@cache
def without_accents(character: str) -> str:
    """Letters of Latin scripts in a to z: "é" as "e", "ø" as "o", "æ" as "ae"."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", character) if not unicodedata.combining(c))
    if plain.isascii():
        return plain
    pattern = r"LATIN (?:SMALL|CAPITAL) (?:LETTER|LIGATURE) (?:DOTLESS |LONG )?([A-Z]{1,2})(?: WITH .*)?"
    names = (re.fullmatch(pattern, unicodedata.name(c, "")) for c in plain)
    return "".join(
        _SHARED.get(c, name[1].lower() if name else c) for c, name in zip(plain, names, strict=True)
    )


def check_name(name: str) -> None:
    """ConfigError unless a front end may have this name; opens no file."""
    kind, colon, detail = name.partition(":")
    detailed = {"characters": not colon or bool(detail), "bpe": bool(detail), "cosyvoice3": bool(detail)}
    if not detailed.get(kind, not colon and kind in NAMES):
        raise ConfigError(f"front_end={name!r} was given: {', '.join(NAMES)} are accepted")
