"""Pictures of speech and its tokens: waveforms, log-mels in Hz, and the tokens as a strip aligned to them.

Needs matplotlib (extra `plot`). Figures are built without pyplot: no backend is chosen for the caller.
Mels are drawn on the linear mel axis; only the ticks are at round frequencies.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from math import log2
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vokens.atomic import atomic_write
from vokens.audio.mel import LogMel, MelConfig, hz_to_mel
from vokens.errors import ConfigError, needs_extra
from vokens.tokens import Tokens

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDE, _NARROW = 16.0, 5.0  # inches
_DPI, _FINE = 100, 160  # dots per inch, and those of a phone
_TITLE = 32  # letters in a line of a narrow picture
INK, FAINT, BLUE, ORANGE = "#22272e", "#d5d9df", "#2563a8", "#c2571a"
PICTURES = (".png", ".svg", ".pdf")
THEME = {
    "font.size": 13,
    "axes.titlesize": 14,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.edgecolor": FAINT,
    **dict.fromkeys(("axes.spines.top", "axes.spines.right"), False),
    **dict.fromkeys(("axes.labelcolor", "text.color", "xtick.color", "ytick.color"), INK),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "white"),
}
_MEL_BANDS = 80
_DYNAMIC_RANGE = 70.0  # dB below the loudest band
_DIFFERENCE_RANGE = 30.0  # dB
# About the width of a panel in pixels: longer recordings get wider frames and a min/max envelope.
_COLUMNS = 1500
_IMAGE: dict[str, Any] = {"aspect": "auto", "interpolation": "nearest"}
_TICKS_HZ = (0, 250, 500, 1000, 2000, 4000, 8000, 16000)


def roundtrip_figure(
    original: np.ndarray, decoded: np.ndarray, tokens: Tokens, name: str = "", narrow: bool = False
) -> "Figure":
    """Original and resynthesis side by side, with the tokens and the difference below them.

    original, decoded: (T,) at tokens.sample_rate; tokens: one item. 1600 x 1000 pixels; narrow: one column of
    800 x 2080, for a phone.
    Raises MissingExtra without matplotlib, ConfigError when tokens hold several items.
    """
    if len(tokens) != 1:
        raise ConfigError(f"a picture shows one recording, the tokens hold {len(tokens)}: give tokens[i]")
    rate = tokens.sample_rate
    before, after = log_mel(original, rate), log_mel(decoded, rate)
    frames = min(before.shape[1], after.shape[1])
    loudest = float(before.max())
    heights, columns, size = [0.75, 1.5, 1.15], 2, (_WIDE, 10.0)
    if narrow:
        heights, columns, size = heights * 2, 1, (_NARROW, 13.0)
    with _panels(heights, columns, size, _headline(tokens, name)) as (figure, panels):
        wave, mel, strip, wave_after, mel_after, changes = panels
        peak = max(float(np.abs(one).max(initial=1e-3)) for one in (original, decoded))
        draw_wave(wave, original, rate, peak, BLUE)
        draw_wave(wave_after, decoded, rate, peak, ORANGE)
        wave.set_title("Original")
        wave_after.set_title("Resynthesis")
        draw_mel(mel, before, rate, len(original) / rate, loudest)
        image = draw_mel(mel_after, after, rate, len(decoded) / rate, loudest)
        draw_tokens(strip, tokens)
        seconds = min(len(original), len(decoded)) / rate
        change = draw_change(changes, after[:, :frames] - before[:, :frames], rate, seconds)
        figure.colorbar(image, ax=mel_after, label="level (dB)", pad=0.01, aspect=25)
        figure.colorbar(change, ax=changes, label="change (dB)", pad=0.01, aspect=20)
        if not narrow:
            for axes in panels[3:]:
                axes.set_ylabel("")  # that of the left column
        wave.set_xlim(0, max(len(original), len(decoded)) / rate or 1.0)
    return figure


def tokens_figure(wave: np.ndarray, tokens: Tokens, name: str = "", narrow: bool = False) -> "Figure":
    """A wave (T,) decoded from the one item of tokens: its mel and the aligned tokens.

    1600 x 800 pixels; narrow: 800 x 960. Raises MissingExtra without matplotlib.
    """
    rate = tokens.sample_rate
    mel = log_mel(wave, rate)
    size = (_NARROW, 6.0) if narrow else (_WIDE, 8.0)
    with _panels([1, 1], 1, size, _headline(tokens, name)) as (figure, (above, below)):
        draw_mel(above, mel, rate, len(wave) / rate, float(mel.max()))
        draw_tokens(below, tokens)
        above.set_xlim(0, len(wave) / rate or 1.0)
    return figure


@contextmanager
def _panels(
    heights: list[float], columns: int, size: tuple[float, float], headline: str
) -> Iterator[tuple["Figure", list["Axes"]]]:
    """A new figure and its axes, column by column, over one time axis; narrow figures get titles of several lines."""
    matplotlib, figure_type = matplotlib_figure()
    width, dpi = (_TITLE, _FINE) if size[0] == _NARROW else (1000, _DPI)
    with matplotlib.rc_context(THEME):
        figure = figure_type(figsize=size, dpi=dpi, layout="constrained")
        figure.get_layout_engine().set(h_pad=0.08, hspace=0.02, wspace=0.03)
        grid = figure.subplots(len(heights), columns, sharex=True, squeeze=False, height_ratios=heights).T
        yield figure, list(grid.ravel())
        figure.suptitle(fill(headline, width), x=0.012, ha="left", fontsize=18, fontweight="bold")
        for axes in grid.ravel():
            axes.set_title(fill(axes.get_title(loc="left"), width))
        for column in grid:
            column[-1].set_xlabel("time (s)")
            figure.align_ylabels(column)


def check_picture(path: str | Path) -> None:
    """Raise ConfigError for an unknown suffix, MissingExtra without matplotlib, before any work is done."""
    if Path(path).suffix.lower() not in PICTURES:
        raise ConfigError(f"a picture {str(path)!r}: end its name in {', '.join(PICTURES)}")
    matplotlib_figure()


def save_figure(figure: "Figure", path: str | Path) -> None:
    """Write a figure; the suffix (.png, .svg, .pdf) chooses the format. Whole or not at all."""
    check_picture(path)
    matplotlib, _ = matplotlib_figure()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(THEME), atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=figure.dpi)


def draw_wave(axes: "Axes", wave: np.ndarray, sample_rate: int, peak: float, color: str = BLUE) -> None:
    """The wave (T,) as its range in each column of pixels, scaled to +-peak."""
    step = max(1, len(wave) // _COLUMNS)
    columns = wave[: len(wave) // step * step].reshape(-1, step)
    time = (np.arange(len(columns)) + 0.5) * step / sample_rate
    axes.fill_between(time, columns.min(1), columns.max(1), color=color, linewidth=0.6)
    axes.set_ylim(-1.05 * peak, 1.05 * peak)
    axes.set_ylabel("amplitude")


def draw_mel(axes: "Axes", mel: np.ndarray, sample_rate: int, seconds: float, loudest: float) -> Any:
    """The log-mel (bands, frames) in dB, from `loudest` down; returns the image."""
    floor = loudest - _DYNAMIC_RANGE
    return _draw_bands(axes, mel, sample_rate, seconds, cmap="magma", vmin=floor, vmax=loudest)


def draw_change(axes: "Axes", change: np.ndarray, sample_rate: int, seconds: float) -> Any:
    """Resynthesis minus original (bands, frames) in dB: red where louder, blue where quieter."""
    axes.set_title("Resynthesis minus original")
    limit = _DIFFERENCE_RANGE
    return _draw_bands(axes, change, sample_rate, seconds, cmap="RdBu_r", vmin=-limit, vmax=limit)


def draw_tokens(axes: "Axes", tokens: Tokens) -> Any:
    """The codes of one item as a heat map: a row per codebook, counted from 1 at the top; returns the image.

    Colour is the token's number as a share of its codebook, so that books of different sizes compare.
    """
    frames, first, count = int(tokens.lengths[0]), tokens.first_codebook + 1, tokens.num_codebooks
    codes = tokens.codes[0, :, :frames].cpu().numpy()  # (K, T)
    largest = max(tokens.codebook_sizes)
    scaled = codes * (np.array([largest / size for size in tokens.codebook_sizes])[:, None])
    extent = (0.0, frames / tokens.frame_rate, first + count - 0.5, first - 0.5)
    image = axes.imshow(scaled, cmap="viridis", vmin=0, vmax=largest - 1, extent=extent, **_IMAGE)
    every = -(-count // 16)  # at most 16 labels
    axes.set_yticks(range(first, first + count, every))
    axes.set_ylabel("codebook")
    last = largest - 1 if len(set(tokens.codebook_sizes)) == 1 else "last"
    axes.set_title(f"Tokens: {frames} frames, {tokens.frame_rate:g} per second (0 dark, {last} bright)")
    for edge in range(first, first + count - 1):
        axes.axhline(edge + 0.5, color="white", linewidth=1.5 if count <= 16 else 0.5)
    return image


def log_mel(wave: np.ndarray, sample_rate: int) -> np.ndarray:
    """Log-mel (80, frames) in dB of wave (T,), on HTK's scale; at most about 1500 frames."""
    hop = max(sample_rate // 200, len(wave) // _COLUMNS)
    n_fft = max(1 << round(log2(0.05 * sample_rate)), 1 << hop.bit_length())
    sizes = sample_rate, n_fft, n_fft, hop, _MEL_BANDS
    config = MelConfig(*sizes, scale="htk", norm=None, center=True, log="log10")
    padded = np.pad(wave, (0, max(0, n_fft // 2 + 1 - len(wave)))).astype(np.float32)
    with torch.inference_mode():
        return 20.0 * LogMel(config)(torch.from_numpy(padded)[None])[0].numpy()


def _draw_bands(axes: "Axes", bands: np.ndarray, sample_rate: int, seconds: float, **colors: Any) -> Any:
    """An image with time in seconds across and mel upwards, the latter labelled in Hz."""
    top = hz_to_mel(sample_rate / 2, "htk")
    spacing = top / (len(bands) + 1)  # band i peaks at (i + 1) spacings
    extent = (0.0, seconds, 0.5 * spacing, top - 0.5 * spacing)
    image = axes.imshow(bands, origin="lower", extent=extent, **_IMAGE, **colors)
    ticks = {hz: mel for hz in _TICKS_HZ if 0.5 * spacing <= (mel := hz_to_mel(hz, "htk")) <= top}
    axes.set_yticks([min(mel, extent[3]) for mel in ticks.values()], [f"{hz:,}" for hz in ticks])
    axes.set_ylabel("frequency (Hz)")
    return image


def _headline(tokens: Tokens, name: str) -> str:
    first, count = tokens.first_codebook + 1, tokens.num_codebooks
    books = f"codebook {first}" if count == 1 else f"codebooks {first}-{first + count - 1}"
    subject = f"{name}: " if name else ""
    return f"{subject}{tokens.model}, {books}, {tokens.bitrate / 1000:.2f} kbit/s"


def matplotlib_figure() -> tuple[Any, Any]:
    """matplotlib and its Figure. Raises MissingExtra."""
    with needs_extra("matplotlib", "plot", "drawing a picture"):
        import matplotlib
        from matplotlib.figure import Figure
    return matplotlib, Figure
