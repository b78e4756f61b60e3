"""English text in words: rules of the form pattern -> words, applied one after the other, the special before the plain.

Where a writing has two readings ("St.", "5/6", "May 5"), the commoner one in prose is taken.
"""

import re
import unicodedata
from collections.abc import Callable, Mapping
from functools import cache, partial

from vokens.text.numbers import cardinal, digits, number, ordinal, plural, year

Match = re.Match[str]

_MONTHS = "January February March April May June July August September October November December"
MONTHS = _MONTHS.split()
_NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|(?<![\w.])\.\d+)"
_MONTH = r"(?:(?:Jan|Febr?|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)\b\.?|" + "|".join(MONTHS) + r")"
_DAY = r"(?:3[01]|[12]\d|0?[1-9])"
_YEAR = r"(?:1[1-9]|20)\d\d"
_NO_MORE = r"(?![,.:/]?\d|\w)"  # the number ends here
_ENDS = r"\s*$|\s*\n|\s+[\"'(]?[A-Z]"  # what follows a sentence

# Before a capital: titles. A point is not needed after the first five.
_TITLES = {
    "Mr": "Mister",
    "Mrs": "Missus",
    "Ms": "Ms",
    "Dr": "Doctor",
    "Prof": "Professor",
    "Capt": "Captain",
    "Col": "Colonel",
    "Ft": "Fort",
    "Gen": "General",
    "Gov": "Governor",
    "Hon": "Honorable",
    "Lt": "Lieutenant",
    "Mt": "Mount",
    "Pres": "President",
    "Rep": "Representative",
    "Rev": "Reverend",
    "Sen": "Senator",
    "Sgt": "Sergeant",
    "St": "Saint",
}
_STREETS = {"St": "Street", "Dr": "Drive", "Ave": "Avenue", "Rd": "Road", "Blvd": "Boulevard", "Ln": "Lane"}
# Before a number.
_COUNTED = {
    "no": "number",
    "nos": "numbers",
    "p": "page",
    "pp": "pages",
    "vol": "volume",
    "ch": "chapter",
    "fig": "figure",
    "sec": "section",
    "ca": "about",
}
# Anywhere, always with a point.
_SHORT = _STREETS | {
    "etc": "et cetera",
    "vs": "versus",
    "approx": "approximately",
    "dept": "department",
    "Dept": "Department",
    "Inc": "Incorporated",
    "Ltd": "Limited",
    "Co": "Company",
    "Corp": "Corporation",
    "Jr": "Junior",
    "Sr": "Senior",
    "Ph.D": "P h D",
    "e.g": "for example",
    "i.e": "that is",
}
_MONEY = {
    "$": ("dollar", "dollars", "cent", "cents"),
    "£": ("pound", "pounds", "penny", "pence"),
    "€": ("euro", "euros", "cent", "cents"),
    "¥": ("yen", "yen", "", ""),
    "₹": ("rupee", "rupees", "paisa", "paise"),
    "₩": ("won", "won", "", ""),
}
_COUNTRIES = {"US": "U S ", "A": "Australian ", "C": "Canadian ", "NZ": "New Zealand ", "HK": "Hong Kong "}
_SCALES = {"k": "thousand", "m": "million", "mn": "million", "b": "billion", "bn": "billion"}
_UNITS = {
    "km": "kilometer",
    "m": "meter",
    "cm": "centimeter",
    "mm": "millimeter",
    "µm": "micrometer",
    "nm": "nanometer",
    "mi": "mile",
    "yd": "yard",
    "ft": "foot|feet",
    "kg": "kilogram",
    "g": "gram",
    "mg": "milligram",
    "lb": "pound",
    "lbs": "pound",
    "oz": "ounce",
    "l": "liter",
    "L": "liter",
    "ml": "milliliter",
    "mL": "milliliter",
    "km²": "square kilometer",
    "m²": "square meter",
    "cm²": "square centimeter",
    "m³": "cubic meter",
    "ha": "hectare",
    "km/h": "kilometer per hour|kilometers per hour",
    "kph": "kilometer per hour|kilometers per hour",
    "mph": "mile per hour|miles per hour",
    "m/s": "meter per second|meters per second",
    "W": "watt",
    "kW": "kilowatt",
    "MW": "megawatt",
    "GW": "gigawatt",
    "kWh": "kilowatt hour",
    "V": "volt",
    "mV": "millivolt",
    "kJ": "kilojoule",
    "kcal": "kilocalorie",
    "Pa": "pascal",
    "kPa": "kilopascal",
    "Hz": "hertz|hertz",
    "kHz": "kilohertz|kilohertz",
    "MHz": "megahertz|megahertz",
    "GHz": "gigahertz|gigahertz",
    "dB": "decibel",
    "rpm": "revolution per minute|revolutions per minute",
    "KB": "kilobyte",
    "kB": "kilobyte",
    "MB": "megabyte",
    "GB": "gigabyte",
    "TB": "terabyte",
    "kbps": "kilobit per second|kilobits per second",
    "Mbps": "megabit per second|megabits per second",
    "Gbps": "gigabit per second|gigabits per second",
    "ms": "millisecond",
    "µs": "microsecond",
    "ns": "nanosecond",
    "sec": "second",
    "min": "minute",
    "h": "hour",
    "hr": "hour",
    "hrs": "hour",
    "°C": "degree Celsius|degrees Celsius",
    "°F": "degree Fahrenheit|degrees Fahrenheit",
    "°": "degree",
    "%": "percent|percent",
}
_SIGNS = {
    "&": "and",
    "+": "plus",
    "=": "equals",
    "×": "times",
    "÷": "divided by",
    "±": "plus or minus",
    "°": "degrees",
    "%": "percent",
    "@": "at",
    "≈": "about",
    "≤": "at most",
    "≥": "at least",
    "§": "section",
    "©": "copyright",
    "®": "registered",
    "™": "trademark",
    "$": "dollars",
    "£": "pounds",
    "€": "euros",
}
_IN_ADDRESSES = {
    ".": "dot",
    "/": "slash",
    "@": "at",
    "-": "dash",
    "_": "underscore",
    ":": "colon",
    "#": "hash",
}


