"""Pieces of a trained tokenizer: a tokenizer.json, or the vocab.json and merges.txt of Qwen2 as CosyVoice 2 ships them
(CosyVoice-BlankEN), with its marks for breath, laughter and the like.

No <bos>, no <eos>; of the text, only white space is cleaned.
"""

from pathlib import Path
from typing import Any

from vokens.errors import ConfigError, MissingExtra
from vokens.text.front_end import FrontEnd

# Ids behind the vocabulary, in this order: Qwen2's three, then CosyVoice 2's.
_MARKS = (
    "<|endoftext|> <|im_start|> <|im_end|> <|endofprompt|> [breath] <strong> </strong> [noise] [laughter] [cough] "
    "[clucking] [accent] [quick_breath] <laughter> </laughter> [hissing] [sigh] [vocalized-noise] [lipsmack] [mn]"
)
MARKS = _MARKS.split()
# Qwen2's cut before merging: contractions, words with one sign before them, single digits, signs, white space.
_CUT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


class Pieces(FrontEnd):
    """Ids of a tokenizer's folder. A Qwen2 one knows CosyVoice's marks: "Well [breath] <strong>no</strong>"."""

    def __init__(self, folder: str | Path) -> None:
        self._tokenizer = _open(Path(folder).expanduser())
        self.num_ids = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())

    def symbols(self, text: str) -> list[int]:
        return self._tokenizer.encode(" ".join(text.split()), add_special_tokens=False).ids

    def ids(self, text: str, prompt_text: str = "") -> list[int]:
        """Ids of the prompt's text, then those of the text: each is cut into pieces alone, as published."""
        before = self.symbols(prompt_text) if prompt_text.strip() else []
        return before + super().ids(text)

    def enclose(self, symbols: list[int]) -> list[int]:
        return symbols


def _open(folder: Path) -> Any:
    """The tokenizer of a folder. Raises ConfigError where there is none, MissingExtra without the package."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingExtra("tokenizers", "hf", "cutting text into pieces") from error
    whole = folder / "tokenizer.json"
    parts = folder / "vocab.json", folder / "merges.txt"
    if not whole.is_file() and not all(part.is_file() for part in parts):
        raise ConfigError(
            f"front_end='bpe:{folder}': a folder with a tokenizer.json, or with vocab.json and merges.txt, is accepted"
        )
    try:
        tokenizer = Tokenizer.from_file(str(whole)) if whole.is_file() else _qwen2(*parts)
    except Exception as error:  # the package raises plain Exception for what it cannot read
        raise ConfigError(f"the tokenizer in {folder} cannot be read: {error}") from error
    if not whole.is_file() or tokenizer.token_to_id(MARKS[1]) is not None:
        tokenizer.add_special_tokens(MARKS)
    return tokenizer


def _qwen2(vocabulary: Path, merges: Path) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.BPE.from_file(str(vocabulary), str(merges)))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_CUT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
