"""Phonemes as symbols: the released table of USLM (SpeechTokenizer, arXiv 2308.16692), US English of espeak-ng.

90 symbols, ids from 3 in code point order. Input is phonemes, or text where espeak-ng is installed.
"""

import re
from contextlib import suppress
from functools import cache
from importlib import import_module
from typing import Any

from vokens.errors import ConfigError, needs_extra
from vokens.text.front_end import ALPHABET, FIRST, FrontEnd, keep_known, without_accents

WORD = "_"  # between words, in the string and as a symbol

# unique_text_tokens.k2symbols of the released model: US English of espeak-ng, some units of two or three signs.
_RELEASED = (
    '<eps> ! " ( ) , . : ; ? _ aɪ aɪə aɪɚ aɪʊ aɪʊɹ aʊ b d dʒ e enus es eɪ f fr h i iə iː j k l m n nʲ oʊ oː oːɹ '
    "p r s t tʃ uː v w x z æ ç ð ø ŋ ɐ ɑ ɑː ɑːɹ ɔ ɔɪ ɔː ɔːɹ ə əl ɚ ɛ ɛɹ ɛː ɜː ɡ ɡʲ ɣ ɪ ɪɹ ɫ ɬ ɲ ɹ ɾ ʃ ʊ ʊɹ ʌ ʒ "
    "ʔ \u0303 \u0329 θ ᵻ —"
)
SYMBOLS = sorted(_RELEASED.split())
_ID = {symbol: FIRST + place for place, symbol in enumerate(SYMBOLS)}


class Phonemes(FrontEnd):
    """Phonemes as input, "h|ə|l|oʊ,_w|ɜː|l|d!": | between phonemes, _ between words."""

    num_ids = FIRST + len(SYMBOLS)

    def symbols(self, text: str) -> list[int]:
        phonemes = split(text)
        unknown = sorted({symbol for symbol in phonemes if symbol not in _ID})
        if unknown:
            raise ConfigError(
                f"{unknown} in {text!r} are not among the {len(SYMBOLS)} phonemes of USLM (vokens.text.phonemes."
                "SYMBOLS): respell the word, or correct its phonemes and use front_end='phonemes'"
            )
        return [_ID[symbol] for symbol in phonemes]

    def join(self, prompt_text: str, text: str) -> str:
        return f"{prompt_text}{WORD}{text.strip()}"


class Espeak(Phonemes):
    """Text in US English through phonemizer and espeak-ng, which users install themselves: both are under the GPL."""

    def symbols(self, text: str) -> list[int]:
        return super().symbols(phonemise(text))

    def sayable(self, text: str) -> str:
        text = text.translate(str.maketrans("[]{}", "()()"))
        return keep_known(text, lambda c: c in ALPHABET or without_accents(c.casefold()).isascii())

    join = FrontEnd.join


def split(phonemes: str) -> list[str]:
    """Symbols of a string such as "h|ə|l|oʊ,_w|ɜː|l|d!", words apart by _; each mark of punctuation is one."""
    symbols: list[str] = []
    for word in phonemes.strip().split(WORD):
        symbols += [*re.findall(r"\w+|[^\w\s|]", word), WORD]
    return symbols[:-1]


def phonemise(text: str) -> str:
    """Phonemes of a text by espeak-ng, "h|ə|l|oʊ,_w|ɜː|l|d!".

    Language switch marks, "(en)", are dropped: the released table lacks those of today's espeak-ng. Raises
    MissingExtra without phonemizer, and ConfigError where espeak-ng is missing.
    """
    backend, separator = _espeak()
    return backend.phonemize([text.strip()], separator=separator, strip=True, njobs=1)[0]


@cache
def _espeak() -> tuple[Any, Any]:
    with needs_extra("phonemizer", "espeak", "turning text into phonemes"):
        names = ("phonemizer.backend", "phonemizer.backend.espeak.wrapper", "phonemizer.separator")
        backends, wrapper, separators = (import_module(name) for name in names)
    with suppress(ImportError):  # espeak-ng as a wheel, where there is one, else the system's
        wheel = import_module("espeakng_loader")
        wrapper.EspeakWrapper.set_library(wheel.get_library_path())
        wrapper.EspeakWrapper.set_data_path(wheel.get_data_path())
    try:
        options = {"preserve_punctuation": True, "with_stress": False, "tie": False}
        options |= {"language_switch": "remove-flags", "words_mismatch": "ignore"}
        backend = backends.EspeakBackend("en-us", **options)
    except RuntimeError as error:
        raise ConfigError(f"{error}: install espeak-ng, or `pip install espeakng-loader`") from error
    return backend, separators.Separator(word=WORD, syllable="-", phone="|")
