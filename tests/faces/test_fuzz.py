"""300 damaged inputs through the verbs: every one ends in a result or in one line of error, none takes 10 s.

A damaged file is a good one of its kind after seeded cuts, flips, insertions and swaps, so a failure can be seen
again by its name alone.
"""

import io
import json
import signal
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import speechlike

from vokens.cli import main

SECONDS = 10  # of one input; a healthy run takes a few hundredths
EACH = 11  # damaged copies of one kind: 28 kinds, 308 inputs


def _audio(suffix: str) -> Callable[[Path], None]:
    formats = {"aiff": {"format": "AIFF"}, "opus": {"format": "OGG", "subtype": "OPUS"}}
    return lambda path: soundfile.write(path, speechlike(16000), 16000, **formats.get(suffix, {}))


def _tar(path: Path) -> None:
    with tarfile.open(path, "w") as tar:
        for name in ("a", "b"):
            sound = io.BytesIO()
            soundfile.write(sound, speechlike(4000), 16000, format="WAV")
            files = {"wav": sound.getvalue(), "txt": b"two words", "json": b'{"speaker": "s"}'}
            for suffix, data in files.items():
                member = tarfile.TarInfo(f"{name}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def _lines(*rows: object) -> Callable[[Path], None]:
    """A text file of rows, each a json object or a line; {dir} is its folder, where a.wav and b.flac are."""

    def write(path: Path) -> None:
        _audio("wav")(path.parent / "a.wav")
        _audio("flac")(path.parent / "b.flac")
        text = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n"
        path.write_text(text.replace("{dir}", str(path.parent)))

    return write


ROWS = (
    {
        "id": "a",
        "audio": "{dir}/a.wav",
        "duration": 1.0,
        "text": "two words",
        "split": "test",
        "speaker": "s",
    },
    {"id": "b", "audio_filepath": "{dir}/b.flac", "offset": 0.25, "duration": 0.5, "lang": "en"},
)
CUT = {
    "id": "c", "start": 0.1, "duration": 0.5, "channel": 0, "type": "MonoCut",
    "recording": {"id": "a", "sources": [{"type": "file", "channels": [0], "source": "{dir}/a.wav"}],
                  "sampling_rate": 16000, "num_samples": 16000, "duration": 1.0},
}  # fmt: skip
RECIPE = """
task = "codec"
steps = 0
[model]
width = 16
latent_dim = 8
num_codebooks = 2
codebook_size = 8
[data]
train = "{dir}"
valid = "{dir}"
seconds = 0.5
[optim]
learning_rate = 1e-3
"""

EXTRACT = ("extract {file} --out {out} -m {model} --workers 0",)
# Kind of file: how a good one is written, and the command lines that read it.
KINDS: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    **{
        suffix: (_audio(suffix), ("encode {file} -o {out} -m {model}",))
        for suffix in ("wav", "flac", "mp3", "ogg", "opus", "aiff", "au", "w64", "rf64", "caf")
    },
    "trip.wav": (_audio("wav"), ("roundtrip {file} -o {out} -m {model}",)),
    "voice.flac": (_audio("flac"), EXTRACT),
    "tar": (_tar, EXTRACT),
    "jsonl": (_lines(*ROWS), EXTRACT),
    "cuts.jsonl": (_lines(CUT), EXTRACT),
    "wav.scp": (_lines("a {dir}/a.wav", "b {dir}/b.flac"), EXTRACT),
    "list.txt": (_lines("{dir}/a.wav", "{dir}/b.flac"), EXTRACT),
    "bench.jsonl": (_lines(*ROWS), ("bench tokens --models {model} --data {file} --out {out}",)),
    "toml": (_lines(RECIPE), ("train {file} --set out={out}",)),
    **{
        f"tokens.{suffix}": (lambda path: None, ("decode {file} -o {out} -m {model}",))
        for suffix in ("vok", "json", "npz", "pt")
    },
    "safetensors": (lambda path: None, ("encode {sound} -o {out} -m {file}", "convert {file} -o {out}")),
    "config.json": (lambda path: None, ("encode {sound} -o {out} -m {folder}",)),
    "ckpt.pt": (
        lambda path: torch.save({"state_dict": {"a.b": torch.ones(3)}}, path),
        ("encode {sound} -m {file}",),
    ),
    "model.onnx": (lambda path: path.write_bytes(bytes(range(256)) * 8), ("encode {sound} -m {file}",)),
    "plan.jsonl": (
        lambda path: None,
        ("extract {sounds} --out {folder} -m {model} --workers 0", "inspect {folder}"),
    ),
}


def damaged(good: bytes, seed: int) -> bytes:
    """One of the ways in which files are broken on disks and by hands."""
    draw = np.random.default_rng(seed)
    data = bytearray(good)
    at, length = (int(draw.integers(len(data) + 1)) for _ in range(2))
    match seed % 10:
        case 0:
            return bytes(data[:at])
        case 1:
            return bytes(data[at:])
        case 2:
            data[at:at] = draw.bytes(37)
        case 3:
            data[at : at + length % 200] = b""
        case 4:
            data[at : at + 16] = bytes(16)
        case 5:
            data[:32] = draw.bytes(32)
        case 6:
            return bytes(data + data[at:])
        case 7:
            return bytes(data).replace(b'"', b"'", 1 + at % 4).replace(b"1", b"-1", 1 + at % 3)
        case 8:
            return bytes(data).replace(b"0", b"9" * 25, 1 + at % 3)
        case _:
            for place in draw.integers(len(data), size=1 + len(data) // 50):
                data[place] ^= int(draw.integers(1, 256))
    return bytes(data)


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    def late(*_: object) -> None:
        raise TimeoutError(f"took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def prepare(kind: str, folder: Path, model: Path, sound: Path) -> Path:
    """A good file of the kind, alone or in the folder where it belongs."""
    folder.mkdir()
    write, _ = KINDS[kind]
    if kind in ("safetensors", "config.json"):
        for file in model.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        return folder / ("model.safetensors" if kind == "safetensors" else kind)
    if kind == "plan.jsonl":
        assert main(f"extract {sound.parent} --out {folder} -m {model} --workers 0".split()) == 0
        return next(iter(sorted(folder.glob("*.json*"))))
    path = folder / (kind if "." in kind else f"file.{kind}")
    if kind.startswith("tokens."):
        assert main(["encode", str(sound), "-o", str(path), "-m", str(model)]) == 0
    write(path)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_inputs_end_in_one_line(kind, tiny_codec_folder, tmp_path, capfd):
    (tmp_path / "sounds").mkdir()
    sound = tmp_path / "sounds" / "good.wav"
    _audio("wav")(sound)
    path = prepare(kind, tmp_path / "in", tiny_codec_folder, sound)
    good, commands = path.read_bytes(), KINDS[kind][1]
    for number in range(EACH):
        path.write_bytes(damaged(good, EACH * sum(kind.encode()) + number))
        for i, command in enumerate(commands):
            line = command.format(
                file=path, folder=path.parent, sound=sound, sounds=sound.parent, model=tiny_codec_folder,
                out=tmp_path / f"out-{number}-{i}{'.vok' if 'encode' in command else ''}",
            )  # fmt: skip
            capfd.readouterr()
            with at_most(SECONDS):
                code = main(line.split())  # an error that is no VokensError ends the test here
            _, errors = capfd.readouterr()
            assert code in (0, 1, 2), f"{line}: exit code {code}"
            assert "Traceback" not in errors, f"{line}: {errors}"
            assert code == 0 or "vokens:" in errors, f"{line}: {code} without a word: {errors}"
