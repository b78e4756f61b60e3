"""English text in words: rules pattern -> words, applied in order, the specific before the general.

Where a spelling has two readings ("St.", "5/6", "May 5"), the commoner one in prose is taken.

Each pattern takes linear time on any text: it begins only where its first run of characters does, by a guard such as
(?<!\\d), and runs that cannot end in another way are possessive (\\d++).
"""

import re
import unicodedata
from collections.abc import Callable, Iterable
from functools import cache, partial

import vokens.text.english_words as W
from vokens.text.numbers import MOST_DIGITS, cardinal, digits, number, ordinal, plural, year

Match = re.Match[str]
Words = str | Callable[[Match], str]

_EXPONENTS: dict[str, str] = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿⁱ", "0123456789+-ni", strict=True))
_SPECIAL = frozenset("…¼½¾™") | {chr(code) for code in range(0x2150, 0x215F)} | set(_EXPONENTS)
_PLAIN = str.maketrans(
    {**dict.fromkeys("’‘´′", "'"), **dict.fromkeys("“”„″", '"'), "…": "...", "−": "-", "⁄": "/"}
)
_PLAIN |= str.maketrans("‐‑‒―∙·", "--–—⋅⋅") | {ord("№"): "No."}

_START = r"(?<!\d)(?<!\d\.)"  # of a number: not within another
_NUMBER = r"(?:\d++(?:\.\d++)?|(?<![\w.])\.\d++)"
_END = r"(?![.,:/]?\d|\w)"  # of a number that stands alone
_MONTH = r"(?:(?:Jan|Febr?|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)\b\.?|" + "|".join(W.MONTHS) + r")"
_DAY = r"(?:3[01]|[12]\d|0?[1-9])"
_YEAR = r"(?:1\d|20)\d\d"
_ROMAN = r"(?=[IVXL])(?:XL|L?X{0,3})(?:IX|IV|V?I{0,3})(?!\w|'(?!s\b))"
_CONTEXT = (
    r"(?:Q[1-4]|in|since|from|until|till|by|before|after|during|of|year|around|circa|to|and|or|early|late|mid|spring|summer"
    r"|autumn|fall|winter|copyright|class of)"
)
_AM_PM = r"(?:\s?(?P<half>[apAP])(?:\.\s?[mM]\.|[mM]\b))"
_SENTENCE_ENDS = re.compile(r"\s*$|\s*\n|\s+[\"'(]?[A-Z]")


def spell(text: str, day_first: bool = False) -> str:
    """Clean English text as words. day_first: 3/5/2024 is in May."""
    text = _plain(text)
    for pattern, words in _rules(day_first):
        text = pattern.sub(words, text)
    return text


def _plain(text: str) -> str:
    """The text with one form of each character: straight quotes, ASCII digits and letters, exponents after ^."""
    text = re.sub(f"[{''.join(_EXPONENTS)}]+", lambda m: "^" + "".join(_EXPONENTS[c] for c in m[0]), text)
    return "".join(c if c < "\x7f" else _compatible(c) for c in text.translate(_PLAIN))


@cache
def _compatible(character: str) -> str:
    if character.isdecimal():
        return str(unicodedata.decimal(character))
    return character if character in _SPECIAL else unicodedata.normalize("NFKC", character)


# Addresses and abbreviations ------------------------------------------------------------------------------------


def _address(match: Match) -> str:
    """A web or mail address or a file name, with the names of its signs."""
    text = re.sub(r"^\w+://", "", match[0]).removesuffix("/")
    text = re.sub(r"^www\.", "w w w.", text)
    return re.sub(r"[\W_]", lambda sign: f" {W.IN_ADDRESSES.get(sign[0], '')} ", text)


def _like(words: str, written: str) -> str:
    """The words, capitalised where the original was."""
    return words[0].upper() + words[1:] if written[0].isupper() else words


def _short(match: Match) -> str:
    """The long form of group 1; its point is kept where a sentence seems to end."""
    after = " " if match.string[match.end() : match.end() + 1].isalnum() else ""
    return _like(W.SHORT[match[1].lower()], match[1]) + ("." * _sentence_ends(match) or after)


def _sentence_ends(match: Match) -> bool:
    return match[0].endswith(".") and _SENTENCE_ENDS.match(match.string, match.end()) is not None


