"""encode, decode and roundtrip, in process, with a tiny random codec on synthetic audio."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import build_tiny_s3tokenizer, build_tiny_speechtokenizer, speechlike

import vokens
from vokens.cli import main
from vokens.tokens import Tokens

RATE = 16000
CODEBOOKS = 4


@pytest.fixture(scope="module")
def codec(tiny_codec_folder):
    return vokens.load(tiny_codec_folder)


@pytest.fixture
def run(tiny_codec_folder, capsys):
    """A verb with the codec, or that of another -m: its exit code, standard output and standard error."""

    def call(*words):
        capsys.readouterr()
        model = [] if "-m" in words else ["-m", str(tiny_codec_folder)]
        code = main([*map(str, words), *model])
        return code, *capsys.readouterr()

    return call


def sound(seconds=0.3, seed=0, rate=RATE):
    return speechlike(round(seconds * rate), seed, rate)


def write_sound(path, seconds=0.3, seed=0, rate=RATE):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, sound(seconds, seed, rate), rate)
    return path


@pytest.fixture
def a(tmp_path):
    """A recording, alone in its folder."""
    return write_sound(tmp_path / "a.wav")


@pytest.fixture
def corpus(tmp_path):
    """Three recordings of different lengths and rates in two folders."""
    write_sound(tmp_path / "in/a.wav", 0.3)
    write_sound(tmp_path / "in/sub/b.flac", 0.5, 1, 24000)
    write_sound(tmp_path / "in/sub/c.wav", 0.2, 2)
    return tmp_path


def give_stdin(monkeypatch, content):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def is_sound(path, wave, atol=2e-4):
    """Assert that a file holds a wave, in 16 bits."""
    np.testing.assert_allclose(soundfile.read(path)[0], wave.clip(-1, 1), atol=atol)


def test_a_folder_gives_what_each_file_gives_alone(corpus, codec, run):
    for verb, source, target in (("encode", "in", "tok"), ("decode", "tok", "out")):
        code, out, error = run(verb, corpus / source, "-o", corpus / target)
        assert (code, out) == (0, "")
        assert "vokens: 3 of 3 done, 1.0 s of speech in" in error
    for name, suffix in (("a", ".wav"), ("sub/b", ".flac"), ("sub/c", ".wav")):
        alone = codec.encode(corpus / f"in/{name}{suffix}")
        assert len(alone.codes.unique()) > 8
        assert torch.equal(Tokens.load(corpus / f"tok/{name}.vok").codes, alone.codes)
        info = soundfile.info(corpus / f"out/{name}.wav")
        assert (info.samplerate, info.frames) == (RATE, int(alone.num_samples[0]))
        is_sound(corpus / f"out/{name}.wav", codec.decode(alone)[0])


@pytest.mark.parametrize("suffix", ["vok", "json", "npz", "pt"])
def test_every_format_decodes_to_the_same_sound(suffix, a, tmp_path, codec, run):
    tokens = tmp_path / f"t.{suffix}"
    assert run("encode", a, "-o", tokens)[0] == 0
    assert run("decode", tokens, "-o", tmp_path / "out.flac")[0] == 0
    is_sound(tmp_path / "out.flac", codec.decode(codec.encode(a))[0])


def test_codebooks(a, tmp_path, codec, run):
    everything = codec.encode(a)
    assert run("encode", a, "--codebooks", "2")[0] == 0
    assert torch.equal(Tokens.load(tmp_path / "a.vok").codes, everything.codes[:, :2])
    everything.save(tmp_path / "a.vok")
    for text, part in (("1", everything.select(0, 1)), (f"2-{CODEBOOKS}", everything.select(1))):
        out = tmp_path / f"{text}.wav"
        assert run("decode", tmp_path / "a.vok", "-o", out, "--codebooks", text)[0] == 0
        is_sound(out, codec.decode(part)[0])


def test_pipes(a, tmp_path, tiny_codec_folder, codec, monkeypatch, capsysbinary):
    model = ["-m", str(tiny_codec_folder)]
    give_stdin(monkeypatch, a.read_bytes())
    assert main(["encode", "-", *model]) == 0
    content = capsysbinary.readouterr().out
    (tmp_path / "piped.vok").write_bytes(content)
    assert torch.equal(Tokens.load(tmp_path / "piped.vok").codes, codec.encode(a).codes)
    give_stdin(monkeypatch, content)
    assert main(["decode", "-", "-o", "-", "--format", "flac", *model]) == 0
    wave, rate = soundfile.read(io.BytesIO(capsysbinary.readouterr().out))
    assert (len(wave), rate) == (len(sound()), RATE)
    give_stdin(monkeypatch, a.read_bytes())
    assert main(["roundtrip", "-", "-o", "-", *model]) == 0
    captured = capsysbinary.readouterr()
    assert len(soundfile.read(io.BytesIO(captured.out))[0]) == len(sound())
    assert b"bitrate" in captured.err  # the table is not mixed with the sound


def test_json_to_standard_output_is_text(a, run):
    code, out, _ = run("encode", a, "-o", "-", "--format", "json")
    assert code == 0
    assert json.loads(out)["sample_rate"] == RATE


def test_a_bad_file_is_named_and_the_others_go_on(corpus, run):
    (corpus / "in/bad.wav").write_bytes(b"RIFF, but nothing that follows")
    code, _, error = run("encode", corpus / "in", corpus / "gone.wav", "-o", corpus / "tok")
    assert code == 1
    assert all(words in error for words in ("bad.wav", "gone.wav", "3 of 5 done"))
    assert "Traceback" not in error
    assert {path.name for path in (corpus / "tok").rglob("*")} == {"a.vok", "sub", "b.vok", "c.vok"}


def test_existing_outputs_are_named_before_any_work(corpus, run):
    out = corpus / "in/sub/b.vok"
    out.write_bytes(b"precious")
    code, _, error = run("encode", corpus / "in")
    assert code == 2
    assert f"{out} exists: --overwrite" in error
    assert out.read_bytes() == b"precious"
    assert not (corpus / "in/a.vok").exists()
    assert run("encode", corpus / "in", "--overwrite")[0] == 0
    assert len(Tokens.load(out)) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["encode", "gone.wav"], "gone.wav"),
        (["encode", "a.wav", "--codebooks", "9"], f"1 to {CODEBOOKS}"),
        (["encode", "a.wav", "-m", "minj"], "minj"),
        *(
            (["encode", "a.wav", "--device", name], f"device '{name}' cannot be used here: use auto, cpu")
            for name in ("warp9", "cuda:99", "mps")
        ),
        (["encode", "a.wav", "--batch-seconds", "0"], "--batch-seconds 0"),
        (["decode", "damaged.vok"], "damaged.vok"),
        (["decode", "two.vok"], "2 recordings"),
        (["decode", "ids.npy", "-m", ""], "holds ids without their codec.*--model"),
        (["roundtrip", "a.wav", "-o", "x.vok"], ".wav"),
        (["roundtrip", "a.wav", "--picture", "x.bmp"], ".png"),
    ],
)
def test_what_cannot_be_done_is_one_line(words, said, a, tmp_path, codec, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    codec.encode([sound(0.1), sound(0.2)], RATE).save("two.vok")
    codec.encode(a).save("damaged.vok")
    content = bytearray(Path("damaged.vok").read_bytes())
    content[-1] ^= 1
    Path("damaged.vok").write_bytes(content)
    np.save("ids.npy", codec.encode(a).codes[0].numpy())
    before = sorted(Path().iterdir())
    code, out, error = run(*words)
    assert (code, out) == (2, "")
    assert error.startswith("vokens: error: ")
    assert re.search(said, error)
    assert error.count("\n") == 1
    assert sorted(Path().iterdir()) == before


def test_bare_ids_decode_with_a_model(tmp_path, codec, run):
    tokens, folder = codec.encode(sound(0.3), RATE), tmp_path / "ids"
    ids = tokens.codes.numpy().astype(np.uint16)
    folder.mkdir()
    np.save(folder / "a.npy", ids[0])
    np.savez(folder / "b.npz", codes=ids, lengths=tokens.lengths)
    (folder / "c.json").write_text(json.dumps(ids[0].tolist()))
    (folder / "d.json").write_text(json.dumps({"codes": ids.tolist()}))
    torch.save(tokens.codes, folder / "e.pt")
    assert run("decode", folder, "-o", tmp_path / "out")[0] == 0
    made = [soundfile.read(path)[0] for path in sorted((tmp_path / "out").iterdir())]
    assert len(made) == 5
    assert all(np.allclose(wave, made[0], atol=1e-4) for wave in made)


@pytest.mark.parametrize("content", [b"[1, ", b'["a"]', b"{}", b"\x93NUMPY\x01\x00", b"[[1, 2], [3]]"])
def test_damaged_ids_are_one_line(content, tmp_path, run):
    (tmp_path / "ids.npy").write_bytes(content)
    code, _, error = run("decode", tmp_path / "ids.npy")
    assert code == 2
    assert error.startswith("vokens: error: ")


def test_tokens_of_ones_own_codec_ask_for_its_folder(a, tmp_path, run, capsys):
    codec = build_tiny_speechtokenizer()
    own = codec.save_pretrained(tmp_path / "own")
    words = ["decode", str(tmp_path / "a.vok"), "-o", str(tmp_path / "b.wav")]
    assert run("encode", a, "-m", own)[0] == 0
    assert main(words) == 2
    error = capsys.readouterr().err
    assert f"a codec of your own, 'speechtokenizer' (fingerprint {codec.fingerprint})" in error
    assert "--model FOLDER" in error
    assert run(*words, "-m", own)[0] == 0


def test_tokens_that_cannot_be_decoded_are_refused_before_a_download(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VOKENS_CACHE", str(tmp_path / "cache"))
    codec = build_tiny_s3tokenizer()
    codec.name = "speech_tokenizer_v2_25hz"
    codec.encode(sound(0.3), RATE).save(tmp_path / "a.vok")
    for more in ([], ["-m", "speech_tokenizer_v2_25hz"]):
        assert main(["decode", str(tmp_path / "a.vok"), *more]) == 2
        assert "speech_tokenizer_v2_25hz only encodes" in (error := capsys.readouterr().err)
        assert "vokens speak" in error
    assert not (tmp_path / "cache").exists()


def test_writes_sound_and_picture_and_prints_the_numbers(tmp_path, run):
    a = write_sound(tmp_path / "a.wav", rate=24000)
    out, picture = tmp_path / "new/out.wav", tmp_path / "new/out.png"
    words = ["roundtrip", a, "-o", out, "--picture", picture]
    code, text, _ = run(*words, "--codebooks", "1")
    assert code == 0
    for word in ("bitrate", "0.25 kbit/s", "15 frames", "codebooks 1", "entropy", "real-time factor"):
        assert word in text
    assert (soundfile.info(out).frames, soundfile.info(out).samplerate) == (len(sound()), RATE)
    assert picture.read_bytes().startswith(b"\x89PNG")
    code, _, error = run(*words)
    assert code == 2
    assert "exists" in error


def test_tells_how_near_the_result_is(tmp_path, run):
    from vokens.bench.metrics import closeness

    a = write_sound(tmp_path / "a.wav", seconds=1.0)
    lines = [line.split() for line in run("roundtrip", a, "-o", tmp_path / "b.wav")[1].splitlines()]
    printed = {" ".join(words[:-1]): words[-1] for words in lines}
    waves = [soundfile.read(tmp_path / name, dtype="float32")[0] for name in ("a.wav", "b.wav")]
    for name, value in closeness(*waves, RATE).items():
        assert float(printed[name]) == pytest.approx(float(value), abs=0.02)  # b.wav has 16 bits
    soundfile.write(tmp_path / "silence.wav", np.zeros(RATE, np.float32), RATE)
    code, text, _ = run("roundtrip", tmp_path / "silence.wav")
    assert code == 0
    assert "the recording is silent" in text
    assert "mel distance" not in text


def test_leaves_nothing_behind_without_matplotlib(a, tmp_path, run):
    words = ["roundtrip", a, "-o", tmp_path / "b.wav"]
    with pytest.MonkeyPatch.context() as missing:
        missing.setitem(sys.modules, "matplotlib", None)
        code, _, error = run(*words, "--picture", tmp_path / "new/b.png")
    assert code == 2
    assert "matplotlib" in error
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]
    assert run(*words)[0] == 0  # the retry


def test_writes_both_files_or_neither(a, tmp_path, run):
    (tmp_path / "file").touch()
    for out, picture in (("file/b.wav", "b.png"), ("b.wav", "file/b.png")):
        assert run("roundtrip", a, "--picture", tmp_path / picture, "-o", tmp_path / out)[0] != 0
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.wav", "file"]


def test_equals_encode_then_decode(a, tmp_path, run):
    assert run("roundtrip", a, "-o", tmp_path / "r.wav")[0] == 0
    assert run("encode", a)[0] == 0
    assert run("decode", tmp_path / "a.vok", "-o", tmp_path / "d.wav")[0] == 0
    assert (tmp_path / "r.wav").read_bytes() == (tmp_path / "d.wav").read_bytes()


# Long recordings

_PEAKS = """
import resource, sys, vokens
codec = vokens.load(sys.argv[1])
for path in sys.argv[2:]:
    tokens = codec.encode(path)
    vokens.audio.save(path + ".flac", codec.decode_spans(tokens), codec.sample_rate)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow  # 15 minutes of speech, in a process of its own
