"""Front ends: text to ids by UTF-8 bytes, characters, phonemes or a trained BPE tokenizer.

Language models name their front end in their config. Ids 0 to 2 are padding, <bos> and <eos>, and symbols follow,
except in a trained tokenizer, which has its own.
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
_SHARED = {"ð": "d", "þ": "th", "ŋ": "ng", "ə": "a", "ɡ": "g", "ĸ": "k"}  # letters without a decomposition
_MARK = re.compile(r"</?[a-z_]{1,20}>|<\|[a-z_]{1,20}\|>")  # of trained tokenizers
_log = logging.getLogger(__name__)


class FrontEnd(ABC):
    """Text to ids; `num_ids` is the size of the embedding table."""

    num_ids: int

    @abstractmethod
    def symbols(self, text: str) -> list[int]:
        """Ids of the text alone. Raises ConfigError for unknown symbols."""

    def sayable(self, text: str) -> str:
        """The text without characters that this front end does not know.

        A warning names dropped letters, digits and signs; punctuation is dropped silently. Raises ConfigError where
        nothing would be left.
        """
        return text

    def ids(self, text: str, prompt_text: str = "") -> list[int]:
        """Ids of the prompt's text and then the text, between <bos> and <eos>.

        Raises ConfigError for a text without any symbol.
        """
        if not self.symbols(text):
            raise ConfigError(f"the text {text!r} has no symbols to speak: give at least one letter")
        return self.enclose(self.both(prompt_text, text))

    def both(self, prompt_text: str, text: str) -> list[int]:
        """Ids of a prompt's text, which may be empty, and of the text that continues it."""
        return self.symbols(self.join(prompt_text.strip(), text) if prompt_text.strip() else text)

    def join(self, prompt_text: str, text: str) -> str:
        """Both texts as one."""
        return f"{prompt_text} {text}"

    def enclose(self, symbols: list[int]) -> list[int]:
        """Symbols between <bos> and <eos>, where the front end has them."""
        return [BOS, *symbols, EOS]


class Bytes(FrontEnd):
    """UTF-8 bytes of the text as it is, stripped and with single blanks: 3 ... 258."""

    num_ids = FIRST + 256

    def symbols(self, text: str) -> list[int]:
        return [FIRST + byte for byte in " ".join(text.split()).encode()]


class Characters(FrontEnd):
    """Characters of an alphabet, in its order. Others are tried in lower case, without their accent, and as the
    plain form of a typographic sign; numbers must be words, as `vokens.text.normalise` writes them."""

    def __init__(self, alphabet: str = ALPHABET) -> None:
        if not alphabet.strip() or len(set(alphabet)) != len(alphabet):
            raise ConfigError(f"the alphabet {alphabet!r} was given: give one or more letters, each once")
        self._id = {character: FIRST + place for place, character in enumerate(alphabet)}
        self.num_ids = FIRST + len(alphabet)

    def symbols(self, text: str) -> list[int]:
        ids, unknown = [], set()
        for character in unicodedata.normalize("NFC", " ".join(text.split())):
            spelt = self._spelt(character)
            ids += [self._id[sign] for sign in spelt or ""]
            unknown |= set() if spelt else {character}
        if unknown:
            raise ConfigError(
                f"{sorted(unknown)} in {text[:40]!r} are not in this front end's alphabet: write numbers as words "
                "(vokens.text.normalise), or use front_end='bytes', which accepts every text"
            )
        return ids

    def sayable(self, text: str) -> str:
        return keep_known(text, lambda character: self._spelt(character) is not None)

    def _spelt(self, character: str) -> str | None:
        """The character as signs of the alphabet; None where that is impossible."""
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
            f"the text {text[:40]!r} cannot be spoken, since this model's front end does not know {signs}: give "
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
    """Raise ConfigError unless this is the name of a front end; opens no file."""
    kind, colon, detail = name.partition(":")
    detailed = {"characters": not colon or bool(detail), "bpe": bool(detail), "cosyvoice3": bool(detail)}
    if not detailed.get(kind, not colon and kind in NAMES):
        raise ConfigError(f"front_end={name!r} was given: {', '.join(NAMES)} are accepted")
