"""The page in a real browser: by mouse and by keyboard, wide and on a phone, for eyes and for screen readers.

Needs playwright and Debian's chromium; skipped where they are not installed.
"""

import shutil
from functools import partial

import pytest
import soundfile
from conftest import speechlike

import vokens

pytest.importorskip("gradio")
pytest.importorskip("uvicorn")
pytest.importorskip("httpx")
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("the page in a browser needs chromium: apt-get install chromium", allow_module_level=True)

from serving import serving, wait_for  # noqa: E402 (after the packages that it needs)
from speakers import tiny_s3gen, tiny_speech  # noqa: E402

from vokens.web.page import create_app  # noqa: E402

PATIENCE = 90_000  # ms: the machine may be busy

# Visible texts whose contrast is under WCAG's 4.5 to 1 (3 to 1 from 24 px), with their ratio.
PALE = r"""() => {
  const rgba = text => { const [r, g, b, a = 1] = text.match(/[\d.]+/g).map(Number); return {c: [r, g, b], a}; };
  const light = c => { const [r, g, b] = c.map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const over = (top, below) => top.c.map((v, i) => v * top.a + below[i] * (1 - top.a));
  const ground = one => { if (!one) return [255, 255, 255];
    const own = rgba(getComputedStyle(one).backgroundColor);
    return own.a === 1 ? own.c : over(own, ground(one.parentElement)); };
  const pale = [];
  for (const one of document.querySelectorAll("body *")) {
    const text = [...one.childNodes].filter(n => n.nodeType === 3).map(n => n.data.trim()).join("");
    if (!text || one.disabled || !one.checkVisibility({opacityProperty: true, visibilityProperty: true})) continue;
    if (one.getBoundingClientRect().width < 2) continue;
    const style = getComputedStyle(one), below = ground(one);
    const lights = [light(over(rgba(style.color), below)), light(below)];
    const ratio = (Math.max(...lights) + 0.05) / (Math.min(...lights) + 0.05);
    if (ratio < (parseFloat(style.fontSize) >= 24 ? 3 : 4.5)) pale.push(`${text.slice(0, 40)}: ${ratio.toFixed(2)}`);
  }
  return pale;
}"""
# Visible controls without a name, or whose name leaves out the words that they show.
MISNAMED = r"""() => [...document.querySelectorAll("button, a[href], input, select, textarea, audio")].filter(one => {
  if (!one.checkVisibility() || one.type === "file") return false;
  const words = text => (text || "").toLowerCase().match(/[\p{L}\p{N}]+/gu) || [];
  const text = words(one.innerText), label = words(one.getAttribute("aria-label") || one.title);
  if (label.length) return !text.every(word => label.includes(word));
  return !(text.length || one.labels?.length || one.querySelector("[aria-label], [title], img[alt]"));
}).map(one => one.outerHTML)"""


@pytest.fixture(scope="module")
def address():
    models = {"mini": vokens.load("mini"), "tts": tiny_speech(), "s3gen": tiny_s3gen()}
    with serving(create_app(models, max_seconds=10)) as client:
        yield str(client.base_url)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as found:
        options = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
        browser = found.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address):
    tab = browser.new_page(viewport={"width": 1280, "height": 1500})
    tab.set_default_timeout(PATIENCE)
    tab.goto(address)
    tab.wait_for_selector("#go")
    yield tab
    tab.close()


def upload(page, path, place="#recording"):
    page.set_input_files(f"{place} input[type=file]", path)
    page.wait_for_selector(f"{place} canvas, {place} #waveform, {place} audio", state="attached")


def try_sample(page):
    page.get_by_role("button", name="English sample").first.click()
    page.wait_for_selector("#recording canvas, #recording #waveform, #recording audio", state="attached")
    page.click("#go")
    page.wait_for_selector(".result img")


def bit_rate(page):
    return page.locator(".numbers dd").first.inner_text()


wait_until = partial(wait_for, seconds=PATIENCE / 1000)


