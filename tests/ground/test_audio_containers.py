"""Lengths of audio files: every stream is read to its end, and what was cut or cannot be read is named."""

import io
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import refused

from vokens.audio import duration, load
from vokens.errors import AudioError

RATE = 16000
PLAIN = ("wav", "rf64", "w64", "aiff", "caf", "au", "flac")
FORMATS = {name: (name.upper(), "PCM_16") for name in PLAIN} | {
    **{"sph": ("NIST", "PCM_16"), "float": ("WAV", "FLOAT"), "adpcm": ("WAV", "MS_ADPCM")},
    **{"gsm": ("WAV", "GSM610"), "ogg": ("OGG", "VORBIS"), "opus": ("OGG", "OPUS")},
    **{"mp3": ("MP3", "MPEG_LAYER_III")},
}
MEDIA = {"m4a": ("mp4", "aac"), "webm": ("webm", "libopus"), "aac": ("adts", "aac"), "wma": ("asf", "wmav2")}


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.3, 0.3, round(seconds * RATE)).astype(np.float32)


def written(form: str, seconds: float = 1.0, seed: int = 0, rate: int = RATE) -> bytes:
    """A file of noise."""
    container, encoding = FORMATS[form]
    file = io.BytesIO()
    soundfile.write(file, noise(seconds, seed), rate, encoding, format=container)
    return file.getvalue()


def media(form: str, seconds: float = 1.0, live: bool = False, wave: np.ndarray | None = None) -> bytes:
    """A file of noise or a wave at 48 kHz through PyAV; live: written where nothing can be mended afterwards."""
    av = pytest.importorskip("av")
    container, codec = MEDIA[form]
    file = io.BytesIO()
    with av.open(file, "w", format=container, options={"live": "1"} if live else {}) as out:
        track = out.add_stream(codec, rate=48000, layout="mono")
        track.bit_rate = 64000
        if wave is None:
            wave = np.random.default_rng(0).uniform(-0.3, 0.3, round(seconds * 48000)).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
        frame.sample_rate = 48000
        out.mux(track.encode(frame) + track.encode(None))
    return file.getvalue()


def mp3_frames(content: bytes) -> Iterator[bytes]:
    """The frames of an mp3 at 16 kHz without tags, the Xing frame first."""
    kbps = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
    while content:
        size = 72 * kbps[content[2] >> 4] * 1000 // RATE + (content[2] >> 1 & 1)
        yield content[:size]
        content = content[size:]


def id3(size: int) -> bytes:
    return b"ID3\3\0\0" + bytes((size >> 21, size >> 14 & 127, size >> 7 & 127, size & 127)) + b"\1" * size


@pytest.mark.parametrize("form", FORMATS)
def test_truncated_files_are_refused(form: str) -> None:
    content = written(form, 2.0)
    for share in (0.01, 0.3, 0.5, 0.85, 0.99):
        refused(AudioError, r"is truncated|not readable", load, content[: int(share * len(content))])


@pytest.mark.parametrize("form", MEDIA)
def test_truncated_media_are_refused(form: str) -> None:
    content = media(form)
    assert abs(len(load(content)[0]) - 48000) < 4096
    for share in (0.5, 0.98):
        refused(AudioError, "is truncated", load, content[: int(share * len(content))])


def test_a_flac_cut_between_frames_counts_its_samples() -> None:
    content = written("flac", 2.0)
    last = content.rindex(b"\xff\xf8")
    refused(AudioError, r"is truncated: 28672 of 32000 samples", load, content[:last])


def test_an_mp3_cut_between_frames_counts_them() -> None:
    frames = list(mp3_frames(written("mp3", 3.0)))
    with pytest.raises(AudioError, match=rf"is truncated: {len(frames) - 2} of {len(frames) - 1} mp3 frames"):
        load(b"".join(frames[:-1]))


@pytest.mark.parametrize("form", FORMATS)
def test_concatenated_files_are_read_to_the_end(form: str) -> None:
    first, second = written(form, 1.0), written(form, 0.5, seed=1)
    expected = np.concatenate([load(first)[0], load(second)[0], load(first)[0]])
    both = first + second + first
    np.testing.assert_array_equal(load(both)[0], expected)
    assert duration(both) == pytest.approx(len(expected) / RATE, abs=1e-9)
    for offset, seconds in ((0.25, 0.5), (0.875, 0.25), (1.25, 0.125), (0.75, 1.0), (1.25, None)):
        part, _ = load(both, offset=offset, duration=seconds)
        stop = None if seconds is None else round((offset + seconds) * RATE)
        np.testing.assert_allclose(part, expected[round(offset * RATE) : stop], atol=1e-6)


