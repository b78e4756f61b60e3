"""Reading and writing audio: every source gives the same wave, every bad input a clear error."""

import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import refused
from test_audio_containers import media

from vokens.audio import Recording, duration, load, save
from vokens.errors import AudioError, MissingExtra

RATE = 16000


def tone(seconds: float = 1.0, rate: int = RATE) -> np.ndarray:
    """A 440 Hz tone that swells, on the 16-bit grid: (T,)."""
    time = np.arange(round(seconds * rate)) / rate
    wave = 0.5 * np.sin(2 * np.pi * 440 * time) * np.minimum(1.0, time + 0.1)
    return (np.round(wave * 32768) / 32768).astype(np.float32)


@pytest.fixture
def wav(tmp_path: Path) -> Path:
    save(tmp_path / "tone.wav", tone(), RATE)
    return tmp_path / "tone.wav"


# --- one wave, whatever the source


def test_every_source_gives_the_same_wave(wav: Path) -> None:
    wave = tone()
    content = wav.read_bytes()
    with open(wav, "rb") as file:
        sources = [wav, str(wav), content, io.BytesIO(content), file]
        loaded = [load(source) for source in sources]
    arrays = wave, torch.from_numpy(wave), wave.astype(np.float64)
    loaded += [load(array, source_rate=RATE) for array in arrays]
    for ours, rate in loaded:
        assert rate == RATE
        assert ours.dtype == np.float32
        np.testing.assert_array_equal(ours, wave)
    backwards, _ = load(wave[::-1], source_rate=RATE)
    assert (
        torch.from_numpy(backwards).tolist() == wave[::-1].tolist()
    )  # torch refuses views that run backwards


def test_file_objects_that_cannot_seek(wav: Path) -> None:
    read_end, write_end = os.pipe()
    with os.fdopen(write_end, "wb") as writer:
        writer.write(wav.read_bytes()[:4000])  # less than the pipe holds
    with os.fdopen(read_end, "rb") as pipe, pytest.raises(AudioError, match="is truncated"):
        load(pipe)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32])
def test_pcm_arrays_are_scaled_by_their_type(dtype: type) -> None:
    info = np.iinfo(dtype)
    middle = 128 if dtype == np.uint8 else 0
    pcm = np.array([info.min, middle, info.max], dtype=dtype)
    for source in (pcm, torch.from_numpy(pcm)):
        wave, _ = load(source, source_rate=RATE)
        np.testing.assert_allclose(wave, [-1.0, 0.0, 1.0], atol=1.0 / (128 if dtype == np.uint8 else 32768))
        assert np.abs(wave).max() <= 1.0


def test_tensors_of_any_float_with_gradients() -> None:
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        wave, _ = load(torch.full((8,), 0.5, dtype=dtype, requires_grad=True), source_rate=RATE)
        np.testing.assert_array_equal(wave, np.full(8, 0.5, np.float32))


def test_channels_are_averaged(tmp_path: Path) -> None:
    left, right = tone(), -0.5 * tone()
    stereo = np.stack([left, right])
    expected = (left + right) / 2
    soundfile.write(tmp_path / "stereo.wav", stereo.T, RATE, subtype="FLOAT")
    for source in (stereo, stereo.T, torch.from_numpy(stereo)):
        np.testing.assert_allclose(load(source, source_rate=RATE)[0], expected, atol=1e-7)
    np.testing.assert_allclose(load(tmp_path / "stereo.wav")[0], expected, atol=1e-7)


@pytest.mark.parametrize("rate", [8000, 44100, 192000])
def test_resampled_on_request(tmp_path: Path, rate: int) -> None:
    soundfile.write(tmp_path / "tone.wav", tone(0.5, rate), rate)
    assert load(tmp_path / "tone.wav")[1] == rate
    wave, loaded_rate = load(tmp_path / "tone.wav", RATE)
    assert loaded_rate == RATE
    assert abs(len(wave) - 8000) <= 1
    np.testing.assert_allclose(wave[800:-800], tone(0.5)[800 : len(wave) - 800], atol=2e-3)


