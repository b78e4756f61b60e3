"""Figure of a run's tokens: durations, entropy and usage of each codebook, and drift of shards."""

from typing import TYPE_CHECKING, Any

import numpy as np

from vokens.corpus.health import threshold
from vokens.corpus.inspect import Findings
from vokens.data.items import CodecInfo
from vokens.picture import BLUE, FAINT, ORANGE, THEME, matplotlib_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LEGEND: dict[str, Any] = {"frameon": False, "loc": "upper right", "ncols": 2}
_ROOM = 1.2  # of the highest value, for the legend above the data


def statistics_figure(findings: Findings, facts: CodecInfo, name: str) -> "Figure":
    """Four panels, 1600 x 1000 pixels. Raises MissingExtra without matplotlib."""
    matplotlib, figure_type = matplotlib_figure()
    with matplotlib.rc_context(THEME):
        figure = figure_type(figsize=(16, 10), dpi=100, layout="constrained")
        axes = figure.subplots(2, 2)
        _durations(axes[0, 0], findings)
        _bits(axes[0, 1], findings, facts)
        _histogram(axes[1, 0], findings)
        if len(findings.drift) > 1:
            _drift(axes[1, 1], findings)
        else:
            _use(axes[1, 1], findings, facts)
        hours = findings.seconds / 3600
        figure.suptitle(
            f"{name}: {facts.model}, {findings.utterances} utterances, {hours:.2f} h, {findings.done} of "
            f"{findings.shards} shards, {findings.failures} failures",
            x=0.01,
            ha="left",
            fontweight="bold",
        )
    return figure


def _durations(axes: "Axes", findings: Findings) -> None:
    axes.hist(findings.durations or [0.0], bins=50, color=BLUE)
    axes.set(title="Durations", xlabel="seconds", ylabel="utterances")


def _bits(axes: "Axes", findings: Findings, facts: CodecInfo) -> None:
    bits = findings.entropies
    books = np.arange(1, len(facts.codebook_sizes) + 1)
    axes.bar(books, np.log2(facts.codebook_sizes), color=FAINT, label="log2 of its size")
    axes.bar(books[: len(bits)], bits, color=BLUE, label="entropy, mean over shards")
    for book, value in zip(books, bits, strict=False):
        axes.text(float(book), value, f"{value:.1f}", ha="center", va="top", color="white")
    top = _ROOM * float(np.log2(max(facts.codebook_sizes)))
    axes.set(title="Bits per token by codebook", xlabel="codebook", xticks=books, ylim=(0, top))
    axes.legend(**_LEGEND)


def _histogram(axes: "Axes", findings: Findings) -> None:
    rows = [np.array(facts["histogram"][0]) for facts in findings.health.values() if facts["histogram"]]
    counts = np.sum(rows, axis=0) if rows else np.zeros(1)
    axes.bar(np.arange(len(counts)), counts / max(1, counts.sum()), width=1.0, color=BLUE)
    axes.set(title="First codebook", xlabel=f"codes in {len(counts)} bins of neighbours", ylabel="share")


def _drift(axes: "Axes", findings: Findings) -> None:
    drift = findings.drift
    shards = sorted(drift)
    total = findings.utterances
    limits = [threshold(max(1, findings.sizes[s]), max(1, total - findings.sizes[s])) for s in shards]
    values = [drift[shard] for shard in shards]
    colors = [ORANGE if value > limit else BLUE for value, limit in zip(values, limits, strict=True)]
    axes.scatter(shards, values, color=colors, s=18)
    axes.plot(shards, limits, color=ORANGE, linewidth=1, label="a warning above it")
    top = _ROOM * max(*values, *limits)
    axes.set(title="Shards against all others", xlabel="shard", ylabel="divergence in bits", ylim=(0, top))
    axes.legend(**_LEGEND)
    axes.locator_params(axis="x", integer=True)


def _use(axes: "Axes", findings: Findings, facts: CodecInfo) -> None:
    """Usage of each codebook, drawn for a single shard, which has no drift."""
    rows = [health["used"] for health in findings.health.values() if health["used"]]
    books = np.arange(1, len(facts.codebook_sizes) + 1)
    axes.bar(books, 100 * np.mean(rows, axis=0) if rows else 0 * books, color=BLUE)
    axes.set(
        title="Entries that occur, by codebook", xlabel="codebook", xticks=books, ylabel="%", ylim=(0, 100)
    )
