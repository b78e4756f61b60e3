"""What is done to recordings is what it is called, and what is counted is what changed."""

from itertools import pairwise

import numpy as np
import pytest
from conftest import speechlike

from vokens.bench.options import Robust
from vokens.bench.results import Row
from vokens.bench.tasks import perturb, robust
from vokens.data.items import Clip
from vokens.text.transcripts import word_edits

RATE = perturb.RATE


def applied(name: str, wave: np.ndarray, seed: int = 0) -> np.ndarray:
    change = (perturb.ALIGNED | perturb.WARPED)[name]
    return change(wave, perturb.generator(seed, "id", name))


@pytest.mark.parametrize("name", perturb.ALIGNED)
def test_changes_keep_length_and_time_and_repeat_themselves(name) -> None:
    wave = speechlike(RATE + 7)
    changed = applied(name, wave)
    assert changed.shape == wave.shape
    assert changed.dtype == np.float32
    assert np.array_equal(changed, applied(name, wave))
    size = 2 * len(wave)
    lags = np.fft.irfft(np.fft.rfft(changed, size) * np.conj(np.fft.rfft(wave, size)), size)
    assert abs((int(lags.argmax()) + len(wave)) % size - len(wave)) <= 1  # the same time, to a sample


@pytest.mark.parametrize(("colour", "slope"), [("white", 0.0), ("pink", -1.0)])
def test_noise_has_its_level_and_colour(colour, slope) -> None:
    wave = speechlike(4 * RATE)
    for level in (30, 20, 10):
        added = applied(f"{colour} noise/{level} dB", wave).astype(float) - wave
        ratio = 10 * np.log10((wave.astype(float) ** 2).sum() / (added**2).sum())
        assert ratio == pytest.approx(level, abs=0.01)
    power = np.abs(np.fft.rfft(added)) ** 2
    edges = np.geomspace(100, 7000, 12)
    bins = np.fft.rfftfreq(len(added), 1 / RATE)
    bands = [power[(bins >= a) & (bins < b)].mean() for a, b in pairwise(edges)]
    fit = np.polyfit(np.log(np.sqrt(edges[1:] * edges[:-1])), np.log(bands), 1)
    assert fit[0] == pytest.approx(slope, abs=0.1)


def test_noise_is_another_one_for_another_recording_or_seed() -> None:
    drawn = [perturb.generator(*key).standard_normal(3) for key in
             ((0, "a", "x"), (1, "a", "x"), (0, "b", "x"), (0, "a", "y"))]  # fmt: skip
    assert len({tuple(row) for row in drawn}) == 4


def test_gain_band_depth_and_speed() -> None:
    wave = speechlike(2 * RATE)
    assert np.allclose(applied("gain/+6 dB", wave), 1.99526 * wave, atol=1e-6)
    high = np.abs(np.fft.rfft(applied("band/4 kHz", wave)))[2 * 4200 :]
    assert high.max() < 1e-3 * np.abs(np.fft.rfft(wave)).max()
    assert len(np.unique(applied("depth/8 bit", wave))) <= 255
    for factor in (0.95, 1.05):
        assert len(applied(f"speed/{factor}", wave)) == pytest.approx(2 * RATE / factor, abs=2)
    t = np.arange(RATE) / RATE
    faster = applied("speed/1.05", np.sin(2 * np.pi * 1000 * t).astype(np.float32))
    peak = np.abs(np.fft.rfft(faster, RATE)).argmax()
    assert peak == pytest.approx(1050, abs=1)


def test_a_room_decays_as_it_says() -> None:
    impulse = np.zeros(RATE, np.float32)
    impulse[0] = 1
    answer = applied("room/0.3 s", impulse).astype(float)
    assert answer[0] == 1
    assert (answer[1:] ** 2).sum() == pytest.approx(1, abs=1e-3)
    energy = np.square(answer[40 : int(0.29 * RATE)]).reshape(-1, 50).sum(1)
    slope = np.polyfit(np.arange(len(energy)) * 50 / RATE, 10 * np.log10(energy), 1)[0]
    assert slope == pytest.approx(-60 / 0.3, rel=0.05)


def test_edit_distances_are_those_of_words() -> None:
    draw = np.random.default_rng(0)
    for _ in range(40):
        a, b = (draw.integers(0, 4, (3, draw.integers(0, 12))) for _ in range(2))
        expected = [word_edits(list(map(str, x)), list(map(str, y))) for x, y in zip(a, b, strict=True)]
        assert robust.edit_distances(a, b).tolist() == expected


def test_what_changes_nothing_and_what_a_codec_does_not_notice(
    tiny_codec_folder, tmp_path, monkeypatch
) -> None:
    import soundfile

    soundfile.write(tmp_path / "a.wav", speechlike(24000), RATE, subtype="FLOAT")
    changes = {"none": lambda wave, draw: wave, "flip": lambda wave, draw: wave[::-1].copy()}
    monkeypatch.setattr(robust, "ALIGNED", changes)
    monkeypatch.setattr(robust, "WARPED", {"late": lambda wave, draw: np.pad(wave, (3200, 0))})
    options = Robust(models=str(tiny_codec_folder), data=tmp_path, out=tmp_path / "out", dtypes="float32")
    probe = robust.Probe("tiny", str(tiny_codec_folder), options)
    line = probe.measure(Clip("a", tmp_path / "a.wav"))
    frames, books = 24000 // probe.codec.hop_length, probe.codec.num_codebooks
    assert line["frames"] == line["of"]["none"] == frames
    assert all(line["equal"][name] == [frames] * books for name in ("none", "batch", "dtype/float32"))
    assert line["edits"]["none"] == [0] * books
    assert sum(line["edits"]["flip"]) > 0.5 * frames * books
    # 10 frames more at the front: so many insertions at least, and hardly more where the codec sees 0.2 s around.
    added = 3200 // probe.codec.hop_length
    assert all(added <= edits <= added + 30 for edits in line["edits"]["late"])
    assert line["of"]["shift/1 frame"] == frames
    # A whole frame later the codes are the same, a frame later, except where the beginning is heard.
    assert min(line["equal"]["shift/1 frame"]) > 0.5 * frames
    assert line["of"]["seam/farther"] + line["of"][f"seam/within {robust.NEAR} s"] == frames
    row = robust.summary_row(Row("tiny", "tiny"), books, [line])
    values = {name: actual["value"] for name, actual in row["metric"].items()}
    assert values["agreement/none"] == 100
    assert values["ued-first/none"] == values["miss/batch"] == 0
    assert "ued/speed/1.05" not in values