def _initials(match: Match) -> str:
    """ "U.S.A." as "U S A", with a point only at the end of the text, since names continue with capitals."""
    last = match.end() == len(match.string) or match.string[match.end()] == "\n"
    return " ".join(match[0].replace(".", " ").split()) + ("." if last else "")


def _roman(text: str) -> int:
    values = [{"I": 1, "V": 5, "X": 10, "L": 50}[letter] for letter in text]
    return sum(-a if a < b else a for a, b in zip(values, [*values[1:], 0], strict=True))


def _reign(match: Match) -> str:
    return f"{match[1]}the {ordinal(_roman(match[2]))}" if match[2] else match[0]


def _part(match: Match) -> str:
    return re.sub("[-–]$", " to ", match[1]) + cardinal(_roman(match[2])) if match[2] else match[0]


# Dates and times ------------------------------------------------------------------------------------------------


def _month(name: str) -> str:
    return next(month for month in W.MONTHS if month.startswith(name.rstrip(".")[:3]))


def _date(month: str, day: int, years: str | None) -> str:
    return f"{month} {ordinal(day)}" + (f", {year(int(years))}" if years else "")


def _month_day(match: Match) -> str:
    until = f" to {ordinal(int(match['until']))}" if match["until"] else ""
    years = f", {year(int(match['year']))}" if match["year"] else ""
    return f"{_month(match['month'])} {ordinal(int(match['day']))}{until}{years}"


def _day_month(match: Match) -> str:
    years = f" {year(int(match['year']))}" if match["year"] else ""
    until = f"to the {ordinal(int(match['until']))} " if match["until"] else ""
    return f"{match['the'] or 'the '}{ordinal(int(match['day']))} {until}of {_month(match['month'])}{years}"


def _date_of_numbers(day_first: bool, match: Match) -> str:
    """3/5/2024 or 13.5.2024; day and month are swapped where the month would exceed 12."""
    first, second, years = int(match[1]), int(match[3]), int(match[4])
    month, day = (second, first) if day_first or match[2] == "." else (first, second)
    if month > 12:
        month, day = day, month
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return match[0]
    if len(match[4]) == 2:
        years += 2000 if years < 50 else 1900
    return _date(W.MONTHS[month - 1], day, str(years))


def _time(match: Match) -> str:
    hour, minute, second = (int(match[name] or 0) for name in ("hour", "minute", "second"))
    half = match["half"]
    if hour in (0, 24) and not minute and not half and not second:
        return "midnight"
    words = cardinal(hour)
    if minute:
        words += f" {'oh ' if minute < 10 else ''}{cardinal(minute)}"
    elif not half:
        words += " hundred" if hour > 12 else " o'clock"
    if second:
        words += f" and {cardinal(second)} second{'s' * (second != 1)}"
    if half:
        words += f" {half.lower()} m"
    return f"{words}." if half and _sentence_ends(match) else words


def _years_until(match: Match) -> str:
    first, last = int(match[1]), int(match[3])
    if last <= first % 100:
        return match[0]
    return f"{year(first)} {'to ' if match[2] in '-–' else ''}{'oh ' if last < 10 else ''}{cardinal(last)}"


# Money, measures, numbers -----------------------------------------------------------------------------------------


def _telephone(match: Match) -> str:
    groups = re.findall(r"\d+", match[0])
    return ("plus " if match[0].startswith("+") else "") + ", ".join(map(digits, groups))


def _money(match: Match) -> str:
    """An amount, or two: "five to ten dollars"."""
    sign = W.CODES.get(match["sign"], match["sign"])
    one, many, cent, cents = W.MONEY[sign]
    amounts = [amount for amount in (match["amount"], match["until"]) if amount]
    country = W.COUNTRIES.get(match["country"] or "", "")
    scale = match["scale"]
    if scale:
        scale = W.SCALES.get(scale.lower(), scale)
        return f"{' to '.join(map(number, amounts))} {scale} {country}{many}"
    if not cent or not all(len(amount.partition(".")[2]) == 2 for amount in amounts):
        return f"{' to '.join(map(number, amounts))} {country}{one if amounts == ['1'] else many}"
    return " to ".join(_exact(amount, country, one, many, cent, cents) for amount in amounts)