def spell(text: str, day_first: bool = False) -> str:
    """Clean English text in words. day_first: 3/5/2024 is in May."""
    text = text.translate({ord("’"): "'", ord("‘"): "'", ord("…"): "...", ord("−"): "-"})
    for pattern, words in _rules(day_first):
        text = pattern.sub(words, text)
    return "\n".join(" ".join(line.split()) for line in text.split("\n"))


# What the patterns stand for ------------------------------------------------------------------------------------


def _address(match: Match) -> str:
    """A web or mail address, its signs by name."""
    text = re.sub(r"^https?://", "", match[0]).replace("www.", "w w w.")
    return re.sub(
        r"[^\w\s]", lambda sign: f" {_IN_ADDRESSES.get(sign[0], sign[0])} ", text.replace("_", " underscore ")
    )


def _counted(match: Match) -> str:
    words = _COUNTED[match[1].lower()]
    return words.capitalize() if match[1][0].isupper() else words


def _short(table: Mapping[str, str], match: Match) -> str:
    """The long form of group 1; its point stays one where a sentence seems to end."""
    return table[match[1]] + "." * _sentence_ends(match)


def _sentence_ends(match: Match) -> bool:
    return match[0].endswith(".") and re.match(_ENDS, match.string[match.end() :]) is not None


def _initials(match: Match) -> str:
    """ "U.S.A." as "U S A", with a point at the text's end alone, since names go on with capitals."""
    last = match.end() == len(match.string) or match.string[match.end()] == "\n"
    return " ".join(match[0].replace(".", " ").split()) + ("." if last else "")


def _month(name: str) -> str:
    return next(month for month in MONTHS if month.startswith(name.rstrip(".")[:3]))