@pytest.mark.parametrize("form", MEDIA)
def test_concatenated_media_are_read_to_the_end(form: str) -> None:
    content = media(form)
    one, two = len(load(content)[0]), len(load(content + content)[0])
    assert abs(two - 2 * one) <= 2048  # ADTS has no links: its decoder runs on


def test_streams_of_two_rates_are_refused() -> None:
    refused(AudioError, "16000 and of 8000 Hz", lambda: load(written("flac") + written("flac", rate=8000)))
    refused(AudioError, "16000 and of 24000 Hz", lambda: load(written("mp3") + written("mp3", rate=24000)))


@pytest.mark.parametrize("form", ["wav", "flac", "ogg", "mp3", "au"])
def test_bytes_after_the_audio_are_named(form: str) -> None:
    content = written(form)
    with pytest.raises(AudioError, match=r"6000 bytes|incomplete|last frame"):
        load(content + np.random.default_rng(0).integers(1, 128, 6000, np.uint8).tobytes())


def test_variable_mp3_without_its_count() -> None:
    wave = np.concatenate([noise(1.0), np.zeros(10 * RATE, np.float32)])
    file = io.BytesIO()
    with soundfile.SoundFile(
        file, "w", RATE, 1, "MPEG_LAYER_III", format="MP3", bitrate_mode="VARIABLE", compression_level=0.2
    ) as out:
        out.write(wave)
    named, *frames = mp3_frames(file.getvalue())
    bare = b"".join(frames)
    actual, _ = load(bare)
    assert 576 * len(frames) - len(actual) in (0, 529)  # 529 samples are the delay of every decoder
    whole, _ = load(file.getvalue())
    lag = int(np.argmax(np.correlate(actual[: 2 * RATE], whole[:RATE], "valid")))
    np.testing.assert_allclose(actual[lag : lag + len(whole)], whole[: len(actual) - lag], atol=1e-4)
    uncounted = named[:20] + b"\0" + named[21:]  # a Xing frame with no flag set
    assert len(load(uncounted + bare)[0]) == len(actual)
    few, both = b"".join(frames[:7]), range(576 * 6 + len(whole), 576 * 7 + len(whole) + 1)
    assert len(load(few + file.getvalue())[0]) in both
    assert len(load(file.getvalue() + few)[0]) in both


@pytest.mark.parametrize("stated", [0, 1, 8000])
def test_flac_that_counts_too_few(stated: int) -> None:
    content = bytearray(written("flac", 2.0))
    content[21:26] = (int.from_bytes(content[21:26], "big") - 32000 + stated).to_bytes(5, "big")
    content[26:42] = bytes(16)  # the MD5 of the samples is unknown to such writers too
    expected, _ = load(written("flac", 2.0))
    np.testing.assert_array_equal(load(bytes(content))[0], expected)
    np.testing.assert_array_equal(load(bytes(content), offset=1.5)[0], expected[24000:])


@pytest.mark.parametrize("riff", [0, 0xFFFFFFFF, 36])
@pytest.mark.parametrize("data", [0, 0xFFFFFFFF, 0x7FFFFFD8])
@pytest.mark.parametrize("behind", [b"", b"LIST\x1a\0\0\0INFOISFT\x0e\0\0\0Lavf58.29.100\0"])
def test_unfinished_wav(riff: int, data: int, behind: bytes) -> None:
    content = bytearray(written("wav"))
    content[4:8], content[40:44] = struct.pack("<I", riff), struct.pack("<I", data)
    np.testing.assert_array_equal(load(bytes(content) + behind)[0], load(written("wav"))[0])


@pytest.mark.parametrize(
    ("form", "chunk", "open_size"),
    [("aiff", b"SSND", ">I"), ("caf", b"data", ">q"), ("w64", b"data", "<q"), ("au", b".snd", ">I")],
)
@pytest.mark.parametrize("size", [0, -1])
def test_unfinished_others(form: str, chunk: bytes, open_size: str, size: int) -> None:
    content = bytearray(written(form))
    at = content.index(chunk) + {"w64": 16, "au": 8}.get(form, 4)
    struct.pack_into(open_size.replace("I", "i"), content, at, size)
    np.testing.assert_array_equal(load(bytes(content))[0], load(written(form))[0])