def _exact(amount: str, country: str, one: str, many: str, cent: str, cents: str) -> str:
    """An amount with two decimals."""
    whole, _, fraction = amount.partition(".")
    pieces = []
    if whole.strip("0") or fraction == "00":
        pieces.append(f"{number(whole or '0')} {country}{one if whole == '1' else many}")
    if fraction != "00":
        pieces.append(f"{cardinal(int(fraction))} {cent if fraction == '01' else cents}")
    return " and ".join(pieces)


def _measure(match: Match) -> str:
    """ "5 km/h" as "5 kilometers per hour"; after a hyphen in the singular: "5-km run"."""
    one, _, many = W.UNITS[match["unit"]].partition("|")
    power = {"2": "square ", "3": "cubic "}.get(match["power"] or "", "")
    half = re.search(r"(?:^|[^\d\s]|\D\s)1/$", match.string[max(0, match.start() - 4) : match.start()])
    singular = match["amount"] == "1" or match["gap"] == "-" or half
    words = f"{match['amount']} {power if not match['per'] else ''}{one if singular else many or plural(one)}"
    if match["per"]:
        below = W.PER.get(match["per"]) or W.UNITS[match["per"]].partition("|")[0]
        words += f" per {below} squared" if power and below == "second" else f" per {power}{below}"
    return words


def _vulgar(match: Match) -> str:
    fraction = unicodedata.normalize("NFKD", match[2]).replace("⁄", "/")
    return f"{match[1]} {fraction}" if match[1] else fraction


def _fraction(match: Match) -> str:
    above, below = int(match[2]), int(match[3])
    bare = not match[1] and not re.compile(r"\s(?:of|[a-z]*inch)").match(match.string, match.end())
    if match[0] in ("24/7", "9/11") or (above == below not in (10, 100) and bare):
        words = f"{cardinal(above)} {cardinal(below)}"
    elif above > 1 and below in (10, 100) and above <= below and bare:
        words = f"{cardinal(above)} out of {cardinal(below)}"
    elif not 1 < below <= 100 or not 0 < above < below:
        words = f"{cardinal(above)} over {cardinal(below)}"
    else:
        part = {2: "half", 4: "quarter"}.get(below) or ordinal(below)
        parts = "halves" if below == 2 else plural(part)
        words = f"{cardinal(above)} {part if above == 1 else parts}"
    return f"{number(match[1])} and {words}" if match[1] else words


def _difference(match: Match) -> str:
    """ "5 - 3" is minus, "3 - 5 days" a range."""
    minus = float(match[1]) >= float(match[3]) or match.string.startswith((" =", "="), match.end())
    return f"{match[1]}{match[2]} {'minus' if minus else 'to'} {match[3]}"


def _power(match: Match) -> str:
    words = {"2": " squared", "3": " cubed"}.get(match[1])
    return words or f" to the power of {match[1].replace('-', 'minus ').lstrip('+')}"


def _ungrouped(match: Match) -> str:
    """ "1.234,50", "1 234" and "1,234" without their groups; a comma before fewer than three digits is a point."""
    whole, point, decimals = re.sub(r",(?=\d\d?$)", "|", match[0]).partition("|")
    return re.sub(r"\D", "", whole) + ("." if point else "") + decimals


def _sign(match: Match) -> str:
    """A sign by its name; marks of trained tokenizers stay, and signs that are not spoken become blanks."""
    sign = match[0]
    if match["mark"]:
        return sign
    words = W.SIGNS.get(sign)
    if words is None and unicodedata.category(sign) in ("Sm", "Sc") and sign > "\x7f":
        words = re.sub(r" (?:SIGN|OPERATOR)$", "", unicodedata.name(sign, "")).replace("-", " ").lower()
    after = match.string[match.end() : match.end() + 1]
    return (f" {words}" if words else "") + ("" if after in ".,;:!?)\"'" else " ")


def _greek(match: Match) -> str:
    return f" {unicodedata.name(match[0]).split(' WITH')[0].split()[-1].lower().replace('lamda', 'lambda')} "


# The rules --------------------------------------------------------------------------------------------------------


def _any(names: Iterable[str]) -> str:
    """A pattern of any of these, longest first."""
    return "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))


