"""The page of a folder of results: whole, without outside resources, escaped, and the same from the same results."""

import csv
import io
import json
import re
import struct
import zlib
from base64 import b64decode
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import refused
from report_folder import RATES, write_results

from vokens import registry
from vokens.bench.options import Report
from vokens.bench.report.page import run
from vokens.bench.report.plot import Point, rate_plot
from vokens.bench.report.samples import png
from vokens.errors import ConfigError


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, tiny_codec_folder: Path) -> Path:
    return write_results(tmp_path_factory.mktemp("results"), tiny_codec_folder)


@pytest.fixture(scope="module")
def html(results: Path) -> str:
    assert run(Report(folder=results, seconds=1.0)) == 0
    return (results / "report.html").read_text(encoding="utf-8")


def test_the_page_stands_alone(html) -> None:
    addresses = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert addresses
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert "http" not in re.sub(r'data:[^"]*', "", html)
    assert "@import" not in html
    assert "as &lt;defined&gt;" in html
    assert "<defined>" not in html
    assert html.count("<table") >= 3


def test_the_same_results_give_the_same_bytes(results, html, tmp_path) -> None:
    for place in ("a", "b"):
        run(Report(folder=results, out=tmp_path / place / "report.html", seconds=1.0))
    for suffix in ("html", "csv", "md", "json"):
        first, second = (tmp_path / place / f"report.{suffix}" for place in ("a", "b"))
        assert first.read_bytes() == second.read_bytes() == (results / f"report.{suffix}").read_bytes()


def test_every_row_is_heard(results, html) -> None:
    """The recording and what each row makes of it, of its length, and unlike each other."""
    sounds = [b64decode(actual) for actual in re.findall(r"data:audio/flac;base64,([^\"]*)", html)]
    pictures = re.findall(r"data:image/png;base64,", html)
    rows = json.loads((results / "reconstruct.json").read_text())["rows"]
    opens = [row for row in rows if row["row"] != "opus-6" or not registry.lacking(registry.get("opus-6"))]
    assert len(rows) == len(RATES)
    assert len(sounds) == len(pictures) == 2 * len(opens)
    waves = [soundfile.read(io.BytesIO(sound))[0] for sound in sounds[: len(opens)]]
    assert len({len(wave) for wave in waves}) == 1
    assert all(not np.array_equal(waves[0], wave) for wave in waves[1:])


def test_csv_has_every_number(results, html) -> None:
    lines = list(csv.DictReader((results / "report.csv").open()))
    assert len(lines) == 3 * len(RATES) + 2
    actual = {(line["row"], line["number"]): line for line in lines if line["bench"] == "reconstruct"}
    assert float(actual["opus-6", "bitrate"]["value"]) == 6.0
    assert float(actual["opus-6", "bitrate"]["low"]) == 5.95
    assert any(line["value"] == "" for line in lines)  # a number that is not known


def test_markdown_and_json_hold_the_same(results, html) -> None:
    assert (results / "report.md").read_text().count("# ") == 2
    assert [one["bench"] for one in json.loads((results / "report.json").read_text())["results"]] == [
        "reconstruct",
        "robust",
    ]


def test_without_sounds_nothing_is_decoded(results, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("vokens.load", None)
    run(Report(folder=results, out=tmp_path / "page.html", samples=0))
    assert "data:audio" not in (tmp_path / "page.html").read_text()


def test_a_recording_that_cannot_be_read_is_not_heard(tiny_codec_folder, tmp_path) -> None:
    folder = write_results(tmp_path, tiny_codec_folder)
    (tmp_path / "audio" / "0.wav").write_text("<html>")
    assert run(Report(folder=folder, seconds=1.0, samples=3)) == 0
    text = (folder / "report.html").read_text()
    assert (text.count("<h3>0.wav"), text.count("<h3>1.wav"), text.count("<h3>2.wav")) == (0, 1, 1)


def test_a_corpus_that_has_gone_leaves_the_tables(results, tmp_path) -> None:
    folder = tmp_path / "moved"
    folder.mkdir()
    summary = json.loads((results / "reconstruct.json").read_text())
    summary["settings"]["data"] = "/nowhere/manifest.jsonl"
    (folder / "reconstruct.json").write_text(json.dumps(summary))
    run(Report(folder=folder))
    text = (folder / "report.html").read_text()
    assert "<table" in text
    assert "data:audio" not in text


def test_what_is_no_results_is_refused(tmp_path) -> None:
    refused(ConfigError, "no finished results", lambda: run(Report(folder=tmp_path)))
    (tmp_path / "reconstruct.json").write_text("{")
    refused(ConfigError, "damaged", lambda: run(Report(folder=tmp_path)))


def test_pictures_are_png() -> None:
    shades = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    data = png(shades)
    assert struct.unpack(">II", data[16:24]) == (4, 3)
    start = data.index(b"IDAT") + 4
    lines = zlib.decompress(data[start:])
    assert lines == b"".join(b"\0" + line.tobytes() for line in shades)


def test_points_lie_where_their_numbers_say() -> None:
    """Rate to the right, on a logarithmic axis; quality upwards."""
    points = tuple(Point(str(rate), rate, value) for rate, value in ((1.0, 0.2), (10.0, 0.5), (100.0, 0.8)))
    drawn = rate_plot({"a": points}, "STOI", 2)
    places = [(float(x), float(y)) for x, y in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', drawn)]
    assert places[1][0] - places[0][0] == pytest.approx(places[2][0] - places[1][0], abs=0.2)
    assert places[0][1] - places[1][1] == pytest.approx(places[1][1] - places[2][1], abs=0.2)
    assert places[0][1] > places[1][1]
    assert "0.50 at 10.00 kbit/s" in drawn