def _date(month: str, day: int, years: str | None) -> str:
    return f"{month} {ordinal(day)}" + (f", {year(int(years))}" if years else "")


def _month_day(match: Match) -> str:
    until = f" to {ordinal(int(match['until']))}" if match["until"] else ""
    years = f", {year(int(match['year']))}" if match["year"] else ""
    return f"{_month(match['month'])} {ordinal(int(match['day']))}{until}{years}"


def _day_month(match: Match) -> str:
    years = f" {year(int(match['year']))}" if match["year"] else ""
    return f"{match['the'] or 'the '}{ordinal(int(match['day']))} of {_month(match['month'])}{years}"


def _month_year(match: Match) -> str:
    return f"{_month(match[1])} {year(int(match[2]))}"


def _iso_date(match: Match) -> str:
    return _date(MONTHS[int(match[2]) - 1], int(match[3]), match[1])


def _date_of_numbers(day_first: bool, match: Match) -> str:
    """3/5/2024 or 13.5.2024; where the month cannot be one, it is the day."""
    first, second, years = int(match[1]), int(match[3]), int(match[4])
    month, day = (second, first) if day_first or match[2] == "." else (first, second)
    if month > 12:
        month, day = day, month
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return match[0]
    if len(match[4]) == 2:
        years += 2000 if years < 50 else 1900
    return _date(MONTHS[month - 1], day, str(years))


def _telephone(match: Match) -> str:
    groups = re.findall(r"\d+", match[0])
    return ("plus " if match[0].startswith("+") else "") + ", ".join(map(digits, groups))


def _time(match: Match) -> str:
    hour, minute, second, half = int(match["hour"]), int(match["minute"] or 0), match["second"], match["half"]
    words = cardinal(hour)
    if minute:
        words += f" {'oh ' if minute < 10 else ''}{cardinal(minute)}"
    elif not half:
        words += " hundred" if hour > 12 else " o'clock"
    if second:
        words += f" and {cardinal(int(second))} second{'s' * (int(second) != 1)}"
    if half:
        words += f" {half.lower()} m"
    return f"{words}." if half and _sentence_ends(match) else words


def _money(match: Match) -> str:
    one, many, cent, cents = _MONEY[match["sign"]]
    amount, country = match["amount"], _COUNTRIES.get(match["country"] or "", "")
    scale = match["scale"]
    if scale:
        return f"{number(amount)} {_SCALES.get(scale.lower(), scale)} {country}{many}"
    whole, _, fraction = amount.replace(",", "").partition(".")
    if len(fraction) != 2 or not cent:
        return f"{number(amount)} {country}{one if amount == '1' else many}"
    pieces = []
    if int(whole or 0) or not int(fraction):
        pieces.append(f"{cardinal(int(whole or 0))} {country}{one if int(whole or 0) == 1 else many}")
    if int(fraction):
        pieces.append(f"{cardinal(int(fraction))} {cent if int(fraction) == 1 else cents}")
    return " and ".join(pieces)


def _measure(match: Match) -> str:
    one, _, many = _UNITS[match[2].replace("μ", "µ")].partition("|")
    return f"{match[1]} {one if match[1] == '1' else many or plural(one)}"


def _vulgar(match: Match) -> str:
    fraction = unicodedata.normalize("NFKD", match[2]).replace("⁄", "/")
    return f"{match[1]} {fraction}" if match[1] else fraction


def _fraction(match: Match) -> str:
    above, below = int(match[2]), int(match[3])
    if match[0] in ("24/7", "9/11"):
        words = f"{cardinal(above)} {cardinal(below)}"
    elif not 1 < below <= 100 or not 0 < above < below:
        words = f"{cardinal(above)} over {cardinal(below)}"
    else:
        part = {2: "half", 4: "quarter"}.get(below) or ordinal(below)
        parts = "halves" if below == 2 else plural(part)
        words = f"{cardinal(above)} {part if above == 1 else parts}"
    return f"{number(match[1])} and {words}" if match[1] else words


