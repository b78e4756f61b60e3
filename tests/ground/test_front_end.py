"""Front ends: the released phonemes, bytes and characters of every text, Qwen2's pieces as transformers cuts them."""

import json
import re
import sys
import unicodedata
from pathlib import Path

import pytest
from conftest import refused
from hypothesis import given
from hypothesis import strategies as st

from vokens.errors import ConfigError, MissingExtra
from vokens.text import front_end, normalise, phonemes
from vokens.text.front_end import ALPHABET, BOS, EOS, FIRST, check_name

TEXT = json.loads((Path(__file__).parents[1] / "golden/uslm/text.json").read_text())


def test_the_released_symbols():
    symbols = {symbol: FIRST + place for place, symbol in enumerate(phonemes.SYMBOLS)}
    assert {"<pad>": 0, "<bos>": 1, "<eos>": 2} | symbols == TEXT["id_of"]


@pytest.mark.parametrize(
    "case", TEXT["text_cases"] + TEXT["postprocess_cases"], ids=lambda case: case["phonemized"]
)
def test_phonemes_match(case):
    end = front_end("phonemes")
    assert phonemes.split(case["phonemized"]) == case["symbols"]
    if case["ids"] is not None:
        assert end.ids(case["phonemized"]) == case["ids"]
    else:
        refused(ConfigError, re.escape(repr(case["unknown"])), end.ids, case["phonemized"])


def test_espeak_says_what_the_published_front_end_says():
    pytest.importorskip("phonemizer")
    pytest.importorskip("espeakng_loader")
    for case in TEXT["text_cases"]:
        assert phonemes.phonemise(case["text"]) == case["phonemized"]
        assert front_end("espeak").ids(case["text"]) == case["ids"]
    end = front_end("espeak")
    strange = (
        "Hello 你好, naïve Łódź",
        "α → ∞, 100% of [x] and {y}",
        "Привет, «so» ¿no? 5℃ 😀",
        "a`b|c*d\\e ø",
    )
    assert all(end.symbols(end.sayable(normalise(text))) for text in strange)


def test_espeak_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "phonemizer.backend", None)
    phonemes._espeak.cache_clear()
    refused(MissingExtra, "phonemizer", lambda: front_end("espeak").ids("hello"))


def test_bytes_are_every_text():
    ends = front_end("bytes")
    assert ends.ids("  ab  c ") == [1, 3 + 97, 3 + 98, 3 + 32, 3 + 99, 2]
    assert ends.ids("é", "a") == [1, 3 + 97, 3 + 32, 3 + 0xC3, 3 + 0xA9, 2]
    said = [FIRST + phonemes.SYMBOLS.index(symbol) for symbol in ("h", "aɪ", "_", "eɪ")]
    assert front_end("phonemes").ids("eɪ", "h|aɪ") == [BOS, *said, EOS]


@given(st.text(st.characters(codec="utf-8")))
def test_bytes_lose_nothing_but_white_space(text):
    symbols = front_end("bytes").symbols(text)
    assert bytes(symbol - FIRST for symbol in symbols).decode() == " ".join(text.split())
    assert all(FIRST <= symbol < front_end("bytes").num_ids for symbol in symbols)


@given(st.text(ALPHABET))
def test_characters_lose_nothing_of_their_alphabet(text):
    symbols = front_end("characters").symbols(text)
    assert "".join(ALPHABET[symbol - FIRST] for symbol in symbols) == " ".join(text.split())
    assert all(FIRST <= symbol < front_end("characters").num_ids for symbol in symbols)


def test_characters_are_folded_into_the_alphabet_or_named():
    end = front_end("characters")
    assert end.symbols("“Café”—Ça…") == end.symbols('"cafe"-ca...')
    refused(ConfigError, "'4'", end.symbols, "4 mice")
    own = front_end("characters: abcé")
    assert own.num_ids == FIRST + 5
    assert own.symbols("É ba") == [FIRST + place for place in (4, 0, 2, 1)]


def test_every_character_of_unicode_can_be_said_once_normalised():
    end = front_end("characters")
    every = (chr(code) for code in range(sys.maxunicode + 1))
    assigned = [c for c in every if unicodedata.category(c) not in ("Cn", "Co")]
    large = re.compile("CJK|HANGUL|YI |EGYPT|TANGUT|CUNEI|KHITAN|NUSHU|ANATOL|BAMUM|^$")
    some = [c for c in assigned if not large.match(unicodedata.name(c, ""))]
    some += assigned[::1000]  # a thousandth of these
    for start in range(0, len(some), 100):
        said = end.sayable(normalise("so " + "a ".join(some[start : start + 100]) + " it is"))
        assert end.symbols(said)
        assert end.sayable(said) == said


@given(st.text(max_size=30))
def test_any_text_is_encoded_or_named(text):
    end = front_end("characters")
    try:
        said = end.sayable(normalise(text))
    except ConfigError:
        assert not any(character.isascii() and character.isalnum() for character in normalise(text))
    else:
        end.symbols(said)


