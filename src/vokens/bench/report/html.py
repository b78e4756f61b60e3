"""HTML of the report, with embedded style sheet and script."""

from collections.abc import Sequence
from html import escape
from importlib.resources import files
from typing import Any

from vokens.bench import BENCHES
from vokens.bench.report.definitions import Definition, definition
from vokens.bench.report.plot import COLORS, Point, rate_plot
from vokens.bench.report.samples import Sample
from vokens.registry import MODELS

Row = dict[str, Any]
PLOTTED = ("stoi", "pesq-wb", "wer", "speaker", "mel", "mcd", "estoi", "si-sdr", "f0")
_BASE = "original"  # the row of the recordings themselves


def page(title: str, summaries: Sequence[Row], samples: Sequence[Sample]) -> str:
    """The whole file."""
    names = {summary["bench"]: BENCHES[summary["bench"]].help for summary in summaries}
    sections = [_head(title, summaries, names)]
    for summary in summaries:
        if summary["bench"] == "reconstruct":
            sections.append(_plots(summary["rows"]))
            sections.append(_listen(samples, summary["rows"]))
        sections.append(_tables(summary, names[summary["bench"]]))
    sections += [_licences(summaries), _definitions(summaries), _machines(summaries)]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_resource('page.css')}</style></head><body><main>"
        f"{''.join(sections)}</main><script>{_resource('page.js')}</script></body></html>\n"
    )


def _head(title: str, summaries: Sequence[Row], names: dict[str, str]) -> str:
    rows = [row for summary in summaries for row in summary["rows"]]
    models = {row["model"] for row in rows} - {_BASE}
    seconds = max((row["seconds"] for row in rows), default=0)
    recordings = max((row["files"] for row in rows), default=0)
    units = ((3600, "hours"), (60, "minutes"), (1, "seconds"))
    length = next(f"{seconds / size:.3g} {unit}" for size, unit in units if seconds >= 2 * size or size == 1)
    links = [f'<a href="#{name}">{escape(said[0].upper() + said[1:])}</a>' for name, said in names.items()]
    facts = f"{_count(len(models), 'codec')} on {_count(recordings, 'recording')}, {length} of speech"
    return (
        f'<header><div><h1>{escape(title)}</h1><p class="lead">{facts}</p></div>'
        '<button id="theme" type="button" aria-label="Light or dark">◐</button></header>'
        f"<nav>{''.join(links)}</nav>"
    )


def _plots(rows: Sequence[Row]) -> str:
    families = list(dict.fromkeys(_family(row) for row in rows if row["model"] != _BASE))
    base = next((row for row in rows if row["row"] == _BASE), None)
    figures = []
    for name in PLOTTED:
        series = {family: _points(rows, family, name) for family in families}
        if not any(series.values()):
            continue
        known = definition(name)
        ceiling = _value(base, name) if base and name in ("wer", "stoi", "speaker") else None
        drawn = rate_plot(series, known.title, known.digits, ceiling)
        figures.append(f"<figure><figcaption>{_title(known)}</figcaption>{drawn}</figure>")
    if not figures:
        return ""
    chips = "".join(
        f'<button type="button" class="chip c{place % COLORS}" data-series="{escape(name)}" aria-pressed="true">'
        f"<i></i>{escape(name)}</button>"
        for place, name in enumerate(families)
    )
    note = (
        "Each line is one codec at several rates or numbers of codebooks; bars are 95 % intervals over recordings. "
        "Dashed: the recordings themselves."
    )
    return (
        f'<section id="plots"><h2>Quality against bit rate</h2><div class="chips">{chips}</div>'
        f'<div class="figures">{"".join(figures)}</div><p class="note">{note}</p></section>'
    )


def _value(row: Row, name: str) -> float | None:
    """A figure of a row, None where it was not measured."""
    return row["metric"].get(name, {}).get("value")


def _family(row: Row) -> str:
    """Series of a row: one line per codec over its codebooks; Opus, Codec2 and Lyra one line over their variants."""
    entry = MODELS.get(row["model"])
    return row["model"] if entry is None or entry.settings is None else row["model"].split("-")[0]


def _points(rows: Sequence[Row], family: str, name: str) -> list[Point]:
    points = []
    for row in rows:
        value, rate = _value(row, name), _value(row, "bitrate")
        if row["model"] == _BASE or _family(row) != family or not rate or value is None:
            continue
        books = row["row"].removeprefix(row["model"]).strip()
        entry = MODELS.get(row["model"])
        if entry is not None and entry.settings is not None and books not in ("", f"1-{entry.num_codebooks}"):
            continue  # its rates are separate names
        if books and books.split("-")[0] != "1":
            continue  # later codebooks without the first are only in the table
        low_high = row["metric"][name].get("ci")
        points.append(Point(row["row"], rate, value, tuple(low_high) if low_high else None))
    return points


def _listen(samples: Sequence[Sample], rows: Sequence[Row]) -> str:
    if not samples:
        return ""
    rates = {row["row"]: _value(row, "bitrate") for row in rows}
    parts = ['<section id="listen"><h2>Listen</h2>']
    for item, sounds in samples:
        quote = f"<blockquote>{escape(item.text)}</blockquote>" if item.text else ""
        parts.append(f'<h3>{escape(item.id)}</h3>{quote}<div class="sounds">')
        for row, (audio, picture) in sounds.items():
            rate = rates.get(row)
            said = "recording" if row == _BASE else f"{rate:.2f} kbit/s" if rate else ""
            parts.append(
                f'<article class="sound"><div class="name"><b>{escape(row)}</b><span>{said}</span></div>'
                f'<img src="{picture}" alt="Spectrogram of {escape(row)}, 0 to 8 kHz" loading="lazy">'
                f'<audio controls preload="metadata" src="{audio}"></audio></article>'
            )
        parts.append("</div>")
    note = "Spectrograms: mel bands from 0 to 8 kHz, 70 dB from dark to bright. Sound: 16 kHz, lossless."
    return "".join([*parts, f'<p class="note">{note}</p></section>'])


