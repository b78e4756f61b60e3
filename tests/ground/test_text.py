"""Text before it is spoken: what is written in figures is said in words, words stay, sentences lose nothing."""

import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vokens.text import english_words as W
from vokens.text import normalise, sentences
from vokens.text.normalise import clean, plain
from vokens.text.numbers import LARGEST, SCALES, SMALL, TENS, cardinal, number, ordinal, year
from vokens.text.sentences import LEAST, MOST, SHORT, speaks, units


def value(words: str) -> int:
    """The number of its words: the other way round, written on its own."""
    total = group = 0
    for word in words.split():
        if word in SCALES:
            total, group = total + group * 1000 ** SCALES.index(word), 0
        elif word == "hundred":
            group *= 100
        else:
            group += SMALL.index(word) if word in SMALL else 10 * TENS.index(word)
    return total + group


@given(st.integers(0, LARGEST - 1))
def test_cardinals_can_be_read_back(given_number):
    assert value(cardinal(given_number)) == given_number
    assert cardinal(-1 - given_number).removeprefix("minus ") == cardinal(1 + given_number)


@given(st.integers(0, 10**9))
def test_figures_with_commas_are_the_same_number(given_number):
    assert number(f"{given_number:,}") == cardinal(given_number)
    assert normalise(f"There are {given_number:,} of them.") == f"There are {cardinal(given_number)} of them."
    assert normalise(f"{given_number:,}.25") == f"{cardinal(given_number)} point two five"


def test_ordinals_and_years():
    said = ", ".join(map(ordinal, (1, 2, 12, 20, 43, 100)))
    assert said == "first, second, twelfth, twentieth, forty third, one hundredth"
    said = ", ".join(map(year, (1066, 1900, 1905, 1999)))
    assert said == "ten sixty six, nineteen hundred, nineteen oh five, nineteen ninety nine"
    said = ", ".join(map(year, (2000, 2007, 2024)))
    assert said == "two thousand, two thousand seven, twenty twenty four"


CASES = [
    tuple(line.replace("\\n", "\n").split("\t"))
    for line in (Path(__file__).parent / "text_cases.tsv").read_text(encoding="utf-8").splitlines()
    if "\t" in line
]


@pytest.mark.parametrize(("written", "said"), CASES)
def test_written_text_is_normalised(written, said):
    assert normalise(written) == said
    assert normalise(said) == said


SHORTENED = {short.lower() for table in (W.SHORT, W.TITLES, W.COUNTED) for short in table}  # as "dr" is
_WORDS = ["well-known", "isn't", "no", "may", "am"]
WORD = st.text("aeioudnrst", min_size=1, max_size=12) | st.sampled_from(_WORDS)
SENTENCE = st.tuples(
    st.lists(WORD.filter(lambda word: word not in SHORTENED), min_size=1, max_size=9),
    st.sampled_from([".", "!", "?", ";", ",", "..."]),
).map(lambda parts: " ".join(parts[0]).capitalize() + parts[1])
WRITTEN = st.one_of(
    st.sampled_from([written for written, _ in CASES[:26]]),
    SENTENCE,
    st.text("abcZ19 ,.$%:/-'&\n", max_size=12),
)


@given(st.lists(SENTENCE, min_size=1, max_size=4).map(" ".join))
def test_plain_words_stay(text):
    assert normalise(text) == text


@given(st.one_of(st.text(max_size=60), st.lists(WRITTEN, max_size=4).map(" ".join)))
def test_no_figure_is_left_and_no_word_lost(text):
    said = normalise(text)
    assert not any(character.isdecimal() for character in said)
    if not re.search("[<`&:;]", text):  # tags, the fences of code, entities and faces go
        assert bool(re.search(r"[^\W\d_]", text)) <= bool(re.search(r"[^\W\d_]", said))
    assert clean(said) == said


@given(st.text(max_size=60))
def test_other_languages_are_cleaned_alone(text):
    said = normalise(text, "zh")
    assert said == plain(clean(text))
    assert clean(said) == said
    if not re.search("[<`&:;~$]", text):
        assert [c for c in said if c.isalnum()] == [c for c in clean(text) if c.isalnum()]


