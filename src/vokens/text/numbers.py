"""Numbers as English words: cardinals, ordinals, decimals, years and digits one by one.

Words are separated by blanks, not hyphens, since front ends know few signs.
"""

_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
)
SMALL = _SMALL.split()
_TENS = "zero ten twenty thirty forty fifty sixty seventy eighty ninety"
TENS = _TENS.split()
SCALES = ("", "thousand", "million", "billion", "trillion", "quadrillion")
LARGEST = 1000 ** len(SCALES)  # larger numbers are read digit by digit
MOST_DIGITS = 3 * len(SCALES)
_ORDINALS = {"one": "first", "two": "second", "three": "third", "five": "fifth"}
_ORDINALS |= {"eight": "eighth", "nine": "ninth", "twelve": "twelfth"}


def cardinal(number: int) -> str:
    """1234 as "one thousand two hundred thirty four"."""
    if number < 0:
        return f"minus {cardinal(-number)}"
    if number >= LARGEST:
        return digits(str(number))
    if number < 20:
        return SMALL[number]
    if number < 100:
        return _and_rest(TENS[number // 10], number % 10)
    if number < 1000:
        return _and_rest(f"{SMALL[number // 100]} hundred", number % 100)
    power = (len(str(number)) - 1) // 3
    head, rest = divmod(number, 1000**power)
    return _and_rest(f"{cardinal(head)} {SCALES[power]}", rest)


def _and_rest(head: str, rest: int) -> str:
    return f"{head} {cardinal(rest)}" if rest else head


def ordinal(number: int) -> str:
    """21 as "twenty first"."""
    *before, last = cardinal(number).split()
    regular = f"{last[:-1]}ieth" if last.endswith("y") else f"{last}th"
    return " ".join([*before, _ORDINALS.get(last, regular)])


def year(number: int) -> str:
    """1066 as "ten sixty six", 1905 as "nineteen oh five", 2005 as "two thousand five"."""
    century, rest = divmod(number, 100)
    if not 10 <= century <= 99 or (century % 10 == 0 and rest < 10):
        return cardinal(number)
    if rest == 0:
        return f"{cardinal(century)} hundred"
    return f"{cardinal(century)} {'oh ' if rest < 10 else ''}{cardinal(rest)}"


def digits(text: str) -> str:
    """The digits of a text, one by one: "007" as "zero zero seven"."""
    return " ".join(SMALL[int(digit)] for digit in text if digit.isdecimal())


def number(text: str) -> str:
    """A number as it is written, "1,234.50" as "one thousand two hundred thirty four point five zero"."""
    whole, point, fraction = text.replace(",", "").partition(".")
    apart = (len(whole) > 1 and int(whole[0]) == 0) or len(whole) > MOST_DIGITS
    words = digits(whole) if apart else cardinal(int(whole)) if whole else ""
    return f"{words} point {digits(fraction)}".strip() if point else words


def plural(words: str) -> str:
    """The last word in the plural: "twenty", "twenties"; "sixth", "sixths"."""
    if words.endswith("y"):
        return f"{words[:-1]}ies"
    return f"{words}es" if words.endswith("x") else f"{words}s"