def _tables(summary: Row, said: str) -> str:
    rows = summary["rows"]
    names = list(dict.fromkeys(name for row in rows for name in row["metric"]))
    groups: dict[str, list[str]] = {}
    for name in names:
        base, _, condition = name.partition("/")
        groups.setdefault(base if condition else "", []).append(name)
    parts = [f'<section id="{summary["bench"]}"><h2>{escape(said[0].upper() + said[1:])}</h2>']
    for base, members in groups.items():
        if base:
            parts.append(f"<h3>{_title(definition(base))}</h3>")
        parts.append(_table(rows, members))
    for name, reason in summary.get("notes", {}).items():
        parts.append(f'<p class="note"><b>{escape(name)}</b> was not measured: {escape(reason)}</p>')
    if summary.get("failed"):
        parts.append(f'<p class="note">{_count(summary["failed"], "recording")} could not be used.</p>')
    return "".join([*parts, "</section>"])


def _table(rows: Sequence[Row], names: Sequence[str]) -> str:
    heads = ['<th scope="col" aria-sort="none"><button type="button">codec</button></th>']
    for name in names:
        known, condition = definition(name), " ".join(name.split("/")[1:])
        label = escape(condition or known.title)
        unit = "" if condition or not known.unit else f"<small>{escape(known.unit)}</small>"
        mode = next((row["metric"][name]["mode"] for row in rows if name in row["metric"]), known.mode)
        heads.append(
            f'<th scope="col" aria-sort="none" title="{escape(mode)}" data-better="{known.better}">'
            f'<button type="button">{label}{_arrow(known)}</button>{unit}</th>'
        )
    best = {name: _best(rows, name) for name in names}
    body = []
    for row in rows:
        cells = [f'<th scope="row">{escape(row["row"])}</th>']
        cells += [_cell(row, name, best[name]) for name in names]
        body.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f'<div class="scroll"><table><thead><tr>{"".join(heads)}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _cell(row: Row, name: str, best: float | None) -> str:
    measure = row["metric"].get(name)
    if measure is None or measure["value"] is None:
        return '<td class="none">–</td>'
    value, digits = measure["value"], definition(name).digits
    said = f"{measure['n']} of {row['files']} recordings"
    if measure.get("ci"):
        said += f", 95 %: {measure['ci'][0]:.{digits}f} to {measure['ci'][1]:.{digits}f}"
    marks = ' class="best"' if best is not None and value == best and row["row"] != _BASE else ""
    return f'<td{marks} data-value="{value!r}" title="{escape(said)}">{value:.{digits}f}</td>'


def _best(rows: Sequence[Row], name: str) -> float | None:
    """The best value among codecs; bit rates have none, as lower is only better at the same quality."""
    better = definition(name).better
    every = [_value(row, name) for row in rows if row["row"] != _BASE]
    values = [value for value in every if value is not None]
    if not better or name.startswith("bitrate") or len(values) < 2:
        return None
    return max(values) if better == "up" else min(values)


def _arrow(known: Definition) -> str:
    return {"up": " ↑", "down": " ↓"}.get(known.better, "")


def _title(known: Definition) -> str:
    unit = f" <small>{escape(known.unit)}</small>" if known.unit else ""
    return f"{escape(known.title)}{_arrow(known)}{unit}"


def _licences(summaries: Sequence[Row]) -> str:
    models = dict.fromkeys(row["model"] for summary in summaries for row in summary["rows"])
    entries = [MODELS[name] for name in models if name in MODELS]
    lines = "".join(
        f'<tr><th scope="row">{escape(e.name)}</th><td class="text">{escape(e.licence)}</td>'
        f'<td class="text">{escape(e.source)}</td><td class="text">{escape(e.description)}</td></tr>'
        for e in entries
    )
    if not lines:
        return ""
    names = ("codec", "licence of its weights", "from", "what")
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    return (
        '<section id="licences"><h2>Licences</h2><div class="scroll"><table class="plain"><thead>'
        f"<tr>{head}</tr></thead><tbody>{lines}</tbody></table></div></section>"
    )


def _definitions(summaries: Sequence[Row]) -> str:
    modes: dict[str, str] = {}
    for summary in summaries:
        for row in summary["rows"]:
            for name, value in row["metric"].items():
                modes.setdefault(name.split("/")[0], value["mode"])
    terms = (f"<dt>{_title(definition(name))}</dt><dd>{escape(mode)}</dd>" for name, mode in modes.items())
    return (
        f"<section><details><summary>Definitions</summary><dl>{''.join(terms)}</dl>"
        '<p class="note">↑ higher is better, ↓ lower is better. Definitions: docs/jobs/metrics.md of vokens.</p>'
        "</details></section>"
    )


def _machines(summaries: Sequence[Row]) -> str:
    items = []
    for summary in summaries:
        facts = {**summary["settings"], **summary.get("selection", {}), **summary.get("machine", {})}
        said = "; ".join(f"{name}: {_plain(value)}" for name, value in facts.items() if value is not None)
        items.append(f"<dt>{escape(summary['bench'])}</dt><dd>{escape(said)}</dd>")
    return f"<section><details><summary>How it was measured</summary><dl>{''.join(items)}</dl></details></section>"


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _resource(name: str) -> str:
    return (files("vokens.bench.report") / name).read_text(encoding="utf-8")
