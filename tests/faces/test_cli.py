"""The frame of the command line: verbs, help, errors, exit codes; what models, doctor and demo print."""

import json
import os
import re
import resource
import subprocess
import sys

import pytest

import vokens
from vokens import registry
from vokens.cli import VERBS, main
from vokens.install import install_line
from vokens.tokens import Tokens


def test_overview_names_every_verb_and_version_the_version(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name}" in text for name in VERBS)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"vokens {vokens.__version__}\n"


@pytest.mark.parametrize(
    "words", [[verb] for verb in VERBS] + [["bench", "reconstruct"], ["bench", "report"]]
)
def test_every_verb_explains_itself_to_people(words, capsys):
    assert main([*words, "--help"]) == 0
    page = capsys.readouterr().out
    assert f"usage: vokens {' '.join(words)}" in page
    for odd in ("{None}", "[STR [STR", ".compute", "default: None"):
        assert odd not in page
    for line in page.splitlines():
        assert len(re.findall(r"vokens [a-z]+ [^ ]+", line)) <= 1, line  # one example a line


def test_what_cannot_be_parsed_is_exit_2(capsys):
    assert main([]) == 2
    assert main(["encode", "a.wav", "--overwite"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["enocde", "a.wav"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("vokens: error: unknown verb 'enocde': did you mean 'encode'?")
    assert error.count("\n") == 1


@pytest.mark.parametrize("words", [["--debug", "encode"], ["encode", "--debug"]])
def test_debug_adds_a_traceback(words, capsys):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert error.splitlines()[-1].startswith("vokens: error: no input")
    assert main(["encode"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_interrupt_is_130(monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(registry, "entries", interrupt)
    assert main(["models"]) == 130


@pytest.mark.parametrize("words", [["--help"], *([verb, "--help"] for verb in VERBS)])
def test_help_is_quick_and_leaves_torch_alone(words):
    """Processor time, as other work on the machine changes the clock: 0.3 s; torch alone takes 1.5 s."""
    code = f"import sys; from vokens.cli import main; main({words!r}); assert 'torch' not in sys.modules"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0


def test_published_names_are_at_the_top_and_load_nothing():
    code = (
        "import sys, vokens; assert not {'torch', 'numpy'} & sys.modules.keys(); "
        "from vokens import HiFTNetConfig, HiFTNetModel, S3GenConfig, S3GenModel; "
        "HiFTNetModel(HiFTNetConfig(base_channels=32)); S3GenModel, S3GenConfig(vocab_size=99)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_reader_that_leaves_is_quiet():
    """`vokens models | head -0`: the pipe's reading end is closed before anything is written."""
    reader, writer = os.pipe()
    os.close(reader)
    words = [sys.executable, "-m", "vokens", "--help"]
    done = subprocess.run(words, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize(
    ("given", "spins"), [({}, "10000"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None), ({"GOMP_SPINCOUNT": "7"}, "7")]
)
def test_idle_threads_sleep_soon_unless_the_user_says_otherwise(given, spins, monkeypatch):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert main(["--version"]) == 0
    assert os.environ.get("GOMP_SPINCOUNT") == spins


def test_models_in_a_table_and_in_json_agree(capsys):
    assert main(["models"]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert main(["models", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert " ".join(header.split()) == "name system Hz kbit/s codebooks licence MB from opens"
    assert [row.split()[0] for row in rows] == [fact["name"] for fact in facts] == list(registry.MODELS)
    for row, fact in zip(rows, facts, strict=True):
        assert f"{fact['bitrate'] / 1000:.2f}" in row
        assert fact["licence"] in row


def test_models_and_doctor_try_programs(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))

    def said(verb, code=0):
        assert main([verb]) == code
        lines = capsys.readouterr().out.splitlines()
        return next(line for line in lines if "codec2-1300 " in line)

    assert said("models").endswith("after apt-get install codec2")
    assert "Codec2 needs the program c2enc" in said("doctor")
    for name in ("c2enc", "c2dec"):
        (tmp_path / name).touch(mode=0o755)
    assert said("models").endswith("yes")
    assert said("doctor", code=1).split()[0] == "!"  # they are there, and do not run


@pytest.mark.parametrize("sample", ["english", "mandarin"])
def test_the_demo_writes_everything_and_says_where(sample, tmp_path, tiny_codec_folder, capsys):
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out), "-m", str(tiny_codec_folder), "--sample", sample]) == 0
    text = capsys.readouterr().out
    for name in (f"{sample}.original.wav", f"{sample}.vok", f"{sample}.wav", f"{sample}.png"):
        assert (out / name).stat().st_size > 0
        assert str(out / name) in text
    tokens = Tokens.load(out / f"{sample}.vok")
    for k, codes in enumerate(tokens.codes[0, :, :12].tolist(), start=1):
        line = next(line for line in text.splitlines() if line.startswith(f"codebook {k}"))
        assert [int(word) for word in line.split()[2:-1]] == codes
    assert 4.0 < float(tokens.duration[0]) < 6.0


def test_the_demo_without_matplotlib_is_all_but_the_picture(tmp_path, tiny_codec_folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["demo", "--out", str(tmp_path / "demo"), "-m", str(tiny_codec_folder)]) == 0
    assert install_line("plot") in capsys.readouterr().out
    assert (tmp_path / "demo/english.wav").exists()
