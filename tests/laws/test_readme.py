"""The README's commands and code run as written, with the embedded codec."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import soundfile

from vokens import audio
from vokens.cli import main

README = (Path(__file__).parents[2] / "README.md").read_text()
SAMPLE = Path(audio.__file__).parent.parent / "samples" / "english.flac"
COMMANDS = [
    line.split("#")[0].strip()
    for block in re.findall(r"```console\n(.*?)```", README, re.S)
    for line in block.splitlines()
    if line.startswith("vokens ")
]
NEED_MORE = tuple(  # data, weights, or a reader at the keyboard
    f"vokens {verb}" for verb in ("train", "bench", "speak", "convert-voice", "say", "web", "serve")
)
OFFLINE = [line for line in COMMANDS if not line.startswith(NEED_MORE)]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    wave, rate = soundfile.read(SAMPLE)
    soundfile.write(tmp_path / "hello.wav", wave[: 2 * rate], rate)
    (tmp_path / "corpus").mkdir()
    soundfile.write(tmp_path / "corpus/one.wav", wave[:rate], rate)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_python_blocks_run(here: Path) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README, re.S)
    names: dict = {}
    exec(block, names)
    assert [wave.shape for wave in names["waves"]] == [wave.shape for wave in names["coarse"]]
    assert all(np.isfinite(wave).all() for wave in names["waves"])
    assert (here / "hello.vok").exists()


def test_commands_run_in_order(here: Path) -> None:
    assert len(OFFLINE) >= 5
    for line in OFFLINE:
        assert main(shlex.split(line)[1:]) == 0, line
    assert all(
        (here / name).exists()
        for name in ("hello.vok", "again.wav", "content.wav", "resynthesis.png", "tokens.png")
    )


def test_lines_that_need_more_parse(here: Path) -> None:
    for line in set(COMMANDS) - set(OFFLINE):
        assert main([*shlex.split(line)[1:3], "--help"]) == 0, line


def test_linked_files_exist() -> None:
    root = Path(__file__).parents[2]
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert all((root / link).exists() for link in links), links
