"""`vokens say` end to end: texts, lines, streams, what it refuses, and the lines of its page."""

import io
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import build_tiny_speechtokenizer, speechlike
from speakers import tiny_speech, tiny_uslm

import vokens
from vokens import registry
from vokens.cli import main
from vokens.models.learnable.voice import LearnableSpeech
from vokens.models.speaking import generator_of

BOOK = "The fox, which was quick, ran over 3 dogs in the long morning. They slept on. " * 4


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    tiny_speech().save_pretrained(root / "learnable")
    tiny_uslm().save_pretrained(root / "runs/uslm/model")
    build_tiny_speechtokenizer().save_pretrained(root / "codec")
    return root


@pytest.fixture
def here(folders, tmp_path, monkeypatch):
    """A folder with the models and ref.wav."""
    for path in folders.iterdir():
        (tmp_path / path.name).symlink_to(path)
    soundfile.write(tmp_path / "ref.wav", speechlike(9600, 1), 16000)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said(*words):
    return main(["say", *words, "--model", "learnable", "--voice", "ref.wav", "--steps", "1"])


def samples(path):
    return soundfile.read(path, dtype="float32")[0]


def test_a_text_becomes_a_file(here, capsys):
    assert said("It was", "5 o'clock.", "-o", "out.flac", "--seed", "3") == 0
    assert "wrote out.flac" in capsys.readouterr().err
    model = vokens.load("learnable")
    (expected,) = model.say("It was 5 o'clock.", "ref.wav", steps=1, generator=generator_of(3))
    assert soundfile.info("out.flac").samplerate == 24000
    np.testing.assert_allclose(samples("out.flac"), expected.clip(-1, 1), atol=1e-4)
    assert said("Hello there.") == said("Hello there.", "-o", "folder/") == 0
    assert np.array_equal(samples("said.wav"), samples("folder/said.wav"))
    assert said("Hello there.") == 2  # said.wav exists
    assert said("Hello there.", "--force", "--voice-text", "one") == 0


def test_lines_of_a_file_become_files_and_a_second_run_goes_on(here, capsys):
    Path("lines.txt").write_text("Hello there.\n\nname\tIt was not there.\nNo, it was not!\n")
    assert said("--file", "lines.txt", "-o", "out") == 0
    names = ["0001.wav", "0004.wav", "name.wav"]
    assert sorted(path.name for path in Path("out").iterdir()) == names
    assert "3 of 3 done" in capsys.readouterr().err
    first = samples("out/0001.wav")
    Path("out/0004.wav").unlink()
    times = Path("out/name.wav").stat().st_mtime_ns
    assert said("--file", "lines.txt", "-o", "out") == 0
    assert "2 of 3 exist" in capsys.readouterr().err
    assert Path("out/name.wav").stat().st_mtime_ns == times
    assert said("No, it was not!", "-o", "alone.wav") == 0  # a line alone is the line among others
    np.testing.assert_allclose(samples("alone.wav"), samples("out/0004.wav"), atol=1e-4)
    assert said("--file", "lines.txt", "-o", "out", "--force") == 0
    assert np.array_equal(samples("out/0001.wav"), first)


def test_a_model_that_says_nothing_is_an_error(here, capfdbinary):
    for words in ("-o a.wav", "-o a.mp3", "--stream -o a.wav", "--stream -o -", "-o -"):
        assert said("Hi", *words.split()) == 2  # two letters, on which the tiny model ends at once
        out, error = capfdbinary.readouterr()
        assert b"another seed, or a longer text" in error
        assert out == b""
    Path("lines.txt").write_text("Hi\nHello there.\n")
    assert said("--file", "lines.txt", "-o", "out") == 1
    assert b"line 1: the model ended at once" in capfdbinary.readouterr().err
    assert [path.name for path in Path("out").iterdir()] == ["0002.wav"]
    assert not list(Path().glob("a.*"))


def test_a_line_that_fails_leaves_the_others(here, capsys):
    Path("lines.txt").write_text("Hello there.\n你好。\nNo, it was not!\n", encoding="utf-8")
    assert said("--file", "lines.txt", "-o", "out") == 1
    captured = capsys.readouterr().err
    assert "line 2" in captured
    assert "2 of 3 done" in captured
    assert sorted(path.name for path in Path("out").iterdir()) == ["0001.wav", "0003.wav"]


