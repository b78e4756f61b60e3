"""Tables of written English for `vokens.text.english`: abbreviations, money, units, signs, names."""


def _table(entries: str) -> dict[str, str]:
    """ "Mr Mister; Dr Doctor" as a table."""
    return dict(entry.strip().split(None, 1) for entry in entries.split(";"))


MONTHS = (
    "January February March April May June July August September October November December".split()  # noqa: SIM905
)
# Before a capital, with a point, or without for the first four.
TITLES = _table(
    "Mr Mister; Mrs Missus; Dr Doctor; Prof Professor; Capt Captain; Col Colonel; Cpl Corporal; Ft Fort; Gen General; "
    "Gov Governor; Hon Honorable; Lt Lieutenant; Maj Major; Messrs Messers; Mt Mount; Pres President; "
    "Rep Representative; Rev Reverend; Sen Senator; Sgt Sergeant; St Saint"
)
STREETS = _table("St Street; Dr Drive; Ave Avenue; Rd Road; Blvd Boulevard; Ln Lane; Hwy Highway; Sq Square")
# Before a number, small or with a capital.
COUNTED = _table(
    "no number; nos numbers; p page; pp pages; vol volume; vols volumes; ch chapter; chap chapter; fig figure; "
    "figs figures; sec section; eq equation; art article; ca about; c about; tel telephone"
)
# Anywhere with a point, small or with a capital.
SHORT = {short.lower(): words.lower() for short, words in STREETS.items()} | _table(
    "etc et cetera; vs versus; approx approximately; dept department; inc incorporated; ltd limited; co company; "
    "corp corporation; bros brothers; jr junior; sr senior; ph.d P h D; e.g for example; i.e that is; cf compare; "
    "viz namely; avg average; max maximum; est established; govt government; misc miscellaneous; "
    "mon Monday; tue Tuesday; tues Tuesday; wed Wednesday; thu Thursday; thur Thursday; thurs Thursday; fri Friday"
)
SLASHED = _table("w/o without; w/ with; b/c because; c/o care of")
# sign -> one, many, a hundredth, hundredths
MONEY = {
    "$": ("dollar", "dollars", "cent", "cents"),
    "£": ("pound", "pounds", "penny", "pence"),
    "€": ("euro", "euros", "cent", "cents"),
    "¥": ("yen", "yen", "", ""),
    "₹": ("rupee", "rupees", "paisa", "paise"),
    "₩": ("won", "won", "", ""),
    "₽": ("ruble", "rubles", "kopeck", "kopecks"),
    "₺": ("lira", "lira", "kurus", "kurus"),
    "₪": ("shekel", "shekels", "agora", "agorot"),
    "₿": ("bitcoin", "bitcoins", "", ""),
    "¢": ("cent", "cents", "", ""),
}
CODES = {"USD": "$", "GBP": "£", "EUR": "€", "JPY": "¥", "INR": "₹", "KRW": "₩", "RUB": "₽"}
COUNTRIES = {"US": "U S ", "A": "Australian ", "C": "Canadian ", "NZ": "New Zealand ", "HK": "Hong Kong "}
SCALES = _table("k thousand; m million; mn million; b billion; bn billion; tn trillion")
# After a number: one, or one|many.
UNITS = _table(
    "km kilometer; m meter; cm centimeter; mm millimeter; μm micrometer; nm nanometer; mi mile; yd yard; ft foot|feet; "
    "kg kilogram; g gram; mg milligram; μg microgram; lb pound; lbs pound; oz ounce; l liter; L liter; ml milliliter; "
    "mL milliliter; cl centiliter; ha hectare; mph mile per hour|miles per hour; "
    "kph kilometer per hour|kilometers per hour; W watt; kW kilowatt; MW megawatt; GW gigawatt; kWh kilowatt hour; "
    "MWh megawatt hour; Wh watt hour; V volt; mV millivolt; kV kilovolt; mA milliampere; mAh milliampere hour; Ω ohm; "
    "kΩ kiloohm; J joule; kJ kilojoule; kcal kilocalorie; cal calorie; N newton; Pa pascal; hPa hectopascal; "
    "kPa kilopascal; Hz hertz|hertz; kHz kilohertz|kilohertz; MHz megahertz|megahertz; GHz gigahertz|gigahertz; "
    "dB decibel; rpm revolution per minute|revolutions per minute; bpm beat per minute|beats per minute; "
    "fps frame per second|frames per second; dpi dot per inch|dots per inch; ppm part per million|parts per million; "
    "psi pound per square inch|pounds per square inch; px pixel; KB kilobyte; kB kilobyte; MB megabyte; GB gigabyte; "
    "TB terabyte; kbit kilobit; Mbit megabit; Gbit gigabit; kbps kilobit per second|kilobits per second; "
    "Mbps megabit per second|megabits per second; Gbps gigabit per second|gigabits per second; ms millisecond; "
    "μs microsecond; ns nanosecond; sec second; secs second; min minute; mins minute; h hour; hr hour; hrs hour; "
    "°C degree Celsius|degrees Celsius; °F degree Fahrenheit|degrees Fahrenheit; ° degree; "
    "°N degree north|degrees north; °S degree south|degrees south; °E degree east|degrees east; "
    "°W degree west|degrees west; % percent|percent; ‰ per mille|per mille"
)
PER = {"s": "second", "d": "day", "hour": "hour", "day": "day"}  # after the slash, in addition to units
SIGNS = _table(
    "& and; + plus; = equals; × times; ⋅ times; ÷ divided by; ± plus or minus; ° degrees; % percent; @ at; "
    "≈ about; ∼ about; ~ about; ≠ is not equal to; ≡ is identical to; ≤ at most; ≥ at least; > greater than; "
    "< less than; § section; © copyright; ® registered; ™ trademark; ∞ infinity; √ square root of; → to; ⟶ to; "
    "⇒ implies; ∑ the sum of; ∏ the product of; ∫ the integral of; ∂ partial; ∇ nabla; ∈ in; ∉ not in; ∪ union; "
    "∩ intersection; ∅ empty set; ∀ for all; ∃ there exists; ∝ proportional to; ∆ delta; ¬ not; ∧ and; ∨ or; "
    "$ dollars; £ pounds; € euros; ¢ cents; ¥ yen; ₹ rupees; ♯ sharp; ← from; ↔ to and from"
)
IN_ADDRESSES = _table(
    ". dot; / slash; @ at; - dash; _ underscore; : colon; # hash; ? question mark; = equals; & and; % percent; + plus; "
    "~ tilde"
)
# Before a Roman numeral: counted things, and regnal names.
PARTS = (
    "War Part Chapter Volume Book Act Scene Section Phase Type Stage Title Class Article Appendix Episode Season Level "
    "Unit Bowl Apollo Table Figure Grade Vol Step Round Division"
)
NAMED = (
    "Louis Henry Edward George William James Charles Richard Elizabeth Mary Philip Frederick Napoleon Nicholas Peter "
    "Catherine Alexander Ivan Leopold Albert Ferdinand Francis Otto Wilhelm Pius Benedict Paul Leo Gregory Clement "
    "Innocent Urban Boniface Julius Sixtus Ramses Ramesses Ptolemy Darius Xerxes Haakon Olaf Gustav Christian Carlos "
    "Felipe Alfonso Robert Stephen Mehmed Murad Selim Emmanuel Umberto Constantine Theodosius"
)
BOOKS = (
    "Genesis Exodus Leviticus Numbers Deuteronomy Joshua Judges Ruth Samuel Kings Chronicles Ezra Job Psalms? Proverbs "
    "Ecclesiastes Isaiah Jeremiah Ezekiel Daniel Matthew Mark Luke John Acts Romans Corinthians Galatians Ephesians "
    "Philippians Colossians Thessalonians Timothy Hebrews Revelation"
)
