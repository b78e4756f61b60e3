"""Text processing for speech: normalisation, sentence splitting, and front ends (text to ids)."""

from collections.abc import Callable
from functools import cache

from vokens.text.bpe import CosyVoice3, Pieces
from vokens.text.front_end import Bytes, Characters, FrontEnd, check_name
from vokens.text.normalise import normalise
from vokens.text.phonemes import Espeak, Phonemes
from vokens.text.sentences import sentences

_KINDS: dict[str, Callable[..., FrontEnd]] = {
    **{"bytes": Bytes, "characters": Characters, "phonemes": Phonemes, "espeak": Espeak},
    **{"bpe": Pieces, "cosyvoice3": CosyVoice3},
}


@cache
def front_end(name: str) -> FrontEnd:
    """The front end of this name, one of `NAMES`: "characters:abc" has that alphabet, "bpe:FOLDER" is a trained
    tokenizer, "cosyvoice3:FOLDER" one with CosyVoice 3's marks and system prompt.

    Raises ConfigError for other names, and MissingExtra where a tokenizer needs the package "tokenizers".
    """
    check_name(name)
    kind, _, detail = name.partition(":")
    kind_of = _KINDS[kind]
    return kind_of(detail) if detail else kind_of()


__all__ = ["FrontEnd", "front_end", "normalise", "sentences"]