def test_standard_input_and_output(here, capfdbinary, monkeypatch):
    text = "Hello there, all of you who are here."
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert said("-", "-o", "-", "--stream", "--format", "pcm") == 0
    raw = np.frombuffer(capfdbinary.readouterr().out, "<i2")
    assert said(text, "--stream", "-o", "-") == 0
    header = capfdbinary.readouterr().out
    assert header[:4] == b"RIFF"
    assert np.array_equal(np.frombuffer(header[44:], "<i2"), raw)
    assert said(text, "--stream", "-o", "streamed.wav") == 0
    assert len(samples("streamed.wav")) == len(raw)
    assert said(text, "-o", "-", "--format", "pcm") == 0
    assert len(np.frombuffer(capfdbinary.readouterr().out, "<i2")) == len(raw)


def test_standard_input_that_is_not_utf8_is_refused(here, monkeypatch, capsys):
    for words in (["-"], ["--file", "-", "-o", "out"]):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Good\ncaf\xe9 morning")))
        assert said(*words) == 2
        assert "standard input, line 2, byte 4: 0xe9 is not UTF-8" in capsys.readouterr().err


def test_what_a_language_model_writes_is_said(here, caplog, capsys):
    assert said("**Good** morning 😀, it's 5℃ – see `x²` → ∞, 你好!", "-o", "llm.wav") == 0
    assert "does not know 你 好: left out" in caplog.text
    assert len(samples("llm.wav"))
    assert said("你好", "-o", "none.wav") == 2
    assert "cannot be spoken" in capsys.readouterr().err


def test_uslm_with_its_codec(here):
    words = ["say", "Hello", "--model", "runs/uslm/model", "--decoder", "codec", "-o", "uslm.wav"]
    assert main([*words, "--voice", "ref.wav", "--voice-text", "one", "--top-p", "0.9"]) == 0
    assert main([*words, "--temperature", "0", "--force"]) == 0  # without a prompt
    assert soundfile.info("uslm.wav").samplerate == 16000


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["Hi"], "not in this copy of vokens"),
        ([], "neither was given"),
        (["Hi", "--file", "x"], "both were given"),
        (["Hi", "-o", "x.txt", "-m", "learnable"], "ends in .txt"),
        (["Hi", "-o", "x.mp3", "--stream", "-m", "learnable"], "--stream writes"),
        (["Hi", "-o", "x.mp3", "--format", "wav", "-m", "learnable"], "disagree"),
        (["--file", "missing", "-o", "out"], "cannot be read"),
        (["--file", "ref.txt"], "give a folder"),
        (["--file", "twice.txt", "-o", "out"], "both called"),
        (["--file", "outside.txt", "-o", "out"], "inside the folder"),
        (["Hi", "-m", "learnable"], "give a recording"),
        (["Hi", "-m", "learnable", "--voice-text", "one"], "without --voice"),
        (["Hi", "-m", "codec"], "speaks no text"),
        (["Hi", "-m", "learnable/lm"], "an S3Gen decodes"),
        (["Hi", "--seed", "-1"], "--seed from 0"),
        (["...", "-m", "learnable", "--voice", "ref.wav"], "nothing to say"),
    ],
)
def test_errors_say_what_to_do(here, capsys, monkeypatch, words, reason):
    monkeypatch.delitem(registry.MODELS, registry.VOICE, raising=False)  # a copy without a voice
    Path("twice.txt").write_text("a\tHello\na\tHello\n")
    Path("outside.txt").write_text("../a\tHello\n")
    assert main(["say", *words]) == 2
    assert reason in capsys.readouterr().err
    assert not list(here.glob("*.mp3"))


def test_the_page_runs(here, monkeypatch):
    page = (Path(__file__).parents[2] / "docs/jobs/say.md").read_text()
    for part in ("lm", "flow", "autoencoder", "tokenizer"):
        Path(part).symlink_to(here / "learnable" / part)
    Path("uslm").symlink_to(here / "runs/uslm/model")
    Path("book.txt").write_text(BOOK)
    Path("lines.txt").write_text("Hello there.\nname\tIt was not there.\n")
    lines = [line for block in re.findall(r"```console\n(.*?)```", page, re.S) for line in block.splitlines()]
    assert len(lines) == 8
    for line in lines:
        words, _, source = line.partition(" | ")[0].partition(" < ")
        if "--decoder s3gen" in words or "-o -" in words:  # tested above
            continue
        if source:
            monkeypatch.setattr("sys.stdin", io.StringIO(Path(source).read_text()))
        assert main(shlex.split(words)[1:]) == 0, line
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.S):
        exec(block, names)
        for call, result in re.findall(r'(normalise\(".*?"\))\s+# (.*)', block):
            assert eval(call, names) == result
    assert len(names["waves"]) == 2
    assert isinstance(vokens.load("together"), LearnableSpeech)
