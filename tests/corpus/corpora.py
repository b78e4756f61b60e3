"""Corpora in every form that can be listed, and what a folder holds: for the tests of this folder."""

import gzip
import hashlib
import io
import json
import os
import random
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile

import vokens
from vokens.data.items import CodecInfo, Row
from vokens.data.outputs import Output

RATE = 8000
NAMES = ["a", "b c", "日本/é", "deep/er/x.y", "e", "f", "g"]  # blanks, letters beyond ASCII, dots, folders
TEXTS = ["one", "zwei drei", "日本語", 'x: "y" \\ z', "5", "six", "seven"]


def wave(i: int) -> np.ndarray:
    return (np.random.default_rng(i).integers(-9000, 9000, 400 + 10 * i) / 32768).astype(np.float32)


def wav(i: int) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, wave(i), RATE, "PCM_16", format="WAV")
    return out.getvalue()


def write_corpus(top: Path) -> Path:
    """The corpus as files below a folder."""
    for i, name in enumerate(NAMES):
        path = top / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(wav(i))
    return top


def write(path: Path, lines: Iterable[str]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(path)


def write_jsonl(path: Path, lines: Iterable[dict]) -> str:
    return write(path, (json.dumps(line, ensure_ascii=i % 2 == 0) for i, line in enumerate(lines)))


def write_tar(path: Path, members: Mapping[str, bytes], mode: str = "w") -> str:
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return str(path)


def write_table(path: Path, columns: Mapping[str, object], **options) -> str:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(columns), path, **options)
    return str(path)


def cuts(folder: Path):
    from lhotse import CutSet, MonoCut, Recording, SupervisionSegment

    made = []
    for i, name in enumerate(NAMES):
        recording = Recording.from_file(folder / f"{name}.wav")
        spoken = SupervisionSegment(name, recording.id, 0, 0.01, text=TEXTS[i], speaker="s", language="en")
        made.append(MonoCut(name, 0, recording.duration, 0, [spoken], recording=recording))
    return CutSet.from_cuts(made)


def members(numbers: Iterable[int]) -> dict[str, bytes]:
    """Samples of a WebDataset, with a suffix in capitals and a name too long for one header."""
    made = {}
    for i in numbers:
        key = NAMES[i].replace(".", "_") + "z" * 150 * (i == 5)
        made[f"{key}.json"] = json.dumps({"text": "no", "speaker": "s"}).encode()
        made[f"{key}.TXT" if i == 1 else f"{key}.txt"] = f"{TEXTS[i]}\n".encode()
        made[f"{key}.wav"] = wav(i)
    return made


def columns(low: int = 0, high: int = 7) -> dict[str, object]:
    sounds = [{"bytes": wav(i), "path": f"{i}.wav"} for i in range(low, high)]
    texts = {"text": TEXTS[low:high], "id": NAMES[low:high], "speaker_id": ["s"] * (high - low)}
    return {"audio": sounds, **texts}


def write_tables(out: Path) -> dict[str, str]:
    """Parquet files as on the hub; and as datasets.save_to_disk writes: arrow streams, and lists of them."""
    import pyarrow

    names = [f"data-{shard:05d}-of-00002.arrow" for shard in range(2)]
    state = {"_data_files": [{"filename": name} for name in names], "_split": "train"}
    write(out / "saved" / "train" / "state.json", [json.dumps(state)])
    write(out / "saved" / "dataset_dict.json", ['{"splits": ["train"]}'])
    for shard, (name, span) in enumerate(zip(names, [(0, 5), (5, 7)], strict=True)):
        file = out / "hf" / "data" / f"train-{shard:05d}-of-00002.parquet"
        write_table(file, columns(*span), row_group_size=2)
        rows = pyarrow.table(columns(*span))
        with pyarrow.ipc.new_stream(str(out / "saved" / "train" / name), rows.schema) as stream:
            stream.write_table(rows, max_chunksize=2)
    return {"parquet": f"{out}/hf", "saved": f"{out}/saved"}


def write_forms(folder: Path, out: Path) -> dict[str, str]:
    """Every other way to list the corpus, by name."""
    files = [f"{folder}/{name}.wav" for name in NAMES]
    lines = [{"id": name, "text": text, "speaker": "s"} for name, text in zip(NAMES, TEXTS, strict=True)]
    ours = [line | {"path": os.path.relpath(file, out)} for line, file in zip(lines, files, strict=True)]
    nemo = [
        {"audio_filepath": file, "duration": 0.05} | line for line, file in zip(lines, files, strict=True)
    ]
    keys = [name.replace(" ", "_") for name in NAMES]
    write(out / "kaldi" / "wav.scp", map("  ".join, zip(keys, files, strict=True)))
    write(out / "kaldi" / "text", reversed([f"{key} {text}" for key, text in zip(keys, TEXTS, strict=True)]))
    forms = {"ours": write_jsonl(out / "ours.jsonl", ours), "nemo": write_jsonl(out / "nemo.json", nemo)}
    (out / "ours.jsonl.gz").write_bytes(gzip.compress(Path(forms["ours"]).read_bytes()))
    cuts(folder).to_file(out / "cuts.jsonl.gz")
    (out / "shar").mkdir()
    cuts(folder).to_shar(out / "shar", fields={"recording": "flac"}, shard_size=3)
    for shard, numbers in enumerate([range(4), range(4, 7)]):
        write_tar(out / f"wds-{shard:03d}.tar", members(numbers))
    forms |= {"ours_gz": f"{out}/ours.jsonl.gz", "lhotse": f"{out}/cuts.jsonl.gz", "shar": f"{out}/shar"}
    forms |= {"kaldi": f"{out}/kaldi", "webdataset": f"{out}/wds-{{000..001}}.tar"}
    forms["webdataset_gz"] = write_tar(out / "wds.tar.gz", members(range(7)), "w:gz")
    forms["path_list"] = write(out / "files.txt", files)
    return forms | {"as_folder": str(folder), "as_glob": f"{folder}/**/*.wav"}


def write_clips(folder: Path, count: int, bad: int) -> Path:
    """A manifest of short pieces of the package's samples, one of them damaged."""
    samples = Path(vokens.__file__).parent / "samples"
    waves = [soundfile.read(samples / f"{name}.flac", dtype="float32") for name in ("english", "mandarin")]
    draw, names = random.Random(0), [f"clip{i:02d}" for i in range(count)]
    for i, name in enumerate(names):
        wave, rate = waves[i % 2]
        length = draw.randint(rate // 10, rate // 2)
        start = draw.randint(0, len(wave) - length)
        soundfile.write(folder / f"{name}.wav", wave[start : start + length], rate)
    (folder / f"{names[bad]}.wav").write_bytes(b"no audio")
    lines = ({"id": name, "path": f"{name}.wav"} for name in names)
    return Path(write_jsonl(folder / "corpus.jsonl", lines))


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder and its digest."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def write_shard(
    folder: Path, output: Output, shard: int, rows: Sequence[Row], facts: CodecInfo
) -> list[Path]:
    """Write a shard as a run does: to an empty folder, then each file to its place; returns those places."""
    scratch = folder / f".scratch-{shard}"
    scratch.mkdir(parents=True)
    files = output.write(scratch, shard, rows, facts)
    assert {path for path in scratch.rglob("*") if path.is_file()} == {scratch / file.path for file in files}
    for file in files:
        (folder / file.final).parent.mkdir(parents=True, exist_ok=True)
        (scratch / file.path).rename(folder / file.final)
    return [file.final for file in files]
