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

# Numbers


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


@pytest.mark.parametrize(
    ("figure", "words"),
    [
        (1, "first"),
        (2, "second"),
        (12, "twelfth"),
        (20, "twentieth"),
        (43, "forty third"),
        (100, "one hundredth"),
    ],
)
def test_ordinals(figure, words):
    assert ordinal(figure) == words


@pytest.mark.parametrize(
    ("figure", "words"),
    [
        (1066, "ten sixty six"),
        (1900, "nineteen hundred"),
        (1905, "nineteen oh five"),
        (1999, "nineteen ninety nine"),
        (2000, "two thousand"),
        (2007, "two thousand seven"),
        (2024, "twenty twenty four"),
    ],
)
def test_years(figure, words):
    assert year(figure) == words


# Normalisation

SAID = {
    "It costs $5, $1.50, $0.99, $1 and -£3.2 million.": "It costs five dollars, one dollar and fifty cents, ninety "
    "nine cents, one dollar and minus three point two million pounds.",
    "US$20, $5k, 5 € and ¥500": "twenty U S dollars, five thousand dollars, five euros and five hundred yen",
    "At 10:30, 10:05 p.m., 10:00, 5pm and 14:00.": "At ten thirty, ten oh five p m, ten o'clock, five p m and "
    "fourteen hundred.",
    "Come at 5 p.m. We wait.": "Come at five p m. We wait.",
    "9:00-17:00": "nine o'clock to seventeen hundred",
    "March 5, 2024": "March fifth, twenty twenty four",
    "Mar. 5th and 5 March 2024": "March fifth and the fifth of March twenty twenty four",
    "the 5th of May": "the fifth of May",
    "2024-03-05, 3/5/2024, 13/5/99": "March fifth, twenty twenty four, March fifth, twenty twenty four, May "
    "thirteenth, nineteen ninety nine",
    "May 2020, March 5-7": "May twenty twenty, March fifth to seventh",
    "Since 1999, the 1980s and the '90s, 1990-2000, (1984).": "Since nineteen ninety nine, the nineteen eighties and "
    "the nineties, nineteen ninety to two thousand, (nineteen eighty four).",
    "1905 people": "one thousand nine hundred five people",
    "The 1st, 11th and 1,000th": "The first, eleventh and one thousandth",
    "50% of 5 km, 1 kg, 5.5 m": "fifty percent of five kilometers, one kilogram, five point five meters",
    "20 °C, 60 mph, 5 min. later, 100 m²": "twenty degrees Celsius, sixty miles per hour, five minutes later, one "
    "hundred square meters",
    "1/2, 3/4, 2 1/2, ½, 2½, 24/7": "one half, three quarters, two and one half, one half, two and one half, twenty "
    "four seven",
    "Call 555-1234.": "Call five five five, one two three four.",
    "3.14 .5 -5 007 1.2.3": "three point one four point five minus five zero zero seven one point two point three",
    "MP3, 5G, 747s and a 10-year-old": "MP three, five G, seven hundred forty sevens and a ten-year-old",
    "10-20, 16:9, 3x4": "ten to twenty, sixteen to nine, three by four",
    "Mr. Smith and Dr Jones of St. Paul": "Mister Smith and Doctor Jones of Saint Paul",
    "12 Main St. Then e.g. this etc.": "twelve Main Street. Then for example this et cetera.",
    "The U.S. economy; a Ph.D. in the U.S.A.": "The U S economy; a P h D in the U S A.",
    "AT&T, C++, #5, 2+2=4": "AT and T, C plus plus, number five, two plus two equals four",
    "me@example.com and https://www.example.com/a": "me at example dot com and w w w dot example dot com slash a",
    "No. 5, pp. 3-5. No. I said no.": "Number five, pages three to five. No. I said no.",
}


CASES = [
    tuple(line.replace("\\n", "\n").split("\t"))
    for line in (Path(__file__).parent / "text_cases.tsv").read_text(encoding="utf-8").splitlines()
    if "\t" in line
]


@pytest.mark.parametrize(("written", "said"), [*SAID.items(), *CASES])
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
WRITTEN = st.one_of(st.sampled_from([*SAID]), SENTENCE, st.text("abcZ19 ,.$%:/-'&\n", max_size=12))


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


def test_other_languages_lose_pictures_and_markup_alone():
    assert normalise("# **Gut** 😀, 3 `Äpfel` &amp; mehr", "de") == "Gut, 3 Äpfel & mehr"
    assert normalise("**你好** 👋！", "zh") == "你好 ！"


def test_cleaning_composes_and_drops_what_is_silent():
    assert normalise("Cafe\u0301\u00a0 au\u200b lait\u00ad \t2", "fr") == "Caf\u00e9 au lait 2"
    assert normalise("one \n\n\n two") == "one\ntwo"


def test_the_british_say_days_first():
    assert normalise("3/5/2024", "en-GB") == "May third, twenty twenty four"


# Sentences


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


# Time

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
