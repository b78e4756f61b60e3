"""The page in a real browser: upload, listen, move the slider, take tokens home, bring them back, hear a text.

Needs playwright and Debian's chromium; skipped where they are not installed.
"""

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile
from conftest import speechlike

import vokens

pytest.importorskip("gradio")
uvicorn = pytest.importorskip("uvicorn")
playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium")

from speakers import tiny_s3gen, tiny_speech  # noqa: E402 (after the packages that it needs)

from vokens.web.page import create_app  # noqa: E402

PATIENCE = 90_000  # ms: the machine may be busy


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    models = {"mini": vokens.load("mini"), "tts": tiny_speech(), "s3gen": tiny_s3gen()}
    app = create_app(models, max_seconds=10)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
        assert thread.is_alive()
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(30)


@pytest.fixture
def page(address: str) -> Iterator[Any]:
    with playwright.sync_playwright() as found:
        options = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
        browser = found.chromium.launch(executable_path=CHROMIUM, args=options)
        tab = browser.new_page(viewport={"width": 1280, "height": 1500})
        tab.set_default_timeout(PATIENCE)
        tab.goto(address)
        tab.wait_for_selector("#go")
        yield tab
        browser.close()


def upload(page: Any, path: Path, place: str = "#recording") -> None:
    page.set_input_files(f"{place} input[type=file]", path)
    page.wait_for_selector(f"{place} canvas, {place} #waveform, {place} audio", state="attached")


def bit_rate(page: Any) -> str:
    return page.locator(".numbers div").first.locator("span").last.inner_text()


def wait_until(condition: Any) -> None:
    end = time.monotonic() + PATIENCE / 1000
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_upload_listen_slide_and_download(page: Any, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "speech.wav", speechlike(24000), 16000)
    upload(page, tmp_path / "speech.wav")
    page.click("#go")
    page.wait_for_selector(".picture img")
    assert bit_rate(page) == "4.00 kbit/s"
    assert page.evaluate("document.querySelector('.picture img').naturalWidth") > 1000

    slider = page.locator("#codebooks input[type=range]")
    slider.focus()
    for _ in range(6):
        page.keyboard.press("ArrowLeft")
    slider.dispatch_event("pointerup")
    wait_until(lambda: bit_rate(page) == "1.00 kbit/s")

    with page.expect_download() as saved:
        page.locator(".tokens-down").last.click()
    saved.value.save_as(tmp_path / "speech.vok")
    tokens = vokens.Tokens.load(tmp_path / "speech.vok")
    assert tokens.num_codebooks == 2
    expected = vokens.load("mini").encode(tmp_path / "speech.wav", num_codebooks=2)
    assert tokens.codes.equal(expected.codes)

    page.get_by_role("tab", name="Token files").click()
    page.set_input_files("#tokens input[type=file]", tmp_path / "speech.vok")
    wait_until(lambda: page.locator(".picture img:visible").count() == 1)


def test_wrong_and_long_files_get_a_note(page: Any, tmp_path: Path) -> None:
    page.click("#go")
    page.get_by_text("record or upload something first").wait_for()
    soundfile.write(tmp_path / "long.wav", speechlike(16000 * 12), 16000)
    upload(page, tmp_path / "long.wav")
    page.click("#go")
    page.get_by_text("longer than 10 s").wait_for()


def test_a_text_plays_while_it_is_computed(page: Any, tmp_path: Path) -> None:
    page.get_by_role("tab", name="Say a text").click()
    page.fill("#text textarea", "Good morning, dear reader.")
    page.click("#say")
    page.get_by_text("speaks in a voice").wait_for()
    soundfile.write(tmp_path / "voice.wav", speechlike(48000), 16000)
    upload(page, tmp_path / "voice.wav", "#voice")
    page.click("#say")
    page.wait_for_selector(".player audio", state="attached")
    played = "document.querySelector('.player audio').currentTime > 0.1"
    page.wait_for_function(played)


def test_what_is_said_plays_in_another_voice(page: Any, tmp_path: Path) -> None:
    page.get_by_role("tab", name="Convert a voice").click()
    soundfile.write(tmp_path / "said.wav", speechlike(24000), 16000)
    soundfile.write(tmp_path / "voice.wav", speechlike(48000, seed=1), 16000)
    upload(page, tmp_path / "said.wav", "#source")
    page.click("#convert")
    page.get_by_text("the voice, too").wait_for()
    upload(page, tmp_path / "voice.wav", "#target")
    page.click("#convert")
    page.wait_for_selector(".player audio", state="attached")
    page.wait_for_function("document.querySelector('.player audio').currentTime > 0.1")