def _years(match: Match) -> str:
    return f"{match[1]}{year(int(match[2]))}"


def _decade(match: Match) -> str:
    return plural(year(int(match[1])))


def _version(match: Match) -> str:
    return " point ".join(map(number, match[0].split(".")))


def _number(match: Match) -> str:
    return number(match[0])


def _ordinal(match: Match) -> str:
    return ordinal(int(match[1].replace(",", "")))


def _sign(match: Match) -> str:
    after = match.string[match.end() : match.end() + 1]
    return f" {_SIGNS[match[0]]}" + ("" if after in ".,;:!?)\"'" else " ")


def _any(names: Mapping[str, object]) -> str:
    """A pattern of any of these, longest first."""
    return "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))


_CONTEXT = (
    r"(?:in|since|from|until|till|by|before|after|during|of|year|around|circa|to|and|or|early|late|mid)"
)
_AM_PM = r"(?:\s?(?P<half>[apAP])(?:\.\s?[mM]\.|[mM]\b))"
_AMOUNT = rf"(?P<amount>{_NUMBER})(?:\s?(?P<scale>thousand|million|billion|trillion|[kKmMbB]|[mb]n)\b)?"


@cache
def _rules(day_first: bool) -> list[tuple[re.Pattern[str], str | Callable[[Match], str]]]:
    """The rules in their order."""
    table: list[tuple[str, str | Callable[[Match], str]]] = [
        (r"\bhttps?://\S*[\w/]|\bwww\.\S*[\w/]|\b[\w.+-]+@[\w-]+(?:\.[\w-]+)+", _address),
        (r"\b[A-Za-z][\w-]*(?:\.[\w-]+)*\.(?:com|org|net|edu|gov|io|ai|dev|uk|eu)\b(?:/\S*[\w/])?", _address),
        # Abbreviations
        (
            rf"\b(\d+ (?:[A-Z]\w+ )+)({_any(_STREETS)})\.?(?=\W|$)",
            lambda m: m[1] + _STREETS[m[2]] + "." * _sentence_ends(m),
        ),
        (r"\b(Mrs?|Ms|Dr|Prof)\.?(?=\s[A-Z])", lambda m: _TITLES[m[1]]),
        (rf"\b({_any(_TITLES)})\.(?=\s[A-Z])", lambda m: _TITLES[m[1]]),
        (rf"(?i)\b({_any(_COUNTED)})\.(?=\s?\d)", _counted),
        (rf"(?<![\w.-])({_any(_SHORT)})\.(?![\w.])", partial(_short, _SHORT)),
        (r"(?i)\bw/o\b", "without"),
        (r"(?i)\bw/(?=\s)", "with"),
        # Dates
        (rf"\b({_YEAR})-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01]){_NO_MORE}", _iso_date),
        (
            r"(?<![\d/.])(\d{1,2})([/.])(\d{1,2})\2(\d{4}|\d\d)(?![/.]?\d|\w)",
            partial(_date_of_numbers, day_first),
        ),
        (
            rf"\b(?P<month>{_MONTH})\s(?P<day>{_DAY})(?:st|nd|rd|th)?(?:\s?[-–]\s?(?P<until>{_DAY})(?:st|nd|rd|th)?)?"
            rf"(?:,?\s(?P<year>{_YEAR}))?{_NO_MORE}",
            _month_day,
        ),
        (
            rf"(?<![\d.,/:])(?P<the>\b[Tt]he )?\b(?P<day>{_DAY})(?:st|nd|rd|th)?(?:\sof)?\s(?P<month>{_MONTH})(?!\w)"
            rf"(?:,?\s(?P<year>{_YEAR}){_NO_MORE})?",
            _day_month,
        ),
        (rf"\b({_MONTH}),?\s({_YEAR}){_NO_MORE}", _month_year),
        # Telephone numbers, ranges, times
        (r"(?<![\w.-])(?:\+\d{1,3}[ -])?(?:\(\d{3}\)\s?|\d{3}[ -])\d{3}-\d{4}(?![\w-])", _telephone),
        (r"(?<![\w.-])(?:\d{3}-\d{4}|\+\d{1,3}(?: \d{2,5}){2,4})(?![\w-])", _telephone),
        (r"(?<=[\d%])\s?–\s?(?=[$£€¥]?\d)", " to "),
        (
            r"(?<![\w-])([$£€]?[\d.,:]*\d[%kKmM]?)-(?=[$£€]?\d[\d.,:]*(?:[%\s.,;!?)]|[a-z]{1,3}\b|$))(?!\d+-)",
            r"\1 to ",
        ),
        (
            rf"\b(?P<hour>2[0-3]|[01]?\d):(?P<minute>[0-5]\d)(?::(?P<second>[0-5]\d))?(?![:\d]){_AM_PM}?",
            _time,
        ),
        (rf"\b(?P<hour>1[0-2]|0?[1-9])(?P<minute>)(?P<second>){_AM_PM}", _time),
        (r"\b(\d+):(?=\d+\b)", r"\1 to "),
        (r"\b([ap])\.m\.", lambda m: f"{m[1]} m" + "." * _sentence_ends(m)),
        (r"\b(?:[A-Za-z]\.){2,}(?!\w)", _initials),
        # Years
        (r"\b(\d{3}0)'?s\b", _decade),
        (r"(?:'|\b)([2-9]0)'?s\b", lambda m: plural(cardinal(int(m[1])))),
        (rf"(?<![\w.,$£€])()({_YEAR})(?=\s(?:to|and|or)\s{_YEAR}\b)", _years),
        (
            rf"(?i)\b({_CONTEXT}\s)({_YEAR})(?!\s?[a-z]*[%°$€£])(?!\s(?:people|times|years|days){_NO_MORE}){_NO_MORE}",
            _years,
        ),
        (rf"(\()({_YEAR})(?=\))", _years),
        # Money and measures
        (r"(?<![\w.)])-(?=[$£€¥]?\.?\d)", "minus "),
        (rf"(?:\b(?P<country>US|A|C|NZ|HK))?(?P<sign>[{''.join(_MONEY)}])\s?{_AMOUNT}", _money),
        (rf"{_AMOUNT}(?P<country>)\s?(?P<sign>[€£₹])", _money),
        (r"(?:(\d+)\s?)?([¼-¾⅐-⅞])", _vulgar),
        (rf"({_NUMBER})\s?({_any(_UNITS)}|μ[ms])(?![\w/²³])(?:\.(?=\s[a-z]))?", _measure),
        (rf"({_NUMBER})\ss(?!\w)", lambda m: f"{m[1]} second{'s' * (m[1] != '1')}"),
        # Numbers
        (r"(?<![\w.,])(\d+)s\b", lambda m: plural(number(m[1]))),
        (r"(?<![\w.,/])(?:(\d+)\s)?(\d{1,4})/(\d{1,4})(?![\w/])", _fraction),
        (r"(?i)(?<![\w.])(\d+(?:,\d{3})*)(?:st|nd|rd|th)\b", _ordinal),
        (r"~\s?(?=\d)", "about "),
        (r"#\s?(?=\d)", "number "),
        (r"(?<=\d)\s?[x]\s?(?=\d)", " by "),
        (r"(?<=[^\W\d_])(?=\d)|(?<=\d)(?=[^\W\d_])", " "),
        (r"\d+(?:\.\d+){2,}", _version),
        (_NUMBER, _number),
        (rf"[{re.escape(''.join(_SIGNS))}]", _sign),
        (r"(?<=\s)<(?=\s)", "less than"),
        (r"(?<=\s)>(?=\s)", "greater than"),
    ]
    return [(re.compile(pattern), words) for pattern, words in table]