def test_upload_listen_and_take_home(page, tmp_path):
    soundfile.write(tmp_path / "speech.wav", speechlike(24000), 16000)
    upload(page, tmp_path / "speech.wav")
    page.click("#go")
    page.wait_for_selector(".result img")
    assert bit_rate(page) == "4.00 kbit/s"
    page.wait_for_function("document.querySelector('.result img').naturalWidth == 1600")
    page.wait_for_function("Math.abs(document.querySelector('.result audio').duration - 1.5) < 0.01")
    page.evaluate("document.querySelector('.result audio').currentTime = 1")
    page.wait_for_function("document.querySelector('.result audio').currentTime == 1")

    with page.expect_download() as saved:
        page.locator(".tokens-down").click()
    assert saved.value.suggested_filename == "speech.vok"
    saved.value.save_as(tmp_path / "speech.vok")
    tokens = vokens.Tokens.load(tmp_path / "speech.vok")
    assert tokens.codes.equal(vokens.load("mini").encode(tmp_path / "speech.wav").codes)

    page.get_by_role("tab", name="Token files").click()
    page.set_input_files("#tokens input[type=file]", tmp_path / "speech.vok")
    wait_until(lambda: page.locator(".result img:visible").count() == 1)


def test_the_keyboard_alone_moves_the_codebooks_and_the_sound_follows(page):
    try_sample(page)
    sound = page.locator(".result audio").get_attribute("src")
    page.locator("#codebooks input[type=range]").focus()
    for _ in range(6):
        page.keyboard.press("ArrowLeft")
    wait_until(lambda: bit_rate(page) == "1.00 kbit/s")
    assert page.locator(".result audio").get_attribute("src") != sound
    box = page.locator("#codebooks input[type=number]")
    box.focus()
    page.keyboard.press("Backspace")  # an empty box changes nothing
    page.keyboard.type("4")
    page.keyboard.press("Enter")
    wait_until(lambda: bit_rate(page) == "2.00 kbit/s")
    box.fill("99")  # the nearest that there is
    wait_until(lambda: bit_rate(page) == "4.00 kbit/s")
    assert page.locator(".toast-body").count() == 0


def test_wrong_and_long_files_get_a_note(page, tmp_path):
    page.click("#go")
    page.get_by_text("press a sample").wait_for()
    soundfile.write(tmp_path / "long.wav", speechlike(16000 * 12), 16000)
    upload(page, tmp_path / "long.wav")
    page.click("#go")
    page.get_by_text("longer than 10 s").wait_for()
    page.get_by_role("tab", name="Token files").click()
    (tmp_path / "<b>words.vok").write_bytes(b"no tokens")
    page.set_input_files("#tokens input[type=file]", tmp_path / "<b>words.vok")
    note = page.locator(".toast-body", has_text="not a token file")
    note.wait_for()
    assert "words.vok" in note.inner_text()
    assert "/" not in note.inner_text()  # no folder of ours


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_can_be_read_on_a_phone_and_by_screen_readers(page, address, theme):
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(f"{address}/?__theme={theme}")
    try_sample(page)
    page.wait_for_function("document.querySelector('.result img').naturalWidth == 800")  # the narrow picture
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    boxes = [page.locator(f".result {part}").bounding_box() for part in (".sound", ".numbers", "img")]
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= 390 and box["width"] > 250 for box in boxes)
    assert boxes[0]["y"] + boxes[0]["height"] <= boxes[1]["y"]  # one under the other
    assert page.get_by_role("button", name="Share").count() == 0
    page.mouse.move(0, 0)
    wait_until(lambda: page.evaluate(PALE) == [])  # colours of buttons fade
    assert page.evaluate(MISNAMED) == []


def test_a_text_plays_while_it_is_computed(page, tmp_path):
    page.get_by_role("tab", name="Say a text").click()
    page.fill("#text textarea", "Good morning, dear reader.")
    page.click("#say")
    page.get_by_text("needs a voice").wait_for()
    soundfile.write(tmp_path / "voice.wav", speechlike(48000), 16000)
    upload(page, tmp_path / "voice.wav", "#voice")
    page.click("#say")
    page.wait_for_selector(".player audio", state="attached")
    played = "document.querySelector('.player audio').currentTime > 0.1"
    page.wait_for_function(played)


def test_what_is_said_plays_in_another_voice(page, tmp_path):
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