def test_memory_does_not_grow_with_a_recording(tiny_codec_folder, tmp_path):
    """Nine minutes more would be 35 MB as they are read, and 35 MB as they are written."""
    minute = sound(60)
    for minutes in (3, 12):
        soundfile.write(tmp_path / f"{minutes}.wav", np.tile(minute, minutes), RATE)
    words = [sys.executable, "-c", _PEAKS, tiny_codec_folder, tmp_path / "3.wav", tmp_path / "12.wav"]
    run = subprocess.run(words, capture_output=True, text=True, check=True)
    short, long = (int(line) // 1024 for line in run.stdout.split())
    assert long - short < 25


def test_a_long_file_is_encoded_and_decoded_in_spans(codec, tmp_path, run, monkeypatch):
    """The codes and the sound of the whole; a file that turns out damaged leaves nothing behind."""

    def in_spans(frames=70):
        monkeypatch.setattr("vokens.audio.recording.WHOLE_SECONDS", 2)
        monkeypatch.setattr("vokens.models.codec.SPAN_FRAMES", frames)

    in_spans()
    path = write_sound(tmp_path / "a.flac", 9, rate=44100)
    assert run("encode", path)[0] == 0
    tokens = Tokens.load(tmp_path / "a.vok")
    monkeypatch.undo()
    wave = vokens.audio.load(path, RATE)[0]
    whole = codec.encode(wave, RATE)
    assert torch.equal(tokens.codes, whole.codes)
    assert int(tokens.num_samples) == len(wave)
    in_spans()
    assert run("decode", tmp_path / "a.vok", "-o", tmp_path / "b.wav")[0] == 0
    in_spans(10**6)
    is_sound(tmp_path / "b.wav", codec.decode(whole)[0], atol=1e-4)
    wave[-1] = np.nan  # beyond what is read at once
    soundfile.write(tmp_path / "nan.wav", wave, RATE, subtype="FLOAT")
    assert run("encode", tmp_path / "nan.wav")[0] == 2
    assert not (tmp_path / "nan.vok").exists()