def test_what_is_left_out_is_named(caplog):
    end = front_end("characters")
    assert end.sayable("Hello 你好, (ok) [x] ¿so?") == "Hello , (ok) [x] so?"
    assert "does not know 你 好: left out" in caplog.text
    caplog.clear()
    assert end.symbols(end.sayable("Straße, Łódź, Ærø, þing")) == end.symbols("strasse, lodz, aero, thing")
    assert end.sayable("<strong>no</strong>") == " no "
    assert not caplog.text
    refused(ConfigError, r"the text '你好' cannot be spoken.*你 好", end.sayable, "你好")


@pytest.mark.parametrize("name", ["bytes", "characters", "phonemes"])
def test_a_text_without_symbols_is_refused(name):
    refused(ConfigError, "no symbols to speak", lambda: front_end(name).ids("  ", "a"))


@pytest.mark.parametrize("name", ["", "klingon", "bytes:3", "characters:", "bpe", "bpe:", "espeak:de"])
def test_other_names_are_refused(name):
    refused(ConfigError, "characters:ALPHABET", check_name, name)


MARKED = "Well [breath] <strong>no</strong>, it's 2024![laughter]"
SAYINGS = ["I'll say it's  fine.", "Où est-il ? 12 345", "今天天气很好。 hello", MARKED, " the the then"]


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory):
    """A folder as CosyVoice-BlankEN is, with a small vocabulary: vocab.json and merges.txt."""
    pytest.importorskip("tokenizers")
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trained.train_from_iterator(SAYINGS, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
    folder = tmp_path_factory.mktemp("qwen2")
    trained.model.save(str(folder))
    return folder


def test_pieces_are_those_of_transformers(qwen2):
    transformers = pytest.importorskip("transformers")
    from vokens.text.bpe import MARKS

    peer = transformers.Qwen2Tokenizer.from_pretrained(qwen2)
    peer.add_special_tokens({"additional_special_tokens": MARKS[1:]})
    end = front_end(f"bpe:{qwen2}")
    assert end.num_ids == 300 + len(MARKS)
    for text in SAYINGS:
        assert end.ids(text) == peer(" ".join(text.split()))["input_ids"]
    assert end.ids(SAYINGS[0], SAYINGS[1]) == end.ids(SAYINGS[1]) + end.ids(SAYINGS[0])
    assert end.symbols("[breath]") == [300 + MARKS.index("[breath]")]


def test_cosyvoice3_has_280_marks_and_opening_words(qwen2):
    from vokens.text.bpe import MARKS, MARKS_3, OPENING

    assert MARKS_3[: len(MARKS) + 2] == [*MARKS, "<|endofsystem|>", "[AA]"]
    assert len(MARKS_3) == 281 == len(set(MARKS_3))  # with Qwen2's <|endoftext|>: Qwen2 has room for 293
    end, plain = front_end(f"cosyvoice3:{qwen2}"), front_end(f"bpe:{qwen2}")
    assert end.num_ids == 300 + 281
    assert end.symbols("[ZH][a][ǜ]") == [300 + MARKS_3.index(mark) for mark in ("[ZH]", "[a]", "[ǜ]")]
    opening = end.symbols(OPENING)
    assert opening[-1] == 300 + MARKS.index("<|endofprompt|>")
    assert end.both("", "hello") == opening + plain.symbols("hello")
    assert end.both("it's fine.", "hello") == opening + plain.symbols("it's fine.") + plain.symbols("hello")
    marked = "A [T][AH0][M][EY1][T][OW2] <strong>now</strong>."
    assert normalise(marked) == marked
    instructed = "Say it fast.<|endofprompt|>it's fine."
    assert end.both(instructed, "hello") == end.symbols(instructed) + end.symbols("hello")


def test_a_tokenizer_json_is_taken_as_it_is(qwen2, tmp_path):
    from tokenizers import Tokenizer, models

    end = front_end(f"bpe:{qwen2}")
    trained = models.BPE.from_file(str(qwen2 / "vocab.json"), str(qwen2 / "merges.txt"))
    Tokenizer(trained).save(str(tmp_path / "tokenizer.json"))
    plain = front_end(f"bpe:{tmp_path}")
    assert (plain.num_ids, end.num_ids - plain.num_ids) == (300, 20)
    assert plain.symbols("then") == end.symbols("then")


def test_folders_that_hold_no_tokenizer_are_named(tmp_path):
    pytest.importorskip("tokenizers")
    refused(ConfigError, re.escape("tokenizer.json"), front_end, f"bpe:{tmp_path}")
    (tmp_path / "tokenizer.json").write_text("{}")
    refused(ConfigError, "cannot be read", front_end, f"bpe:{tmp_path}")


def test_the_package_is_optional(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    refused(MissingExtra, "tokenizers", front_end, f"bpe:{tmp_path}")