@pytest.mark.parametrize(
    ("language", "written", "said"),
    [
        ("de", "# **Gut** 😀, 3 `Äpfel` &amp; mehr", "Gut, 3 Äpfel & mehr"),
        ("zh", "**你好** 👋！", "你好 ！"),
        ("fr", "Cafe\u0301\u00a0 au\u200b lait\u00ad \t2", "Caf\u00e9 au lait 2"),
        ("en", "one \n\n\n two", "one\ntwo"),
        ("en-GB", "3/5/2024", "May third, twenty twenty four"),  # days first
    ],
)
def test_other_languages_lose_what_is_silent_alone(language, written, said):
    assert normalise(written, language) == said


@given(st.one_of(st.text(max_size=40), st.lists(SENTENCE, max_size=6).map(" ".join)))
def test_nothing_is_lost(text):
    pieces = sentences(text)
    assert "".join(pieces) == (text if speaks(text) else "")
    assert all(speaks(piece) for piece in pieces)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=6), st.integers(8, 100))
def test_pieces_have_their_size(words, most):
    text = "".join("A" + " word," * count + " end. " for count in words)
    pieces = sentences(text, most, most // 2, most // 4)
    assert all(units(piece) <= most + 2 * (most // 4) for piece in pieces)
    assert all(units(piece) >= most // 4 for piece in pieces[1:])


def test_a_short_text_is_one_piece():
    assert sentences("Hello there. How are you?") == ["Hello there. How are you?"]


def test_sentences_are_gathered_and_stay_whole():
    text = "The quick brown fox jumps over the lazy dog. " * 30
    pieces = sentences(text)
    assert all(piece.endswith("dog. ") and LEAST <= units(piece) <= MOST for piece in pieces[:-1])
    assert all(units(piece) <= MOST + SHORT for piece in pieces)


def borders(text: str) -> list[str]:
    """The text cut at every sentence."""
    return [piece.strip() for piece in sentences(text, 1000, 1, 1)]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("Dr. Smith met J. R. Tolkien on Jan. 5. They talked.", 2),
        ("It was 3.5 metres... and more! Really?", 2),
        ('"Really?" he said. "Yes!" She left.', 3),
        ("今天天气很好。我们去公园吧！“好。”你说呢？", 4),
        ("यह अच्छा है। हाँ।", 2),
        ("Title\n\nThe text begins", 2),
        ("See e.g. Paris. No. I did.", 3),
    ],
)
def test_where_sentences_end(text, count):
    assert len(borders(text)) == count


def test_long_sentences_are_cut_at_commas_then_words_then_anywhere():
    clauses = sentences("and the fox runs along the river, " * 20)
    assert all(piece.endswith("river, ") for piece in clauses)
    words = sentences("word " * 300)
    assert all(piece.endswith("word ") for piece in words)
    assert max(map(units, sentences("字" * 300))) <= MOST + SHORT


_RUNS = (  # apart by two blanks
    "1  ,  .  a  A  $  €  %  -  _  *  #  `  ~  |  /  <  [  (  &  '  !  …  —  字  😀  ²  ½  α  \u0301\u0316  ٣  。  1.  "
    "1,  1.1  1-  1:  1/  1'  $1  1a  1 -  1,000  ,000  12:34  a.  a-  a@  a.a@  www.  http://  a.com/  [a](  [a]((  "
    "<a  <a=  St.  e.g.  X  $a  w/  he/she  ^  ^{2"
)
RUNS = [*_RUNS.split("  "), " ", "\n", "1 ", "a ", "1 000 ", "5 km ", "1 Aa ", "| a "]


def seconds(work, text: str) -> float:
    """The processor's time of the faster of two runs."""
    taken = []
    for _ in range(2):
        start = time.process_time()
        work(text)
        taken.append(time.process_time() - start)
    return min(taken)


@pytest.mark.parametrize("work", [normalise, sentences])
@pytest.mark.parametrize("run", RUNS)
def test_time_is_linear_in_a_text_of_any_kind(run, work):
    short, long = ((run * length)[:length] for length in (500, 10_000))
    # 20 times as long; quadratic is 400 times
    assert seconds(work, long) < 5 * 20 * seconds(work, short) + 0.1


def test_digits_beyond_the_largest_word_are_read_one_by_one():
    figures = "1" * 100_000
    start = time.process_time()
    assert normalise(figures) == " ".join(["one"] * 100_000)
    assert time.process_time() - start < 20
    assert number(f"0.{figures[:5000]}") == " ".join(["zero point"] + ["one"] * 5000)
    assert normalise(f"1{',000' * 3000} 0.{figures[:5000]}").startswith("one zero zero zero")
