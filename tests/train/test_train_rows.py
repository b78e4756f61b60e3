"""Caches of training: what changed is read again, what failed is tried and named again, the rest is read once."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from training import cache_in

from vokens.errors import AudioError, ConfigError
from vokens.models.pretrained import load
from vokens.train.buckets import Buckets
from vokens.train.data import Clip, Crops, pcm_rows, read_clips
from vokens.train.flow_data import token_rows
from vokens.train.rows import Rows, cached_rows
from vokens.train.teacher import teacher_rows

RATE = 16000


class Level:
    """A teacher whose feature is the level; counts its calls."""

    name, width, grid = "level", 1, (0.02, 0.01)

    def __init__(self) -> None:
        self.calls = 0

    def features(self, wave: np.ndarray) -> np.ndarray:
        self.calls += 1
        return np.full((max(1, len(wave) // 320), 1), np.abs(wave).max(initial=0.0), np.float32)


def write(path: Path, seconds: float, level: float) -> None:
    path.parent.mkdir(exist_ok=True)
    soundfile.write(path, np.full(round(seconds * RATE), level, np.float32), RATE)


@pytest.fixture
def clips(tmp_path: Path) -> list[Clip]:
    for name in "abc":
        write(tmp_path / "speech" / f"{name}.wav", 0.2, 0.25)
    return read_clips(tmp_path / "speech")


def read(clips: list[Clip], folder: Path, teacher: Level) -> tuple[Rows, Rows]:
    pcm = pcm_rows(cache_in(folder), clips, RATE)
    return pcm, teacher_rows(cache_in(folder), teacher, pcm)


def test_a_replaced_recording_is_read_again_and_the_others_are_not(clips: list[Clip], tmp_path: Path) -> None:
    teacher = Level()
    read(clips, tmp_path, teacher)
    assert teacher.calls == 3
    read(clips, tmp_path, teacher)
    assert teacher.calls == 3  # all as they were
    write(clips[1].path, 0.4, 0.5)
    pcm, features = read(clips, tmp_path, teacher)
    assert teacher.calls == 4
    assert pcm.offsets.tolist() == [0, 3200, 9600, 12800]
    assert [float(features[n].max()) for n in range(3)] == pytest.approx([0.25, 0.5, 0.25], abs=1e-3)
    assert len(list((tmp_path / "cache").iterdir())) == 4  # two indexes, two files of rows: none is left over


def test_tokens_follow_their_recording(clips: list[Clip], tmp_path: Path) -> None:
    codec = load("mini")
    before = token_rows(cache_in(tmp_path), clips, codec)
    write(clips[0].path, 0.4, 0.1)
    after = token_rows(cache_in(tmp_path), clips, codec)
    assert np.diff(before.offsets).tolist() == [10, 10, 10]
    assert np.diff(after.offsets).tolist() == [20, 10, 10]
    np.testing.assert_array_equal(before[2], after[2])


def test_what_failed_is_named_in_every_run_and_tried_again(
    clips: list[Clip], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sound = clips[1].path.read_bytes()
    clips[1].path.write_bytes(b"no sound")
    missing = clips[2].path.rename(tmp_path / "elsewhere.wav")
    for _ in range(2):
        pcm, features = read(clips, tmp_path, Level())
        said = capsys.readouterr().out
        assert "2 of 3 recordings cannot be read" in said
        assert str(clips[1].path) in said
        assert str(clips[2].path) in said
        assert np.diff(pcm.offsets).tolist() == [3200, 0, 0]
        assert np.diff(features.offsets).tolist() == [10, 0, 0]
    clips[1].path.write_bytes(sound)
    missing.rename(clips[2].path)
    teacher = Level()
    pcm, features = read(clips, tmp_path, teacher)
    assert "cannot be read" not in capsys.readouterr().out
    assert np.diff(pcm.offsets).tolist() == [3200] * 3
    assert np.diff(features.offsets).tolist() == [10] * 3
    assert teacher.calls == 2


def test_a_reason_that_lay_elsewhere_is_found_mended(clips: list[Clip], tmp_path: Path) -> None:
    """The recording is the same; the program that reads it was missing."""
    installed = False

    def compute(path: Path) -> np.ndarray:
        if path == paths[1] and not installed:
            raise AudioError("no decoder")
        return np.full((2, 1), paths.index(path), np.int16)

    paths = [clip.path for clip in clips]
    assert len(cached_rows(cache_in(tmp_path), "x/y", paths, compute, "x")[1]) == 0
    installed = True
    rows = cached_rows(cache_in(tmp_path), "x/y", paths, compute, "x")
    assert [rows[n].ravel().tolist() for n in range(3)] == [[0, 0], [1, 1], [2, 2]]


def test_a_damaged_or_older_cache_is_made_anew(clips: list[Clip], tmp_path: Path) -> None:
    rows = pcm_rows(cache_in(tmp_path), clips, RATE)
    for text in ("", '{"width": 1, "dtype": "int16", "offsets": [0, 1, 2, 3]}'):
        rows.index.write_text(text)
        assert pcm_rows(cache_in(tmp_path), clips, RATE).offsets.tolist() == [0, 3200, 6400, 9600]
    rows.file.unlink()
    assert pcm_rows(cache_in(tmp_path), clips, RATE).offsets.tolist() == [0, 3200, 6400, 9600]


def test_nothing_to_hear_is_an_error(clips: list[Clip], tmp_path: Path) -> None:
    for clip in clips:
        clip.path.write_bytes(b"")
    pcm = pcm_rows(cache_in(tmp_path), clips, RATE)
    with pytest.raises(ConfigError, match="none of the 3 recordings"):
        Crops(pcm, sample_rate=RATE, crop=3200, hop=320, batch_size=1, seed=0)


def test_buckets_split_over_processes_and_have_everything_once_with_little_padding() -> None:
    sizes = np.random.default_rng(0).integers(20, 100, 100)
    order = np.argsort(sizes, kind="stable")
    one = Buckets(order, lambda row: 2 * (120 // sizes[row]), smallest=16, seed=5)
    two = Buckets(order, lambda row: 120 // sizes[row], smallest=16, seed=5)
    count = one.batches_per_epoch()
    assert count == two.batches_per_epoch(2)
    for number in (0, 1, 3 * count + 2):
        assert one.rows(number).tolist() == [row for rank in (0, 1) for row in two.rows(number, rank, 2)]
    batches = [one.rows(number) for number in range(count)]
    seen = np.concatenate(batches)
    assert len(set(seen)) == len(seen) > 70  # what does not fill a batch waits for another epoch
    assert sum(len(rows) * sizes[rows].max() for rows in batches) < 1.5 * sizes[seen].sum()
    assert any(a.tolist() != one.rows(count + n).tolist() for n, a in enumerate(batches))
    assert sorted(row for rows in one.fixed() for row in rows) == list(range(100))
