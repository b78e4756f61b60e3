"""The verbs that speak, and the code of the documentation, on a small model with random weights."""

import json
import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import speechlike
from speakers import tiny_s3gen

import vokens
from vokens.cli import main
from vokens.models.s3gen import S3GenModel

DOCS = (Path(__file__).parents[2] / "docs/systems/s3gen.md").read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_s3gen().save_pretrained(tmp_path_factory.mktemp("models") / "s3gen")


@pytest.fixture
def here(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, seconds in (("hello.wav", 0.4), ("ref.wav", 0.48)):
        soundfile.write(tmp_path / name, speechlike(int(seconds * 16000), len(name)), 16000)
    (tmp_path / "s3gen").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_code_of_the_page_runs(here):
    names: dict = {}
    blocks = re.findall(r"```python\n(.*?)```", DOCS, re.S)
    assert len(blocks) == 4
    for block in blocks:
        exec(block, names)
    assert names["mel"].shape == (1, 80, 20)
    assert [wave.shape for wave in names["several"]] == [(9600,), (7 * 960,)]
    assert names["config"].encoder_num_blocks == 1
    assert names["converted"][0].shape == names["waves"][0].shape


def test_commands_of_the_page(here):
    lines = re.findall(r"^vokens ((?:speak|convert-voice).*)$", DOCS, re.M)
    assert len(lines) == 3
    model = vokens.load("s3gen")
    model.tokenize("hello.wav").save("hello.vok")
    for line in lines:
        assert main([*shlex.split(line), "--overwrite"]) == 0, line
    streamed, rate = soundfile.read("out.wav")
    assert (rate, len(streamed)) == (24000, 10 * 960)
    assert len(soundfile.read("other.wav")[0]) == 10 * 960


def test_tokens_without_sound_are_an_error(here, capfd):
    """Of no frames for `speak`, of no samples for `decode`: nothing is written, and the message is about tokens."""
    kept = vokens.load("s3gen").tokenize("hello.wav")
    replace(kept, codes=kept.codes[:, :, :0], lengths=torch.tensor([0])).save("none.vok")
    tokens = vokens.load("mini").encode("hello.wav")
    replace(tokens, num_samples=torch.tensor([0])).save("silent.vok")
    speak = "speak none.vok --voice ref.wav --model s3gen"
    for line in (f"{speak} -o a.wav", f"{speak} --stream -o -", "decode silent.vok -o a.mp3"):
        assert main(line.split()) == 2
        out, error = capfd.readouterr()
        assert out == ""
        assert ".vok holds" in error
    assert not list(Path().glob("a.*"))


def test_spoken_file_is_what_speak_gives(here):
    model = vokens.load("s3gen")
    tokens = model.tokenize(["hello.wav", "ref.wav"])
    for row, name in enumerate(("a.vok", "b.vok")):
        (here / "in").mkdir(exist_ok=True)
        tokens[row].save(here / "in" / name)
    assert main(shlex.split("speak in/ --voice ref.wav -o out/ --model s3gen --seed 3")) == 0
    expected = model.speak(tokens, model.voice(*soundfile.read("ref.wav", dtype="float32")), seed=3)
    for name, wave in zip(("a", "b"), expected, strict=True):
        np.testing.assert_allclose(soundfile.read(f"out/{name}.wav")[0], wave, atol=1e-4)


def test_bare_ids_are_spoken(here, capsys):
    """Of a language model, in every form that holds ids alone, as the same ids in a token file."""
    tokens, folder = vokens.load("s3gen").tokenize("hello.wav"), here / "ids"
    folder.mkdir()
    tokens.save(folder / "a.vok")
    ids = tokens.codes.numpy()
    np.save(folder / "b.npy", ids[0, 0])
    np.savez(folder / "c.npz", codes=ids, lengths=tokens.lengths)
    (folder / "d.json").write_text(json.dumps(ids[0, 0].tolist()))
    assert main(shlex.split("speak ids --voice ref.wav -o out --model s3gen")) == 0
    made = [soundfile.read(path)[0] for path in sorted(Path("out").iterdir())]
    assert len(made) == 4
    assert all(np.array_equal(wave, made[0]) for wave in made)
    capsys.readouterr()
    for number, wrong in enumerate(([6561], [-1], [0.5], [[1], [2]], [])):
        Path("wrong.json").write_text(json.dumps(wrong))
        line = f"speak wrong.json --voice ref.wav -o {number}.wav --model s3gen"
        assert main(line.split()) == 2, wrong
        assert capsys.readouterr().err.count("\n") == 1
    for name in ("s3gen", "chatterbox_s3gen"):
        assert main(f"decode ids/b.npy -o 9.wav --model {name}".split()) == 2
        assert f"{name} is no codec: vokens speak" in capsys.readouterr().err
    assert not list(Path().glob("?.wav"))


def test_streaming_to_standard_output(here, capfdbinary):
    vokens.load("s3gen").tokenize("hello.wav").save("hello.vok")
    line = "speak hello.vok --voice ref.wav --model s3gen --stream -o -"
    assert main(shlex.split(line)) == 0
    data = capfdbinary.readouterr().out
    assert data[:4] == b"RIFF"
    assert len(data) == 44 + 2 * 960 * 10
    assert main([*shlex.split(line)[:-1], "out.flac"]) == 2


def test_convert_writes_a_folder_of_ours(here, capsys):
    assert main(["convert", "s3gen", "-o", "again", "--name", "mine", "--store", "bfloat16"]) == 0
    again = S3GenModel.from_pretrained("again")
    assert (again.name, again.dtype) == ("mine", torch.float32)
    assert main(["convert", "s3gen", "-o", "again"]) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_errors_of_verbs(here, capsys):
    vokens.load("mini").encode("hello.wav").save("mini.vok")
    for line, message in (
        ("speak mini.vok --voice ref.wav --model s3gen -o a.wav", "speaks the one codebook"),
        ("speak mini.vok --voice ref.wav --model mini -o a.wav", "is a mini"),
        ("speak mini.vok --voice missing.wav --model s3gen -o a.wav", "missing.wav"),
        ("convert-voice hello.wav --voice ref.wav --model s3gen", "-o is missing"),
        ("convert hello.wav -o b", "hello.wav"),
    ):
        assert main(shlex.split(line)) == 2, line
        assert message in capsys.readouterr().err


def test_transformers_opens_the_folder(here):
    transformers = pytest.importorskip("transformers")
    assert "vokens.compat.s3gen" not in sys.modules
    import vokens.compat.s3gen as compat

    compat.register()
    assert transformers.AutoConfig.from_pretrained("s3gen").model_type == "s3gen"
    model = transformers.AutoModel.from_pretrained("s3gen")
    assert isinstance(model, S3GenModel)
    assert torch.equal(model.flow.embedding.weight, vokens.load("s3gen").flow.embedding.weight)
