"""The page in a real browser: headless Chromium draws it, plays it, sorts it. Skipped where none is installed."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from report_folder import RATES, write_results

from vokens.bench.options import Report
from vokens.bench.report.page import run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if BROWSER is None:
    pytest.skip("the report in a browser needs chromium: apt-get install chromium", allow_module_level=True)

# Runs in the page after it has loaded, as a reader would use it, and leaves what it found in the document.
_USE = """
addEventListener("load", async () => {
  const found = { errors: window.failures };
  const audio = [...document.querySelectorAll("audio")];
  await Promise.all(audio.map(one => one.readyState ? 0 : new Promise(done => {
    one.onloadedmetadata = one.onerror = done; one.load(); })));
  found.durations = audio.map(one => one.duration);
  const images = [...document.images];
  images.forEach(one => one.loading = "eager");
  await Promise.all(images.map(one => one.decode()));
  found.pictures = images.map(one => one.naturalHeight);
  const table = document.querySelector("#reconstruct table");
  const column = [...table.querySelectorAll("thead th")].findIndex(one => one.textContent.startsWith("PESQ"));
  const head = table.querySelectorAll("thead th")[column];
  const values = () => [...table.tBodies[0].rows].map(row => row.cells[column].textContent);
  found.before = values();
  head.querySelector("button").click();
  found.down = [head.getAttribute("aria-sort"), values()];
  head.querySelector("button").click();
  found.up = [head.getAttribute("aria-sort"), values()];
  const paper = () => getComputedStyle(document.body).backgroundColor;
  found.paper = [paper()];
  document.getElementById("theme").click();
  found.paper.push(paper());
  const chip = document.querySelector(".chip");
  const drawn = () => document.querySelectorAll("svg .series:not(.off)").length;
  found.series = [drawn()];
  chip.click();
  found.series.push(drawn());
  found.overflow = document.documentElement.scrollWidth - innerWidth;
  const out = document.createElement("pre");
  out.id = "found";
  out.textContent = JSON.stringify(found);
  document.body.append(out);
});
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, tiny_codec_folder: Path) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("browser")
    results = write_results(folder, tiny_codec_folder)
    run(Report(folder=results, samples=1, seconds=0.5))
    page = (results / "report.html").read_text(encoding="utf-8")
    watch = "<script>window.failures=[];addEventListener('error',e=>window.failures.push(e.message))</script>"
    page = page.replace("<style>", f"{watch}<style>", 1).replace("</body>", f"<script>{_USE}</script></body>")
    (folder / "used.html").write_text(page, encoding="utf-8")
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--window-size=390,844",
        f"--user-data-dir={folder}/user",
    ]
    done = subprocess.run(
        [str(BROWSER), *options, "--virtual-time-budget=20000", "--dump-dom", str(folder / "used.html")],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    match = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert match, done.stderr[-2000:]
    return json.loads(unescape(match[1]))


def test_a_reader_plays_sorts_and_chooses(found: dict[str, Any]) -> None:
    assert found["errors"] == []
    assert found["durations"] == pytest.approx([0.5] * len(RATES), abs=0.01)
    assert found["pictures"] == [80] * len(RATES)
    known = [text for text in found["before"] if text != "–"]
    assert known == sorted(known)  # as the results have them
    assert found["down"] == ["descending", [*sorted(known, reverse=True), "–"]]
    assert found["up"] == ["ascending", [*sorted(known), "–"]]
    assert len(set(found["paper"])) == 2  # light and dark
    assert found["series"][1] < found["series"][0]  # a codec can be left out of the plots
    assert found["overflow"] <= 0  # on a phone