def test_odd_but_legal(tmp_path: Path) -> None:
    assert load(np.array([0.25], np.float32), source_rate=RATE)[0].tolist() == [0.25]
    assert not load(np.zeros(100), source_rate=RATE)[0].any()
    np.testing.assert_array_equal(load(3 * tone(), source_rate=RATE)[0], 3 * tone())  # clipped is as given
    soundfile.write(tmp_path / "loud.wav", 3 * tone(), RATE, subtype="FLOAT")
    np.testing.assert_array_equal(load(tmp_path / "loud.wav")[0], 3 * tone())
    assert len(load(np.array([0.25], np.float32), 24000, source_rate=RATE)[0]) in (1, 2)


def test_content_decides_not_the_suffix(wav: Path) -> None:
    np.testing.assert_array_equal(load(wav.rename(wav.with_suffix(".mp3")))[0], tone())


# --- parts


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".opus", ".mp3"])
def test_a_part_is_a_slice_of_the_whole(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"tone{suffix}"
    save(path, tone(2.0), RATE)
    whole, _ = load(path)
    part, _ = load(path, offset=0.5, duration=0.25)
    np.testing.assert_allclose(part, whole[8000:12000], atol=1e-6)
    tail, _ = load(path, offset=1.75, duration=9.0)
    np.testing.assert_allclose(tail, whole[28000:], atol=1e-6)
    array_part, _ = load(whole, source_rate=RATE, offset=0.5, duration=0.25)
    np.testing.assert_array_equal(array_part, whole[8000:12000])


def test_a_part_reads_only_its_bytes(tmp_path: Path) -> None:
    class Counting(io.BytesIO):
        count = 0

        def readinto(self, buffer) -> int:
            self.count += len(buffer)
            return super().readinto(buffer)

        def read(self, size: int | None = -1) -> bytes:
            content = super().read(size)
            self.count += len(content)
            return content

    save(tmp_path / "long.wav", np.zeros(60 * RATE), RATE)
    file = Counting((tmp_path / "long.wav").read_bytes())
    assert len(load(file, offset=30.0, duration=1.0)[0]) == RATE
    assert file.count < 4 * RATE * 2


@pytest.mark.parametrize("kwargs", [{"offset": -1.0}, {"duration": 0.0}, {"offset": 1.0}, {"offset": np.nan}])
def test_parts_outside(wav: Path, kwargs: dict[str, float]) -> None:
    for source, rate in ((wav, None), (tone(), RATE)):
        refused(AudioError, ".", load, source, source_rate=rate, **kwargs)


# --- bad input


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros(0), "no audio"),
        (np.zeros((2, 0)), "no audio"),
        (np.array([0.0, np.nan]), "NaN"),
        (np.array([0.0, np.inf]), "infinite"),
        (np.zeros((1, 2, 100)), "one by one"),
        (np.zeros((16, 100)), "one by one"),
        (np.zeros(()), "shape"),
        (np.array([None, 1.0]), "object"),
        (np.zeros(4, bool), "bool"),
        (np.zeros(4, complex), "complex"),
        (np.zeros(4, np.int64), "int64"),
        (np.array(["a"]), "PCM"),
    ],
)
def test_bad_arrays(array: np.ndarray, says: str) -> None:
    refused(AudioError, says, load, array, source_rate=RATE)


def test_arrays_need_a_good_rate() -> None:
    refused(AudioError, "source_rate", lambda: load(tone()))
    for rate in (0, -16000, 16000.5):
        refused(AudioError, "Hz", load, tone(), RATE, source_rate=rate)
        refused(AudioError, "Hz", load, tone(), rate, source_rate=RATE)


def test_files_keep_their_own_rate(wav: Path) -> None:
    assert load(wav, source_rate=RATE)[1] == RATE
    refused(AudioError, "16000 Hz, not source_rate=8000", load, wav, source_rate=8000)


def test_what_is_not_a_file(wav: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "none.wav", tmp_path, wav / "below", "zero\0byte.wav"):
        refused(AudioError, "cannot open", load, path)
    for source in ([0.0, 1.0], None, 3):
        refused(AudioError, "a path, bytes", load, source)
    with open(wav) as text, pytest.raises(AudioError, match="binary"):
        load(text)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_no_permission(wav: Path) -> None:
    wav.chmod(0)
    refused(AudioError, "Permission", load, wav)