_SIGN = rf"[{''.join(W.MONEY)}]"
_SCALE = r"(?:\s?(?P<scale>thousand|million|billion|trillion|[kKmMbB]|[mbt]n)\b)?"
_AMOUNTS = rf"(?P<amount>{_NUMBER})(?:\s?(?:[-–]|to)\s?{_SIGN}?(?P<until>{_NUMBER})(?!-\d))?{_SCALE}"
_UNIT = _any(W.UNITS)
_MARK = r"(?P<mark></?[a-z_]{1,20}>|<\|[a-z_]{1,20}\|>|\[[a-z_-]{1,20}\])"
_DAYS = r"(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day"

# fmt: off
_ABBREVIATIONS: list[tuple[str, Words]] = [
    (r"(?<![\w.+-])(?:(?:https?|ftp)://|www\.)[^\s<>\"]*[\w/]|(?<![\w.+-])[\w.+-]++@[\w-]++(?:\.[\w-]++)+", _address),
    (r"(?<![\w.@-])[A-Za-z][\w-]*+(?:\.[\w-]++)*\.(?:com|org|net|edu|gov|io|ai|dev|app|uk|eu|py|txt|js|json|md|html?|csv|gz"
     r"|pdf|png|jpe?g|wav|mp3|mp4|zip|docx?|toml|ya?ml|sh|exe)\b(?:/\S*[\w/])?", _address),
    (r"(?<![^\s(\"'])~?/(?:[\w.-]++/)*[\w.-]*\w", _address),
    (rf"(?<!\d)(\d++ (?:[A-Z]\w+ ){{1,4}})({_any(W.STREETS)})\.?(?=\W|$)",
     lambda m: m[1] + W.STREETS[m[2]] + "." * _sentence_ends(m)),
    (r"\b(Mrs?|Dr|Prof)\s(?=[A-Z]|and\b)", lambda m: f"{W.TITLES[m[1]]} "),
    (rf"\b({_any(W.TITLES)})\.\s?(?=[A-Z])", lambda m: f"{W.TITLES[m[1]]} "),
    (rf"(?i)(?<![\w.'-])({_any(W.COUNTED)})\.\s?(?=\d|(?-i:[IVXL]{{2,}}\b))",
     lambda m: _like(W.COUNTED[m[1].lower()], m[1]) + " "),
    (rf"(?i)(?<![\w.'-])({_any(W.SHORT)})\.(?![\d.])(?!\w\.)", _short),
    (r"\bPh\.?D\b\.?", "P h D"),
    (r"(?i)\b(w/(?=\s)|(?:w/o|b/c|c/o)\b)", lambda m: _like(W.SLASHED[m[1].lower()], m[1])),
    (r"\b([Ss]?)/?(he/she|his/her|him/her)\b", lambda m: m[1] + m[2].replace("/", " or ")),
    (r"\b([CFG])#(?!\w)", r"\1 sharp"),
    (r"\bCO2\b", "C O 2"),
    (r"\bv(?=\d+\.\d)", "version "),
    (r"(?<!\w)#(?=[^\W\d])", "hashtag "),
]


def _dates(day_first: bool) -> list[tuple[str, Words]]:
    return [
        (rf"(?<![\w.-])({_YEAR})([-/.])(0?[1-9]|1[0-2])\2({_DAY})(?:T(?=\d\d:)|{_END})",
         lambda m: _date(W.MONTHS[int(m[3]) - 1], int(m[4]), m[1]) + ", " * m[0].endswith("T")),
        (r"(?<![\d/.])(\d{1,2})([/.])(\d{1,2})\2(\d{4}|\d\d)(?![/.]?\d|\w)", partial(_date_of_numbers, day_first)),
        (rf"\b(?P<month>{_MONTH})\s(?P<day>{_DAY})(?:st|nd|rd|th)?(?:\s?[-–]\s?(?P<until>{_DAY})(?:st|nd|rd|th)?)?"
         rf"(?:,?\s(?P<year>{_YEAR}))?{_END}", _month_day),
        (rf"(?<![\d.,/:])(?P<the>\b[Tt]he )?\b(?P<day>{_DAY})(?:st|nd|rd|th)?(?:\s?[-–]\s?(?P<until>{_DAY})"
         rf"(?:st|nd|rd|th)?)?(?:\sof)?\s(?P<month>{_MONTH})(?!\w)(?:,?\s(?P<year>{_YEAR}){_END})?", _day_month),
        (rf"\b({_MONTH}),?\s({_YEAR}){_END}", lambda m: f"{_month(m[1])} {year(int(m[2]))}"),
        (r"\b(Jan|Feb|Aug|Sept?|Oct|Nov|Dec)\.", lambda m: _month(m[1]) + "." * _sentence_ends(m)),
        (rf"(\b(?:{_DAYS}|{'|'.join(W.MONTHS)})|(?:st|nd|rd|th)\b)\s?[-–]\s?(?={_DAYS}|{'|'.join(W.MONTHS)})",
         r"\1 to "),
    ]


