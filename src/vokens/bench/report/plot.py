"""Rate-quality plots as SVG, without a library: a few kilobytes, coloured by the page's style sheet.

Bit rates span three decades, so the axis is logarithmic. Coordinates are rounded to a tenth of a pixel, so that the
bytes are deterministic.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

WIDTH, HEIGHT = 440, 300  # of the view box
COLORS = 8  # of the page's style sheet
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 14, 14, 40  # margins


@dataclass(frozen=True)
class Point:
    """One row of results: its bit rate (kbit/s), its value and, if any, its interval."""

    label: str
    rate: float
    value: float
    interval: tuple[float, float] | None = None


def rate_plot(
    series: Mapping[str, Sequence[Point]], title: str, digits: int, ceiling: float | None = None
) -> str:
    """An <svg> of codecs at several rates, coloured in turn. ceiling: of the recordings themselves, a dashed line."""
    points = [point for some in series.values() for point in some]
    values = [point.value for point in points] + ([] if ceiling is None else [ceiling])
    rates = [point.rate for point in points]
    if not points:
        return ""
    across = _Log(min(rates), max(rates), _LEFT, WIDTH - _RIGHT)
    up = _Linear(min(values), max(values), HEIGHT - _BOTTOM, _TOP)
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)} against bit rate">']
    parts += _grid(across, up)
    if ceiling is not None:
        y = up(ceiling)
        parts.append(
            f'<line class="ceiling" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}">'
            f"<title>the recordings themselves: {ceiling:.{digits}f}</title></line>"
        )
    for place, (name, some) in enumerate(series.items()):
        parts += _series(name, place % COLORS, some, across, up, digits) if some else []
    return "".join([*parts, "</svg>"])


def _series(
    name: str, color: int, some: Sequence[Point], across: "_Log", up: "_Linear", digits: int
) -> list[str]:
    points = sorted(some, key=lambda point: point.rate)
    path = " ".join(f"{across(p.rate):.1f},{up(p.value):.1f}" for p in points)
    parts = [f'<g class="series c{color}" data-series="{escape(name)}">']
    if len(points) > 1:
        parts.append(f'<polyline points="{path}"/>')
    for point in points:
        x, y = across(point.rate), up(point.value)
        said = f"{point.label}: {point.value:.{digits}f} at {point.rate:.2f} kbit/s"
        if point.interval is not None:
            low, high = (up(value) for value in point.interval)
            said += f" (95 %: {point.interval[0]:.{digits}f} to {point.interval[1]:.{digits}f})"
            parts.append(f'<line class="interval" x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>')
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5"><title>{escape(said)}</title></circle>')
    return [*parts, "</g>"]


def _grid(across: "_Log", up: "_Linear") -> list[str]:
    parts = []
    for value in up.ticks():
        y = up(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value in across.ticks():
        x, y = across(value), HEIGHT - _BOTTOM
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{y}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{y + 17}" text-anchor="middle">{value:g}</text>')
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    parts.append(f'<text class="tick" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">kbit/s</text>')
    return parts


class _Linear:
    """Values to pixels, with a margin of a twentieth at both ends."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        margin = 0.06 * (high - low) or 0.5 * abs(high) or 1.0
        self._low, self._high, self._start, self._end = low - margin, high + margin, start, end

    def __call__(self, value: float) -> float:
        share = (value - self._low) / (self._high - self._low)
        return self._start + min(max(share, 0.0), 1.0) * (self._end - self._start)

    def ticks(self) -> list[float]:
        """About five round numbers."""
        rough = (self._high - self._low) / 5
        power = 10.0 ** floor(log10(rough))
        step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough)
        first, last = ceil(self._low / step), floor(self._high / step)
        return [round(k * step, 10) for k in range(first, last + 1)]


class _Log(_Linear):
    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        super().__init__(log10(low), log10(high), start, end)

    def __call__(self, value: float) -> float:
        return super().__call__(log10(value))

    def ticks(self) -> list[float]:
        """1, 2 and 5 of every decade within the range."""
        powers = range(floor(self._low), ceil(self._high) + 1)
        every = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
        return [value for value in every if self._low <= log10(value) <= self._high]