def test_a_wav_without_samples_is_empty() -> None:
    head = written("wav")[:40] + bytes(4)
    for behind in (b"", b"LIST\4\0\0\0INFO"):
        refused(AudioError, "holds no audio", load, head + behind)


@pytest.mark.parametrize("form", ["wav", "flac", "mp3", "aiff"])
def test_tags_are_no_audio(form: str) -> None:
    content, expected = written(form), load(written(form))[0]
    ape = b"APETAGEX" + struct.pack("<IIII8x", 2000, 2000, 1, 1 << 31 | 1 << 29)
    ape += b"\1" * 1968 + b"APETAGEX" + struct.pack("<IIII8x", 2000, 2000, 1, 1 << 31)
    id3v1 = b"TAG" + b"title".ljust(125, b"\0")
    for before, behind in (
        (id3(300), b""),
        (b"", id3v1),
        (b"", ape),
        (id3(9), ape + id3v1),
        (id3(9) * 2, b""),
    ):
        np.testing.assert_array_equal(load(before + content + behind)[0], expected)
    tagged = id3(2000) + content + (b"" if form == "flac" else id3v1)
    np.testing.assert_array_equal(load(tagged + content)[0], np.concatenate([expected, expected]))


def test_mp3_inside_wav() -> None:
    frames = b"".join(list(mp3_frames(written("mp3", 2.0)))[1:])
    form = struct.pack("<HHIIHHHHIHHH", 0x55, 1, RATE, 8000, 1, 0, 12, 1, 2, 576, 1, 1393)
    sizes = [struct.pack("<I", len(part)) for part in (form, frames)]
    chunks = b"WAVEfmt " + sizes[0] + form + b"data" + sizes[1] + frames
    wav = b"RIFF" + struct.pack("<I", len(chunks)) + chunks
    np.testing.assert_array_equal(load(wav)[0], load(frames)[0])
    refused(AudioError, "is truncated", load, wav[:-500])


def test_chunks_behind_the_samples() -> None:
    content, expected = written("wav"), load(written("wav"))[0]
    odd = content[:40] + struct.pack("<I", 31999) + content[44:-1]
    for behind in (b"LIST\4\0\0\0INFO", b"Xtra\6\0\0\0abcdef", b"LIST\xff\0\0\0INFO", b"\0" * 9, b"\n"):
        np.testing.assert_array_equal(load(content + behind)[0], expected)
        np.testing.assert_array_equal(load(odd + b"\0" + behind)[0], expected[:-1])
    np.testing.assert_array_equal(load(odd + b"LIST\4\0\0\0INFO")[0], expected[:-1])


def test_webm_of_open_length() -> None:
    content = media("webm", live=True)
    assert b"\x18\x53\x80\x67\x01\xff\xff\xff\xff\xff\xff\xff" in content
    assert abs(len(load(content)[0]) - 48000) < 4096


def test_file_objects_are_left_open(tmp_path: Path) -> None:
    (tmp_path / "two.wav").write_bytes(written("wav") * 2)
    with open(tmp_path / "two.wav", "rb") as file:
        assert len(load(file)[0]) == 2 * RATE
        assert len(load(file, offset=1.5)[0]) == RATE // 2


def test_tags_in_other_encodings_are_no_reason_to_refuse() -> None:
    content = media("m4a").replace(b"Lavf", b"\xe9\xe8vf")
    assert b"\xe9\xe8vf" in content
    assert abs(len(load(content)[0]) - 48000) < 4096


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("form", [*FORMATS, *MEDIA])
def test_damaged_bytes_give_a_wave_or_an_error_of_ours(form: str) -> None:
    generator = np.random.default_rng(0)
    content = media(form, 0.1) if form in MEDIA else written(form, 0.1)
    for _ in range(30):
        damaged = bytearray(content)
        for at in generator.integers(0, min(len(content), 200), 4):
            damaged[at] = generator.choice([0, 1, 127, 255])
        with suppress(AudioError):
            assert np.isfinite(load(bytes(damaged))[0]).all()