@pytest.mark.parametrize("content", [b"", b"just some text\n" * 20, bytes(999), b"RIFF", b"fLaC" + bytes(60)])
def test_what_is_not_audio(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "note.wav").write_bytes(content)
    for source in (tmp_path / "note.wav", content):
        refused(AudioError, r"empty|not readable", load, source)


def test_nan_in_a_file(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "nan.wav", np.array([0.0, np.nan]), RATE, subtype="FLOAT")
    refused(AudioError, "NaN", load, tmp_path / "nan.wav")
    soundfile.write(tmp_path / "none.wav", np.zeros(0), RATE)
    refused(AudioError, "no audio", load, tmp_path / "none.wav")


# --- PyAV


@pytest.mark.parametrize("form", ["m4a", "aac", "webm"])
def test_media_containers(form: str) -> None:
    rate = 48000
    content = media(form, wave=tone(1.0, rate))
    wave, loaded_rate = load(content)
    assert loaded_rate == rate
    assert abs(len(wave) - rate) <= 3 * 1024  # encoders pad to whole packets
    spectrum = np.abs(np.fft.rfft(wave[: rate // 2]))
    assert np.argmax(spectrum) == 220  # 440 Hz over half a second
    assert duration(content) == pytest.approx(1.0, abs=0.1)
    part, _ = load(content, offset=0.25, duration=0.5)
    np.testing.assert_array_equal(part, wave[rate // 4 : 3 * rate // 4])


def test_duration(tmp_path: Path) -> None:
    """Of the header alone, and an error of ours for what is no audio or not there."""
    for suffix in (".wav", ".flac", ".mp3"):
        save(tmp_path / f"tone{suffix}", tone(1.5), RATE)
        assert duration(tmp_path / f"tone{suffix}") == pytest.approx(1.5, abs=0.1)
    (tmp_path / "page.wav").write_text("<html>")
    for name in ("page.wav", "missing.wav"):
        refused(AudioError, name, duration, tmp_path / name)


def test_media_without_pyav_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    for head in (b"\0\0\0\x1cftypM4A ", b"\x1aE\xdf\xa3\x9fB\x86\x81"):
        refused(MissingExtra, r"pip install .*\[media\]", load, head + bytes(100))


# --- saving


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_sixteen_bits_survive(tmp_path: Path, suffix: str) -> None:
    grid = (np.arange(-32768, 32768) / 32768).astype(np.float32)
    path = tmp_path / f"grid{suffix}"
    save(path, torch.from_numpy(grid), RATE)
    np.testing.assert_array_equal(load(path)[0], grid)
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", [".ogg", ".opus", ".mp3"])
def test_lossy_formats_keep_length_and_sound(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"tone{suffix}"
    save(path, tone(), RATE)
    wave, rate = load(path)
    assert (rate, len(wave)) == (RATE, len(tone()))
    assert np.corrcoef(wave[1000:-1000], tone()[1000:-1000])[0, 1] > 0.98


def test_channels_and_clipping(tmp_path: Path) -> None:
    save(tmp_path / "stereo.WAV", np.stack([3 * tone(), tone()]), RATE)
    stereo, _ = soundfile.read(tmp_path / "stereo.WAV", dtype="float32")
    np.testing.assert_array_equal(stereo[:, 1], tone())
    np.testing.assert_allclose(stereo[:, 0], (3 * tone()).clip(-1, 1), atol=1 / 32768)


def test_minutes_of_vorbis(tmp_path: Path) -> None:
    save(tmp_path / "long.ogg", np.zeros(180 * RATE, np.float32), RATE)
    assert len(load(tmp_path / "long.ogg")[0]) == 180 * RATE


@pytest.mark.parametrize(
    ("name", "wave", "rate", "says"),
    [
        ("tone.wma", tone(), RATE, "suffix"),
        ("tone", tone(), RATE, "suffix"),
        ("tone.opus", tone(), 22050, "opus takes"),
        ("tone.mp3", tone(), 192000, "mp3"),
        ("tone.wav", np.zeros(0), RATE, "got"),
        ("tone.wav", np.zeros((2, 2, 9)), RATE, "got"),
        ("tone.wav", np.zeros((9, 100)), RATE, "got"),
        ("tone.wav", np.array([np.nan]), RATE, "NaN"),
        ("tone.wav", tone(), 0, "Hz"),
        ("tone.wav", tone(), 16000.5, "Hz"),
    ],
)
def test_failed_save_keeps_the_old_file(tmp_path: Path, name: str, wave: np.ndarray, rate: int, says) -> None:
    (tmp_path / name).write_bytes(b"before")
    refused(AudioError, says, save, tmp_path / name, wave, rate)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"before"]


def test_places_that_cannot_be_written(wav: Path, tmp_path: Path) -> None:
    (tmp_path / "folder.wav").mkdir()
    before = sorted(os.listdir(tmp_path))
    for path in (tmp_path / "none" / "a.wav", wav / "a.wav", tmp_path / "folder.wav"):
        refused(AudioError, "cannot write", save, path, tone(), RATE)
    assert sorted(os.listdir(tmp_path)) == before


# --- recordings longer than memory


@pytest.mark.parametrize(
    ("suffix", "rate", "channels"),
    [("wav", RATE, 1), ("flac", 44100, 2), ("ogg", 24000, 1), ("opus", 48000, 1), ("mp3", 44100, 1)],
)
def test_slices_of_a_long_recording_are_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, rate: int, channels: int
) -> None:
    monkeypatch.setattr("vokens.audio.recording.WHOLE_SECONDS", 2)
    path = tmp_path / f"a.{suffix}"
    save(path, np.stack([tone(6.3, rate)] * channels), rate)
    whole, _ = load(path, RATE)
    recording = Recording(path, RATE)
    assert recording.whole is None
    slices = [recording[max(0, start - 700) : start + 9000] for start in range(0, len(whole), 8000)]
    for start, actual in zip(range(0, len(whole), 8000), slices, strict=True):
        expected = whole[max(0, start - 700) : start + 9000]
        assert len(actual) == len(expected)
        bound = 0 if suffix == "wav" else 1e-6  # mp3: another order of sums
        assert np.abs(actual - expected).max() <= bound
    assert recording.seconds == len(whole) / RATE
    assert len(recording[len(whole) : len(whole) + 9]) == 0
    with pytest.raises(AudioError, match="open it again"):
        recording[0:5]
    whole_again = Recording(io.BytesIO(path.read_bytes()), RATE)[0 : 10**9]
    assert np.array_equal(whole_again, whole)


def test_a_long_recording_is_refused_where_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vokens.audio.recording.WHOLE_SECONDS", 2)
    wave = tone(12.0)
    wave[11 * RATE] = np.nan
    soundfile.write(tmp_path / "nan.wav", wave, RATE, subtype="FLOAT")
    recording = Recording(tmp_path / "nan.wav", RATE)
    assert len(recording[0 : 5 * RATE]) == 5 * RATE
    with pytest.raises(AudioError, match="NaN"):
        recording[5 * RATE : 12 * RATE]
    save(tmp_path / "cut.flac", tone(12.0), RATE)
    content = (tmp_path / "cut.flac").read_bytes()
    with pytest.raises(AudioError, match=r"is truncated|damaged"):
        Recording(content[: len(content) // 2], RATE)[0 : 12 * RATE]


def test_pieces_are_saved_as_the_whole(tmp_path: Path) -> None:
    wave = tone(3.0)
    for suffix in ("wav", "flac"):
        save(tmp_path / f"a.{suffix}", wave, RATE)
        save(tmp_path / f"b.{suffix}", iter([wave[:9000], wave[9000:9001], wave[9001:]]), RATE)
        assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()
    refused(AudioError, "was empty", lambda: save(tmp_path / "c.wav", iter(()), RATE))
    refused(AudioError, "NaN", save, tmp_path / "c.wav", iter([wave, np.full(9, np.nan, np.float32)]), RATE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.flac", "a.wav", "b.flac", "b.wav"]