# Digits that are not quantities, then all countries' number formats as 1234.5.
_FIGURES: list[tuple[str, Words]] = [
    (r"(?<![\w.-])(?:\+?\d{1,3}[ -])?(?:\(\d{3}\)\s?|\d{3}[ .-])\d{3}[.-]\d{4}(?![\w-])|(?<![\w.-])(?:\d{3}-\d{4}|"
     r"\+\d{1,3}(?: \d{2,5}){2,5}|\d{4}(?:[ -]\d{4}){3}|\d{3}-\d\d-\d{4})(?![\w-])", _telephone),
    (r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\w|\.\d)", lambda m: " dot ".join(map(number, m[0].split(".")))),
    (rf"{_START}(?<!\d,)\d{{1,3}}(?:,\d{{3}})+(?![\d,]*\d)", _ungrouped),
    (rf"{_START}(?<!\d,)\d{{1,2}}(?:,\d\d)+,\d{{3}}(?![\d,]*\d)", _ungrouped),
    (rf"{_START}(?<!\d')\d{{1,3}}(?:'\d{{3}})+(?!\d)", _ungrouped),
    (rf"{_START}(?<![\d,:/] )(?<![\w,:/])\d{{1,3}}(?: \d{{3}})+(?! ?\d|[:/]\d)", _ungrouped),
    (rf"{_START}(?<!\d,)\d{{1,3}}(?:[. ]\d{{3}})+,\d\d?(?![\d,])", _ungrouped),
    (rf"{_START}\d{{1,3}}(?:\.\d{{3}}){{2,}}(?!\.?\d)", _ungrouped),
    (rf"{_START}(?<!\d,)\d{{1,3}}\.\d{{3}}(?=\s?€)", _ungrouped),
    (rf"(?<={_SIGN})(\d++),(\d\d?)(?![\d,])", r"\1.\2"),
    (rf"{_START}(?<!\d,)(\d++),(\d\d?)(?=\s?(?:{_SIGN}|(?:{_any(W.CODES)}|{_UNIT}|[mbtr]+illion)(?!\w)))", r"\1.\2"),
    (rf"(?<!\d)\d{{{MOST_DIGITS + 1},}}+(?:\.\d++)?|{_START}\d{{0,{MOST_DIGITS}}}\.\d{{{MOST_DIGITS + 1},}}+",
     lambda m: number(m[0])),
]
_ROMANS: list[tuple[str, Words]] = [
    (rf"\b((?:{W.PARTS.replace(' ', '|')})s?\s)({_ROMAN})", _part),
    (rf"\b((?:{W.PARTS.replace(' ', '|')})s\s[a-z ]{{3,20}}(?:\sand\s|\sto\s|[-–]))({_ROMAN})", _part),
    (rf"(?m)^()({_ROMAN})(?=\.\s[A-Z])", _part),
    (rf"\b((?:{W.NAMED.replace(' ', '|')})\s)(?!I\b|X\b)({_ROMAN})", _reign),
    (rf"\b((?:{W.NAMED.replace(' ', '|')})\s)([IX])(?=\s(?:of|was|died|reigned|became)\b|[,.;:)]|'s\b|$)", _reign),
    (r"\b((?:King|Queen|Pope|Emperor|Tsar|Czar|Kaiser)\s[A-Z][a-z]+\s)([IX])\b(?!')", _reign),
    (rf"\b([Tt]he\s)({_ROMAN})(?=\scentury)", lambda m: m[1] + ordinal(_roman(m[2])) if m[2] else m[0]),
    (r"\b(?!(?:The|This|That|An?|My|His|Her|In|On|Use|Run|With|Via|Or|And)\b)([A-Z][a-z]+\s)"
     r"(I[IVX]|III|VI{1,3}|XI{1,3}|XI?V|XVI{1,3}|XIX)(?!\w|'(?!s\b))", _part),
]
_TIMES: list[tuple[str, Words]] = [
    (r"(?<![\w.)\]^])-(?=[$£€¥])", "minus "),
    (r"(?<=[a-z])-(?=[$£€¥]\d)", " to "),
    (rf"(?:\b(?P<country>US|A|C|NZ|HK))?(?P<sign>{_SIGN}|\b(?:{_any(W.CODES)}))\s?{_AMOUNTS}", _money),
    (rf"{_START}{_AMOUNTS}(?P<country>)\s?(?P<sign>{_SIGN}|(?:{_any(W.CODES)})\b)", _money),
    (rf"\b({W.BOOKS.replace(' ', '|')}) (\d{{1,3}}):(\d{{1,3}})(?:[-–](\d{{1,3}}))?\b",
     lambda m: f"{m[1]} {m[2]} {m[3]}" + (f" to {m[4]}" if m[4] else "")),
    (r"(?i)\b((?:ratio|odds|scored?|scale|won|lost)(?: of| is| was|:)?) (\d{1,3}):(?=\d)", r"\1 \2 to "),
    (rf"{_START}({_YEAR})([-–/])(\d\d)(?![\w/-]|[.,]\d)", _years_until),
    (rf"{_START}(?<!\^)({_NUMBER})(\s?(?:{_UNIT}|)) - (?=\d)({_NUMBER})(?![-\d])", _difference),
    (r"(?<=[\da-zA-Z%°])\s?–\s?(?=[$£€¥]?\.?\d)|(?<=[\d%CF°])~(?=\d)", " to "),
    (r"(?i)(?<=\d)\s?([ap])\.?m\.?\s?-\s?(?=\d)", r" \1m to "),
    (rf"(?<=\d)(\s?(?:{_UNIT}|st|nd|rd|th|[kKmM]))-(?={_NUMBER}(?!-))", r"\1 to "),
    (r"(?<![\w:-])(?<!\d[.,])(\d[\d.,:]*+)-(?=\d[\d.,:]*+(?!-\d))", r"\1 to "),
    (rf"(?<![\d:])(?P<hour>2[0-4]|[01]?\d):(?P<minute>[0-5]\d)(?::(?P<second>[0-5]\d))?(?![:\d]){_AM_PM}?", _time),
    (rf"{_START}(?P<hour>1[0-2]|0?[1-9])\.(?P<minute>[0-5]\d)(?P<second>){_AM_PM}", _time),
    (rf"{_START}(?P<hour>2[0-4]|[01]?\d)h(?P<minute>[0-5]\d)(?P<second>)(?P<half>)\b", _time),
    (rf"{_START}(?P<hour>1[0-2]|0?[1-9])(?P<minute>)(?P<second>){_AM_PM}", _time),
    (r"(?<=\d):(?=\d)", " to "),
    (r"\b([ap])\.m\.", lambda m: f"{m[1]} m" + "." * _sentence_ends(m)),
    (r"(?<![\w.])(?:[A-Za-z]\.){2,}+(?!\w)|(?<![\w.])(?:[A-Z]\.){2,9}[A-Z](?![\w.])", _initials),
]
_YEARS: list[tuple[str, Words]] = [
    (rf"{_START}(\d{{3}}0)'?s\b", lambda m: plural(year(int(m[1])))),
    (r"(?:'|(?<![\d.,'])\b)([2-9]0)'?s\b", lambda m: plural(cardinal(int(m[1])))),
    (r"(?<!\w)'(\d\d)(?![\w'])", lambda m: ("oh " if m[1][0] == "0" else "") + cardinal(int(m[1]))),
    (rf"(?<![\w.,$£€])({_YEAR})(?=\s(?:to|and|or)\s{_YEAR}\b)", lambda m: year(int(m[1]))),
    (r"(?<![\w.,])(\d{3,4})(?=\s(?:AD|BCE?|CE)\b)", lambda m: year(int(m[1]))),
    (rf"(?i)(?<!\w)({_CONTEXT}\s|©\s?)({_YEAR})(?!\s?[a-z]*[%°$€£])(?!\s(?:people|times|years|days){_END}){_END}",
     lambda m: m[1] + year(int(m[2]))),
    (r"(?<![\w.,])((?:1[5-9]|20)\d\d)(?=\)|\s(?:was|is|saw|will|has|had|film|movie|[Ww]orld|Olympics|election"
     r"|edition|model|season)\b)", lambda m: year(int(m[1]))),
]
_NUMBERS: list[tuple[str, Words]] = [
    (r"(?<![\w.)\]^])-(?=[$£€¥]?\.?[\d¼-¾⅐-⅞])", "minus "),
    (r"(?<=[\d)]) - (?=\d|[nxyz]\b)|(?<=\b[nxyz]) - (?=[\dnxyz]\b)", " minus "),
    (r"(?<=\d) sq\.? ?(ft|m|km|mi|yd)\b", r" \1^2"),
    (r"(?<!\w)(\d)'(\d{1,2})(?:\"|(?!\w))", r"\1 feet \2 inches"),
    (r"(?:(?<!\d)(\d++)\s?)?([¼-¾⅐-⅞])", _vulgar),
    (rf"{_START}(?P<amount>{_NUMBER})(?P<gap>[\s-]?)(?P<unit>{_UNIT})(?:/(?P<per>{_any(W.PER)}|{_UNIT}))?"
     r"(?:\^?(?P<power>[23]))?(?![\w/^])(?:\.(?=\s[a-z]))?", _measure),
    (rf"{_START}({_NUMBER})\ss(?!\w)", lambda m: f"{m[1]} second{'s' * (m[1] != '1')}"),
    (r"(?<=\w)/(?=(?:second|minute|hour|day|week|month|year|person)\b)", " per "),
    (rf"(?<![\w.])({_NUMBER})[eE](?=[+-]?\d{{1,3}}(?!\w))", r"\1 times ten^"),
    (r"\^\{?([+-]?\d{1,9}|[a-zA-Z])(?!\w)\}?", _power),
    (r"(?<![\w.,])(\d++)s\b", lambda m: plural(number(m[1]))),
    (r"(?<![\w.,/])(?:(\d{1,9})\s)?(\d{1,4})/(\d{1,4})(?![\w/])", _fraction),
    (r"(?i)(?<![\w.])(\d++)(?:st|nd|rd|th)\b", lambda m: ordinal(int(m[1]))),
    (r"#\s?(?=\d)", "number "),
    (r"(?<=\d)\s?x\s?(?=\d)", " by "),
    (r"(?<=\d)x\b(?!\s?[-+=*/)^])", " times"),
    (r"(?<=[\d)])\s?\*\s?(?=[\d(])", " times "),
    (r"(?<=[^\W\d_])(?=\d)|(?<=\d)(?=[^\W\d_])", " "),
    (r"(?<![\d.])\d++(?:\.\d++){2,}", lambda m: " point ".join(map(number, m[0].split(".")))),
    (_NUMBER, lambda m: number(m[0]) + ("," if re.compile(r",\d").match(m.string, m.end()) else "")),
]
_SIGNS: list[tuple[str, Words]] = [
    (r"(?<=\w),,(?=\w)", ", "),
    (r"[-=]>", " to "),
    (r"<=|>=|!=|==|&&", lambda m: {"<=": "≤", ">=": "≥", "!=": "≠", "==": "=", "&&": "&"}[m[0]]),
    (r"(?<![\u0370-\u03ff])[\u0391-\u03a9\u03b1-\u03c9](?![\u0370-\u03ff])", _greek),
    (rf"{_MARK}|[^\w\s!\"'(),\-.:;?\[\]{{}}–—]|_", _sign),
]
# fmt: on


@cache
def _rules(day_first: bool) -> list[tuple[re.Pattern[str], Words]]:
    """The rules in their order."""
    groups = (_ABBREVIATIONS, _dates(day_first), _FIGURES, _ROMANS, _TIMES, _YEARS, _NUMBERS, _SIGNS)
    return [(re.compile(pattern), words) for group in groups for pattern, words in group]
