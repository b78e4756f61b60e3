"""Robustness of tokens to changes of the audio that keep its words.

Agreement compares frame by frame; unit edit distance (StableToken, 2509.22220) counts edits and so allows for shifts.
Both are computed per codebook, and pooled.
"""

import numpy as np
import torch

from vokens.audio import load, resample
from vokens.bench.options import Robust, split_list
from vokens.bench.report.definitions import metric
from vokens.bench.report.table import Line
from vokens.bench.results import Results, Row
from vokens.bench.tasks.codecs import labels, open_codec, tokens_of
from vokens.bench.tasks.items import find_items
from vokens.bench.tasks.perturb import ALIGNED, RATE, SHIFTS, WARPED, generator
from vokens.data.items import Clip
from vokens.errors import VokensError
from vokens.models.codec import Codec

NEAR = 0.5  # seconds on either side of a seam
Codes = np.ndarray  # (K, T)


def run(options: Robust) -> int:
    """Measure and write the results; returns 1 if some files failed."""
    items = find_items(options)
    rows = []
    with Results(options, "robust", dtypes=options.dtypes) as results:
        for label, source in labels(options).items():
            probe = Probe(label, source, options)
            results.leave_out(probe.notes)
            row = Row(label, label, probe.codec.fingerprint)
            lines = results.measure(row, items, probe.measure)
            rows.append(summary_row(row, probe.codec.num_codebooks, lines))
        return results.finish(rows)


class Probe:
    """A codec, also in other precisions."""

    def __init__(self, label: str, source: str, options: Robust) -> None:
        self.codec = open_codec(source, options)
        self.notes: dict[str, str] = {}
        self._label, self._options = label, options
        self._others: dict[str, Codec] = {}
        for dtype in split_list(options.dtypes):
            try:
                self._others[dtype] = open_codec(source, options, dtype)
            except VokensError as error:
                self.notes[f"{label} in {dtype}"] = str(error)

    def measure(self, item: Clip) -> Line:
        """Equal tokens and edits per change and codebook of one recording."""
        wave, _ = load(item.path, RATE)
        whole = resample(wave, RATE, self.codec.sample_rate)
        clean = tokens_of(self.codec, self._label, item, whole, self._options).codes[0].numpy()
        equal: dict[str, list[int]] = {}
        of: dict[str, int] = {}
        edits: dict[str, list[int]] = {}

        def compare(name: str, here: Codes, there: Codes) -> None:
            span = min(here.shape[1], there.shape[1])
            equal[name] = (here[:, :span] == there[:, :span]).sum(1).tolist()
            of[name] = span

        for name, change in (ALIGNED | WARPED).items():
            changed = _codes(self.codec, change(wave, generator(self._options.seed, item.id, name)), RATE)
            edits[name] = edit_distances(clean, changed).tolist()
            if name in ALIGNED:
                compare(name, clean, changed)
        for name, frames in SHIFTS.items():
            late = _codes(self.codec, np.pad(wave, (round(frames * RATE / self.codec.frame_rate), 0)), RATE)
            edits[name] = edit_distances(clean, late).tolist()
            compare(name, clean, late[:, int(frames) :])
        for name, (here, there) in self._seams(whole, clean).items():
            compare(name, here, there)
        compare("batch", clean, self._in_batch(whole))
        for dtype, other in self._others.items():
            compare(f"dtype/{dtype}", clean, _codes(other, whole))
        size = {"seconds": len(wave) / RATE, "frames": clean.shape[1]}
        return size | {"equal": equal, "of": of, "edits": edits}

    def _seams(self, whole: np.ndarray, clean: Codes) -> dict[str, tuple[Codes, Codes]]:
        """The recording encoded in two halves and joined: codes near the seam and elsewhere."""
        frames = clean.shape[1] // 2
        cut = frames * self.codec.hop_length
        if not 0 < cut < len(whole):
            return {}
        before, after = (_codes(self.codec, part) for part in (whole[:cut], whole[cut:]))
        joined = np.concatenate([before[:, :frames], after], axis=1)  # some codecs add a frame at the end
        span = min(joined.shape[1], clean.shape[1])
        near = np.abs(np.arange(span) + 0.5 - frames) < NEAR * self.codec.frame_rate
        parts = {f"seam/within {NEAR} s": near, "seam/farther": ~near}
        return {name: (clean[:, :span][:, at], joined[:, :span][:, at]) for name, at in parts.items()}

    def _in_batch(self, whole: np.ndarray) -> Codes:
        """Codes of a wave in one padded batch with pieces of itself, 1.3 to 0.1 times as long."""
        longer = np.concatenate([whole, whole[: int(0.3 * len(whole))]])
        others = [whole[: int(share * len(whole)) + 1] for share in (0.8, 0.55, 0.3, 0.1)]
        waves = [longer, whole, *others]
        lengths = torch.tensor([len(wave) for wave in waves], device=self.codec.device)
        batch = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(wave) for wave in waves], batch_first=True)
        with torch.inference_mode():
            codes, _ = self.codec.encode_batch(
                batch.to(self.codec.device, self.codec.dtype), lengths, self.codec.num_codebooks
            )
        return codes[1, :, : int(self.codec.num_frames(len(whole)))].cpu().numpy()


def summary_row(row: Row, count: int, lines: list[Line]) -> Line:
    """A row of results: pooled over recordings and `count` codebooks; with several also for the first one."""
    measures = {}
    for suffix, books in (("", count), ("-first", 1))[: 2 if count > 1 else 1]:
        for name in dict.fromkeys(name for line in lines for name in line["of"]):
            some = [line for line in lines if name in line["of"]]
            equal = [sum(line["equal"][name][:books]) for line in some]
            of = [line["of"][name] * books for line in some]
            if name == "batch":
                missed = [whole - part for part, whole in zip(equal, of, strict=True)]
                measures[f"miss{suffix}/batch"] = metric(f"miss{suffix}", missed, of, scale=100)
            else:
                measures[f"agreement{suffix}/{name}"] = metric(f"agreement{suffix}", equal, of, scale=100)
        for name in dict.fromkeys(name for line in lines for name in line["edits"]):
            edits = [sum(line["edits"][name][:books]) for line in lines]
            of = [line["frames"] * books for line in lines]
            measures[f"ued{suffix}/{name}"] = metric(f"ued{suffix}", edits, of, scale=100)
    return row.summary(len(lines), sum(line["seconds"] for line in lines), measures)


def edit_distances(a: Codes, b: Codes) -> np.ndarray:
    """Levenshtein distances (K,) of the rows of codes (K, T) and (K, S)."""
    row = np.broadcast_to(np.arange(b.shape[1] + 1), (len(b), b.shape[1] + 1))
    ramp = np.arange(b.shape[1] + 1)
    for i in range(a.shape[1]):
        # Substitution or deletion, then insertions: new[j] = min over i <= j of (new[i] + j - i).
        new = np.empty_like(row)
        new[:, 0] = i + 1
        new[:, 1:] = np.minimum(row[:, :-1] + (a[:, i : i + 1] != b), row[:, 1:] + 1)
        row = np.minimum.accumulate(new - ramp, axis=1) + ramp
    return row[:, -1].copy()


def _codes(codec: Codec, wave: np.ndarray, sample_rate: int | None = None) -> Codes:
    """Codes of a wave (T,) at the codec's rate unless another is given."""
    return codec.encode([wave], sample_rate=sample_rate or codec.sample_rate).codes[0].numpy()
