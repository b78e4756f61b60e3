"""Pictures: their size, their axes (seconds, Hz, codebooks), and that they show what they are given."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import refused

from vokens.errors import ConfigError, MissingExtra
from vokens.picture import log_mel, roundtrip_figure, save_figure
from vokens.tokens import Tokens

pytest.importorskip("matplotlib")
RATE, HOP = 16000, 320


def tone(seconds: float, hz: float = 1000.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def tokens_of(
    num_samples: int, sizes: tuple[int, ...] = (1024,) * 8, first: int = 0, items: int = 1
) -> Tokens:
    frames = -(-num_samples // HOP)
    generator = torch.Generator().manual_seed(0)
    codes = [torch.randint(0, size, (items, 1, frames), generator=generator) for size in sizes]
    counts = torch.full((items,), num_samples)
    return Tokens(
        torch.cat(codes, 1), torch.full((items,), frames), counts, "mini", "", RATE, RATE / HOP, sizes, first
    )


def test_png_of_1600_by_1000(tmp_path: Path) -> None:
    from matplotlib.image import imread

    wave = tone(0.5)
    save_figure(roundtrip_figure(wave, wave, tokens_of(len(wave)), "a.wav"), tmp_path / "new/p.png")
    assert imread(tmp_path / "new/p.png").shape[:2] == (1000, 1600)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["p.png"]


def test_all_panels_share_the_time_of_the_recording() -> None:
    wave = tone(0.73)
    figure = roundtrip_figure(wave, 0.5 * wave, tokens_of(len(wave)), "a.wav")
    panels = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
    assert len(panels) == 6
    for axes in panels:
        assert axes.get_xlim() == pytest.approx((0.0, 0.73))
    strip = next(axes for axes in panels if axes.get_ylabel() == "codebook")
    assert strip.images[0].get_extent()[1] == pytest.approx(37 / 50)  # 37 frames of 20 ms reach beyond 0.73 s
    assert strip.images[0].get_array().shape == (8, 37)
    assert "a.wav: mini, codebooks 1-8, 4.00 kbit/s" in figure.get_suptitle()


def test_a_tone_lies_at_its_frequency() -> None:
    """The brightest row of a 1 kHz tone is drawn at the height labelled 1,000 Hz, within half a band."""
    wave = tone(0.5, 1000.0)
    figure = roundtrip_figure(wave, wave, tokens_of(len(wave)))
    axes = next(axes for axes in figure.axes if axes.get_ylabel() == "frequency (Hz)")
    image = axes.images[0]
    _, _, low, high = image.get_extent()
    bands = image.get_array()
    row = int(np.argmax(bands[:, bands.shape[1] // 2]))
    height = low + (row + 0.5) * (high - low) / len(bands)
    ticks = zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)
    labels = {text.get_text(): tick for tick, text in ticks}
    assert abs(height - labels["1,000"]) <= 0.5 * (high - low) / len(bands)


def test_level_is_in_decibels() -> None:
    wave = tone(0.5)
    middle = slice(20, -20)
    change = log_mel(0.1 * wave, RATE)[:, middle].max() - log_mel(wave, RATE)[:, middle].max()
    assert change == pytest.approx(-20.0, abs=0.01)


def test_later_codebooks_keep_their_numbers() -> None:
    wave = tone(0.3)
    figure = roundtrip_figure(wave, wave, tokens_of(len(wave), (1024,) * 7, first=1))
    strip = next(axes for axes in figure.axes if axes.get_ylabel() == "codebook")
    assert list(strip.get_yticks()) == [2, 3, 4, 5, 6, 7, 8]
    assert "codebooks 2-8, 3.50 kbit/s" in figure.get_suptitle()


@pytest.mark.parametrize("wave", [tone(1 / RATE), tone(0.01), tone(90.0), 0 * tone(0.25)], ids=len)
def test_any_length_with_few_columns_and_silence(wave: np.ndarray, tmp_path: Path) -> None:
    assert log_mel(wave, RATE).shape[1] < 3000
    save_figure(roundtrip_figure(wave, wave, tokens_of(len(wave), (8, 2048))), tmp_path / "p.png")


def test_several_items_are_refused() -> None:
    wave = tone(0.1)
    refused(ConfigError, "hold 2", lambda: roundtrip_figure(wave, wave, tokens_of(len(wave), items=2)))


def test_missing_matplotlib_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    wave = tone(0.1)
    refused(MissingExtra, r"pip install .*\[plot\]", roundtrip_figure, wave, wave, tokens_of(len(wave)))
