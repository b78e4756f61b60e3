"""BPE tokens of a trained tokenizer: a tokenizer.json, or the vocab.json and merges.txt of Qwen2 as CosyVoice 2
ships them (CosyVoice-BlankEN), with its marks for breath, laughter and the like, and with CosyVoice 3's.

No <bos>, no <eos>; of the text, only white space is cleaned.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vokens.errors import ConfigError, needs_extra
from vokens.text.front_end import FrontEnd

# Ids after the vocabulary, in this order: Qwen2's three, then CosyVoice 2's.
_MARKS = (
    "<|endoftext|> <|im_start|> <|im_end|> <|endofprompt|> [breath] <strong> </strong> [noise] [laughter] [cough] "
    "[clucking] [accent] [quick_breath] <laughter> </laughter> [hissing] [sigh] [vocalized-noise] [lipsmack] [mn]"
)
MARKS = _MARKS.split()
# Then CosyVoice 3's: ARPAbet phonemes, and pinyin initials and finals with tones, which a text may contain instead of
# a word that would be mispronounced.
_VOWELS = "AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW"
_CONSONANTS = "B CH D DH F G HH JH K L M N NG P R S SH T TH V W Y Z ZH"
_PINYIN = """a ai an ang ao b c ch d e ei en eng f g h i ian in ing iu ià iàn iàng iào iá ián iáng iáo iè ié
iòng ióng iù iú iā iān iāng iāo iē iě iōng iū iǎ iǎn iǎng iǎo iǒng iǔ j k l m n o ong ou p q r s sh t u uang
ue un uo uà uài uàn uàng uá uái uán uáng uè ué uì uí uò uó uā uāi uān uāng uē uě uī uō uǎ uǎi uǎn uǎng uǐ uǒ
vè w x y z zh à ài àn àng ào á ái án áng áo è èi èn èng èr é éi én éng ér ì ìn ìng í ín íng ò òng òu ó óng óu
ù ùn ú ún ā āi ān āng āo ē ēi ēn ēng ě ěi ěn ěng ěr ī īn īng ō ōng ōu ū ūn ǎ ǎi ǎn ǎng ǎo ǐ ǐn ǐng ǒ ǒng ǒu ǔ
ǔn ǘ ǚ ǜ"""
_ARPABET = sorted([*_CONSONANTS.split(), *(v + stress for v in _VOWELS.split() for stress in ("", *"012"))])
MARKS_3 = [*MARKS, "<|endofsystem|>", *(f"[{sound}]" for sound in (*_ARPABET, *_PINYIN.split()))]
_INSTRUCTED = "<|endofprompt|>"  # ends CosyVoice 3's style instruction
OPENING = f"You are a helpful assistant.{_INSTRUCTED}"
# Qwen2's pre-tokenization: contractions, words with one sign before them, single digits, signs, white space.
_CUT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


class Pieces(FrontEnd):
    """Ids of a tokenizer's folder. A Qwen2 one knows CosyVoice 2's marks: "Well [breath] <strong>no</strong>"."""

    marks: Sequence[str] = MARKS

    def __init__(self, folder: str | Path) -> None:
        self._tokenizer = _open(Path(folder).expanduser(), self.marks)
        self.num_ids = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())

    def symbols(self, text: str) -> list[int]:
        return self._tokenizer.encode(" ".join(text.split()), add_special_tokens=False).ids

    def both(self, prompt_text: str, text: str) -> list[int]:
        """The ids of each text, tokenized separately as published."""
        return self.symbols(prompt_text) + self.symbols(text)

    def enclose(self, symbols: list[int]) -> list[int]:
        return symbols


class CosyVoice3(Pieces):
    """Pieces with CosyVoice 3's marks. Texts without an instruction get the default one, as in its training."""

    marks = MARKS_3

    def both(self, prompt_text: str, text: str) -> list[int]:
        opening = "" if _INSTRUCTED in prompt_text + text else OPENING
        return super().both(opening + prompt_text.strip(), text)


def _open(folder: Path, marks: Sequence[str]) -> Any:
    """The tokenizer of a folder. Raises ConfigError where there is none, MissingExtra without the package."""
    with needs_extra("tokenizers", "hf", "tokenizing text"):
        from tokenizers import Tokenizer
    whole = folder / "tokenizer.json"
    parts = folder / "vocab.json", folder / "merges.txt"
    if not whole.is_file() and not all(part.is_file() for part in parts):
        raise ConfigError(
            f"front_end='bpe:{folder}': give a folder with a tokenizer.json, or with vocab.json and merges.txt"
        )
    try:
        tokenizer = Tokenizer.from_file(str(whole)) if whole.is_file() else _qwen2(*parts)
    except Exception as error:  # the package raises plain Exception for what it cannot read
        raise ConfigError(f"the tokenizer in {folder} cannot be read: {error}") from error
    if not whole.is_file() or tokenizer.token_to_id(MARKS[1]) is not None:
        tokenizer.add_special_tokens(list(marks))
    return tokenizer


def _qwen2(vocabulary: Path, merges: Path) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.BPE.from_file(str(vocabulary), str(merges)))
    tokenizer.normalizer = normalizers.NFC()
    bytes_of_pieces = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    cut = pre_tokenizers.Split(Regex(_CUT), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, bytes_of_pieces])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
