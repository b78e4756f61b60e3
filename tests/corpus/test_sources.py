"""Every way to list a corpus gives the same utterances, once, in order, at any shard size."""

import gzip
import io
import json
import os
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import refused
from hypothesis import given, settings
from hypothesis import strategies as st

from vokens import audio
from vokens.corpus.decode import decode
from vokens.data.fetch import open_audio
from vokens.data.items import Source, Utterance
from vokens.data.sources import SourceOptions, open_source
from vokens.data.sources.records import parse_line, read_manifest
from vokens.errors import ConfigError, DownloadError, MissingExtra

RATE = 8000
NAMES = ["a", "b c", "日本/é", "deep/er/x.y", "e", "f", "g"]  # blanks, letters beyond ASCII, dots, folders
TEXTS = ["one", "zwei drei", "日本語", 'x: "y" \\ z', "5", "six", "seven"]


def wave(i: int) -> np.ndarray:
    return (np.random.default_rng(i).integers(-9000, 9000, 400 + 10 * i) / 32768).astype(np.float32)


def wav(i: int) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, wave(i), RATE, "PCM_16", format="WAV")
    return out.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The corpus as files, below a folder whose name has a blank."""
    top = tmp_path_factory.mktemp("my corpus")
    for i, name in enumerate(NAMES):
        path = top / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(wav(i))
    return top


def write(path: Path, lines: Iterable[str]) -> str:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(path)


def write_jsonl(path: Path, lines: Iterable[dict]) -> str:
    return write(path, (json.dumps(line, ensure_ascii=i % 2 == 0) for i, line in enumerate(lines)))


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def ours(folder: Path, out: Path) -> str:
    lines = [
        {"id": name, "path": os.path.relpath(folder / f"{name}.wav", out), "text": text, "speaker": "s"}
        for name, text in zip(NAMES, TEXTS, strict=True)
    ]
    return write_jsonl(out / "ours.jsonl", lines)


def ours_gz(folder: Path, out: Path) -> str:
    packed = out / "ours.jsonl.gz"
    packed.write_bytes(gzip.compress(Path(ours(folder, out)).read_bytes()))
    return str(packed)


def nemo(folder: Path, out: Path) -> str:
    facts = {"duration": 0.05, "speaker": "s"}
    lines = [
        {"audio_filepath": str(folder / f"{name}.wav"), "text": text, "id": name} | facts
        for name, text in zip(NAMES, TEXTS, strict=True)
    ]
    return write_jsonl(out / "nemo.json", lines)


def cuts(folder: Path):
    from lhotse import CutSet, MonoCut, Recording, SupervisionSegment

    made = []
    for i, name in enumerate(NAMES):
        recording = Recording.from_file(folder / f"{name}.wav")
        spoken = SupervisionSegment(name, recording.id, 0, 0.01, text=TEXTS[i], speaker="s", language="en")
        made.append(MonoCut(name, 0, recording.duration, 0, [spoken], recording=recording))
    return CutSet.from_cuts(made)


def lhotse(folder: Path, out: Path) -> str:
    cuts(folder).to_file(out / "cuts.jsonl.gz")
    return str(out / "cuts.jsonl.gz")


def shar(folder: Path, out: Path) -> str:
    (out / "shar").mkdir()
    cuts(folder).to_shar(out / "shar", fields={"recording": "flac"}, shard_size=3)
    return str(out / "shar")


def kaldi(folder: Path, out: Path) -> str:
    (out / "kaldi").mkdir()
    keys = [name.replace(" ", "_") for name in NAMES]
    write(
        out / "kaldi" / "wav.scp",
        (f"{key}  {folder}/{name}.wav" for key, name in zip(keys, NAMES, strict=True)),
    )
    write(out / "kaldi" / "text", reversed([f"{key} {text}" for key, text in zip(keys, TEXTS, strict=True)]))
    return str(out / "kaldi")


def webdataset(folder: Path, out: Path) -> str:
    for shard, numbers in enumerate([range(4), range(4, 7)]):
        with tarfile.open(out / f"wds-{shard:03d}.tar", "w") as tar:
            for i in numbers:
                key = NAMES[i].replace(".", "_") + "z" * 150 * (i == 5)  # a name too long for one header
                add(tar, f"{key}.json", json.dumps({"text": "no", "speaker": "s"}).encode())
                add(tar, f"{key}.TXT" if i == 1 else f"{key}.txt", f"{TEXTS[i]}\n".encode())
                add(tar, f"{key}.wav", wav(i))
    return str(out / "wds-{000..001}.tar")


def webdataset_gz(folder: Path, out: Path) -> str:
    webdataset(folder, out)
    packed = out / "wds.tar.gz"
    with tarfile.open(packed, "w:gz") as whole:
        for shard in sorted(out.glob("wds-*.tar")):
            with tarfile.open(shard) as tar:
                for info in tar:
                    whole.addfile(info, tar.extractfile(info))
    return str(packed)


def table():
    pyarrow = pytest.importorskip("pyarrow")
    audio_column = [{"bytes": wav(i), "path": f"{i}.wav"} for i in range(len(NAMES))]
    return pyarrow.table(
        {"text": TEXTS, "audio": audio_column, "id": NAMES, "speaker_id": ["s"] * len(NAMES)}
    )


def parquet(folder: Path, out: Path) -> str:
    rows = table()
    from pyarrow import parquet as pq

    (out / "hf" / "data").mkdir(parents=True)
    for shard, (low, high) in enumerate([(0, 5), (5, 7)]):
        part = rows.slice(low, high - low)
        pq.write_table(part, out / "hf" / "data" / f"train-{shard:05d}-of-00002.parquet", row_group_size=2)
    return str(out / "hf")


def saved(folder: Path, out: Path) -> str:
    """As datasets.save_to_disk writes it: arrow streams, and a state.json that lists them."""
    rows = table()
    import pyarrow

    (out / "saved" / "train").mkdir(parents=True)
    names = []
    for shard, (low, high) in enumerate([(0, 5), (5, 7)]):
        names.append(f"data-{shard:05d}-of-00002.arrow")
        with pyarrow.ipc.new_stream(str(out / "saved" / "train" / names[-1]), rows.schema) as stream:
            stream.write_table(rows.slice(low, high - low), max_chunksize=2)
    state = {"_data_files": [{"filename": name} for name in names], "_split": "train"}
    (out / "saved" / "train" / "state.json").write_text(json.dumps(state))
    (out / "saved" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    return str(out / "saved")


def path_list(folder: Path, out: Path) -> str:
    return write(out / "files.txt", (f"{folder}/{name}.wav" for name in NAMES))


def as_folder(folder: Path, out: Path) -> str:
    return str(folder)


def as_glob(folder: Path, out: Path) -> str:
    return f"{folder}/**/*.wav"


TEXTED = [ours, ours_gz, nemo, lhotse, shar, kaldi, webdataset, webdataset_gz, parquet, saved]
BARE = [path_list, as_folder, as_glob]


def read_all(source: Source, size: int) -> list[Utterance]:
    """All utterances, by spans of `size`, each of which is what was planned."""
    found: list[Utterance] = []
    for span, keys in source.plan(size):
        assert 1 <= len(keys) <= size
        assert span.count == len(keys)
        read = list(source.read(span))
        assert [utterance.key for utterance in read] == keys
        found += read
    return found


def samples(utterance: Utterance) -> list[float]:
    played, rate = audio.load(open_audio(utterance), offset=utterance.start, duration=utterance.duration)
    assert rate == RATE
    return played.tolist()


@pytest.mark.parametrize("form", TEXTED + BARE)
def test_all_forms_give_the_same_utterances_at_any_shard_size(form, folder, tmp_path):
    spec = form(folder, tmp_path)
    source = open_source(spec, listing=tmp_path / "run")
    whole = read_all(source, 100)
    order = sorted(range(len(NAMES)), key=lambda i: os.path.split(NAMES[i])) if form in BARE[1:] else range(7)
    assert len(whole) == len(NAMES)
    if form in BARE:
        assert [utterance.key for utterance in whole] == [NAMES[i] for i in order]
    elif form not in (kaldi, webdataset, webdataset_gz):  # whose keys have no blanks, or no dots
        assert [utterance.key for utterance in whole] == NAMES
    for i, utterance in zip(order, whole, strict=True):
        assert samples(utterance) == wave(i).tolist()
        assert (utterance.start, utterance.duration) == (0.0, None)
        assert utterance.text == (None if form in BARE else TEXTS[i])
        assert utterance.speaker == (None if form in [*BARE, kaldi] else "s")
    for size in range(1, 9):
        assert read_all(source, size) == whole
    # Another process, another order of spans, the list of the first run
    again = open_source(spec, listing=tmp_path / "run")
    spans = [span for span, _ in source.plan(2)]
    assert [utterance for span in reversed(spans) for utterance in reversed(list(again.read(span)))] == whole[
        ::-1
    ]


names = st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"], include_characters=" \xa0"), min_size=1)


@settings(max_examples=40, deadline=None)
@given(st.lists(names.map(str.strip).filter(bool), unique=True, min_size=1, max_size=12), st.integers(1, 13))
def test_line_sources_keep_any_name_at_any_shard_size(tmp_path_factory, names, size):
    out = tmp_path_factory.mktemp("lines")
    paths = [f"/data/{name}.wav" for name in names]
    write_jsonl(
        out / "m.jsonl", [{"id": name, "path": path} for name, path in zip(names, paths, strict=True)]
    )
    write(out / "m.txt", paths)
    scp = write(out / "m.scp", (f"key{i}\t{path}\r\n" for i, path in enumerate(paths)))  # blank lines, CRLF
    for file, keys in (("m.jsonl", names), ("m.scp", [f"key{i}" for i in range(len(names))])):
        found = read_all(open_source(str(out / file), listing=out / "run"), size)
        assert [(utterance.key, utterance.audio) for utterance in found] == list(
            zip(keys, paths, strict=True)
        )
    listed = read_all(open_source(str(out / "m.txt"), listing=out / "run"), size)
    assert [utterance.audio for utterance in listed] == paths
    assert len({utterance.key for utterance in listed}) == len(paths)
    assert read_all(open_source(scp, listing=out / "run"), 1)[-1].audio == paths[-1]


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(st.text(), st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(), max_size=3)
    | st.lists(st.integers(), max_size=2),
    st.sampled_from(["", " ", "\r", ",", "}", "{}"]),
    st.booleans(),
)
def test_lines_are_parsed_as_json_parses_them(value, after, ascii_only):
    line = json.dumps(value, ensure_ascii=ascii_only) + after
    try:
        expected = json.loads(line)
    except ValueError:
        expected = None
    if type(expected) is dict:
        assert parse_line(f" {line}\n".encode()) == expected
    else:
        refused(ConfigError, "one", lambda: parse_line(line.encode()))


# What is frozen


def test_a_rerun_sees_the_list_of_the_first_run(folder, tmp_path):
    top = tmp_path / "audio"
    top.mkdir()
    for name in ("b.wav", "a.wav", ".half.wav", "notes.md"):
        (top / name).write_bytes(wav(0))
    for spec in (str(top), f"{top}/*", f"{top}/{{b,a}}.wav"):
        listing = tmp_path / str(abs(hash(spec)))
        first = read_all(open_source(spec, listing=listing), 5)
        assert {utterance.key for utterance in first} == {"a", "b"}
        (top / "later.wav").write_bytes(wav(1))
        (top / "a.wav").rename(top / "a.moved")
        assert read_all(open_source(spec, listing=listing), 5) == first
        (top / "a.moved").rename(top / "a.wav")
        (top / "later.wav").unlink()


def test_files_that_differ_by_suffix_keep_it(tmp_path):
    for name in ("x/a.wav", "x/a.flac", "x/b.wav", "a.wav", "x/v1.0"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    (tmp_path / "in" / "x" / "loop").symlink_to(tmp_path / "in", target_is_directory=True)
    found = read_all(open_source(str(tmp_path / "in"), listing=tmp_path / "run"), 9)
    assert [utterance.key for utterance in found] == ["a", "x/a.flac", "x/a.wav", "x/b"]


def test_keys_of_lists_begin_below_the_folder_that_all_paths_share(tmp_path):
    spec = write(tmp_path / "l.lst", ["/d/one/a.wav", "", "/d/two/a.b.flac", "/d/two/noise 1.5"])
    found = read_all(open_source(spec, listing=tmp_path / "run"), 9)
    assert [utterance.key for utterance in found] == ["one/a", "two/a.b", "two/noise 1.5"]


# Pieces, filters and paths


def test_kaldi_segments(folder, tmp_path):
    write(tmp_path / "wav.scp", [f"r2 {folder}/b c.wav", f"r1 {folder}/a.wav"])
    write(tmp_path / "segments", ["u1 r1 0.01 0.03", "u2 r2 0 0.02 1", "u3 r1 0.02 0.05"])
    write(tmp_path / "text", ["u3 drei", "u1 eins  zwei"])
    found = read_all(open_source(str(tmp_path), listing=tmp_path / "run"), 2)
    assert [(utterance.key, utterance.start, utterance.duration, utterance.text) for utterance in found] == [
        ("u1", 0.01, 0.02, "eins  zwei"),
        ("u2", 0.0, 0.02, None),
        ("u3", 0.02, 0.03, "drei"),
    ]
    assert samples(found[0]) == wave(0)[80:240].tolist()
    options = SourceOptions(segments=tmp_path / "segments", text=tmp_path / "text", with_text=True)
    spoken = read_all(open_source(str(tmp_path / "wav.scp"), listing=tmp_path / "run2", options=options), 2)
    assert [utterance.key for utterance in spoken] == ["u1", "u3"]


def test_pieces_of_manifests(folder, tmp_path):
    from lhotse import CutSet

    path = str(folder / "a.wav")
    lines = [
        {"audio_filepath": path, "offset": 0.01, "duration": 0.02},
        {"audio_filepath": path, "duration": 0.02},
    ]
    found = read_all(open_source(write_jsonl(tmp_path / "n.jsonl", lines), listing=tmp_path), 9)
    assert [(utterance.start, utterance.duration) for utterance in found] == [(0.01, 0.02), (0.0, None)]
    assert [utterance.key for utterance in found] == [f"{path[1:-4]}@0.01+0.02", path[1:-4]]
    windows = CutSet.from_cuts(list(cuts(folder))[:1]).cut_into_windows(0.02).to_eager()
    windows.to_file(tmp_path / "w.jsonl")
    found = read_all(open_source(str(tmp_path / "w.jsonl"), listing=tmp_path), 9)
    assert [samples(utterance) for utterance in found] == [cut.load_audio()[0].tolist() for cut in windows]


def test_filters_at_any_shard_size(tmp_path):
    lines = [
        {"id": f"{i}", "path": f"{i}.wav", "split": "ab"[i % 2], "language": ["en", "de"][i // 4 % 2]}
        | ({"text": "t"} if i % 3 else {"text": ""})
        for i in range(24)
    ]
    spec = write_jsonl(tmp_path / "m.jsonl", lines)
    for options in (
        SourceOptions(split="a"),
        SourceOptions(language="de"),
        SourceOptions(with_text=True),
        SourceOptions(split="b", language="en", with_text=True),
    ):
        expected = [
            line["id"]
            for line in lines
            if options.split in (None, line["split"])
            and options.language in (None, line["language"])
            and (line["text"] or not options.with_text)
        ]
        for size in (1, 4, 100):
            found = read_all(open_source(spec, listing=tmp_path, options=options), size)
            assert [utterance.key for utterance in found] == expected


@pytest.mark.parametrize("form", [shar, webdataset, parquet, saved, lhotse])
def test_containers_are_filtered_and_named_too(form, folder, tmp_path):
    spec = form(folder, tmp_path)
    expected = SourceOptions(with_text=True)
    assert len(read_all(open_source(spec, listing=tmp_path / "1", options=expected), 3)) == len(NAMES)
    none = SourceOptions(language="xx")
    assert read_all(open_source(spec, listing=tmp_path / "2", options=none), 3) == []


def test_relative_paths(folder, tmp_path, monkeypatch):
    """Ours start from the manifest; NeMo's, Kaldi's and lhotse's from the working directory, if they are there."""
    for where in ("cwd", "lists"):
        (tmp_path / where / "x").mkdir(parents=True)
        (tmp_path / where / "x" / "both.wav").touch()
    monkeypatch.chdir(tmp_path / "cwd")

    def found(file: str, *lines: str) -> list[str | bytes]:
        source = open_source(write(tmp_path / "lists" / file, lines), listing=tmp_path / "run")
        return [utterance.audio for utterance in read_all(source, 9)]

    here, beside = str(tmp_path / "cwd"), str(tmp_path / "lists")
    assert found("o.jsonl", '{"path": "x/both.wav"}') == [f"{beside}/x/both.wav"]
    foreign = ['{"audio_filepath": "x/both.wav"}', '{"audio_filepath": "x/gone.wav"}']
    assert found("n.jsonl", *foreign) == [f"{here}/x/both.wav", f"{beside}/x/gone.wav"]
    assert found("k.scp", "1 x/both.wav", "2 x/gone.wav") == [f"{here}/x/both.wav", f"{beside}/x/gone.wav"]
    assert found("u.txt", "s3://b/a.wav", "/r/a.wav") == ["s3://b/a.wav", "/r/a.wav"]


# Tables


def test_splits_of_datasets(tmp_path):
    pytest.importorskip("pyarrow")
    import pyarrow
    from pyarrow import parquet as pq

    for name in ("data/train-0.parquet", "data/test-0.parquet", "other/0000.parquet"):
        (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pyarrow.table({"wav": [b"1", b"2"]}), tmp_path / "d" / name)

    def keys(**options) -> list[str]:
        listing = tmp_path / "run"
        found = read_all(
            open_source(str(tmp_path / "d"), listing=listing, options=SourceOptions(**options)), 9
        )
        return [utterance.key for utterance in found]

    assert keys(split="test") == ["test-0-00000000", "test-0-00000001"]
    assert keys(split="none") == []
    assert keys()[:1] == ["data/test-0-00000000"]
    assert len(set(keys())) == 6
    refused(ConfigError, "'row' names them", keys, key="name")
    refused(ConfigError, r"no column 'sound' of audio: there are wav \(binary\)", keys, column="sound")


def test_rows_without_audio_and_ambiguous_columns(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as pq

    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    sounds = [{"bytes": None, "path": "x.wav"}, None, {"bytes": b"w", "path": None}]
    rows = pyarrow.table({"sound": pyarrow.array(sounds, kind), "other": pyarrow.array(sounds, kind)})
    pq.write_table(rows, tmp_path / "t.parquet")
    with pytest.raises(ConfigError, match="2 columns that may be its audio"):
        read_all(open_source(str(tmp_path / "t.parquet"), listing=tmp_path), 9)
    options = SourceOptions(column="sound", key="row")
    found = read_all(open_source(str(tmp_path / "t.parquet"), listing=tmp_path, options=options), 2)
    assert [utterance.audio for utterance in found] == [f"{tmp_path}/x.wav", b"", b"w"]


def test_pyarrow_may_be_missing(tmp_path, monkeypatch):
    (tmp_path / "t.parquet").write_bytes(b"PAR1....")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r"\[parquet\]"):
        list(open_source(str(tmp_path / "t.parquet"), listing=tmp_path).plan(1))


def test_the_hub(monkeypatch, tmp_path, request):
    """fsspec's memory filesystem under the hub's scheme has the hub's layout."""
    pytest.importorskip("pyarrow")
    import fsspec
    from fsspec.implementations.memory import MemoryFileSystem
    from pyarrow import parquet as pq

    class Hub(MemoryFileSystem):
        protocol = "hf"
        store: dict = {}  # noqa: RUF012  (as its base has it)
        pseudo_dirs = [""]  # noqa: RUF012

        @classmethod
        def _strip_protocol(cls, path):
            return "/" + path.removeprefix("hf://").strip("/")

        def unstrip_protocol(self, name):
            return f"hf:/{name}"

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    published = fsspec.get_filesystem_class("hf")
    fsspec.register_implementation("hf", Hub, clobber=True)
    request.addfinalizer(lambda: fsspec.register_implementation("hf", published, clobber=True))
    for split in ("train", "test"):
        with fsspec.open(f"hf://datasets/me/speech/data/{split}-0.parquet", "wb") as file:
            pq.write_table(table(), file)
    options = SourceOptions(split="train", column="audio")
    source = open_source("hf://datasets/me/speech", listing=tmp_path / "run", options=options)
    found = read_all(source, 3)
    assert [utterance.key for utterance in found] == NAMES
    assert [samples(utterance) for utterance in found] == [wave(i).tolist() for i in range(len(NAMES))]
    with pytest.raises(ConfigError, match="has no parquet files"):
        open_source("hf://datasets/me/none", listing=tmp_path / "run2")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE is set"):
        open_source("hf://datasets/me/speech", listing=tmp_path / "run3")
    assert len(read_all(open_source("hf://datasets/me/speech", listing=tmp_path / "run"), 9)) == 14


def test_kaldi_folder_as_windows_leaves_it(folder, tmp_path):
    """Byte order marks, an end of -1, speakers in utt2spk, and a channel of a recording that has one."""
    mark = "\ufeff"
    write(tmp_path / "wav.scp", [f"{mark}r1 {folder}/a.wav", f"r2 {folder}/b c.wav"])
    write(tmp_path / "segments", [f"{mark}u1 r1 0.01 -1", "u2 r2 0 0.02 0", "u3 r2 0 0.02 1"])
    write(tmp_path / "text", [f"{mark}u1 eins", "u2 zwei"])
    write(tmp_path / "utt2spk", [f"{mark}u1 anna", "u2 bert"])
    found = read_all(open_source(str(tmp_path), listing=tmp_path / "run"), 2)
    assert [(u.key, u.start, u.duration, u.text, u.speaker, u.channel) for u in found] == [
        ("u1", 0.01, None, "eins", "anna", None),
        ("u2", 0.0, 0.02, "zwei", "bert", 0),
        ("u3", 0.0, 0.02, None, None, 1),
    ]
    assert decode(found[1], RATE).wave is not None
    assert "channel 1 of 1 was chosen" in decode(found[2], RATE).reason


def test_a_byte_order_mark_in_every_list(folder, tmp_path):
    for name, lines in {
        "a.jsonl": [json.dumps({"id": "a", "path": str(folder / "a.wav")})],
        "a.txt": [str(folder / "a.wav")],
        "a.scp": [f"a {folder}/a.wav"],
    }.items():
        file = write(tmp_path / name, ["\ufeff" + lines[0]])
        [utterance] = read_all(open_source(file, listing=tmp_path / f"run {name}"), 2)
        assert (utterance.key, utterance.audio) == ("a", str(folder / "a.wav"))
    [utterance] = read_manifest(tmp_path / "a.jsonl")
    assert utterance.key == "a"


@pytest.mark.parametrize(
    ("listed", "ends"),
    [
        (
            {"offset": 0.01, "duration": 9},
            "0.04 s of audio are there from 0.01 s on, and the list says 9.00 s",
        ),
        ({"duration": 9}, "0.05 s of audio are there, and the list says 9.00 s"),
        ({"duration": 0.06}, ""),
        ({"channel": 1}, "channel 1 of 1 was chosen"),
        ({"channel_selector": "average"}, ""),
    ],
)
def test_audio_is_compared_with_its_list(listed, ends, tmp_path):
    """A piece that comes out much shorter than its list says goes into quarantine, and so does a whole file."""
    (tmp_path / "a.wav").write_bytes(wav(0))
    file = write_jsonl(tmp_path / "m.jsonl", [{"id": "a", "path": "a.wav", **listed}])
    [utterance] = read_all(open_source(file, listing=tmp_path / "run"), 1)
    decoded = decode(utterance, RATE)
    assert (
        (decoded.reason.split(":")[0].startswith(ends) and decoded.wave is None)
        if ends
        else decoded.wave is not None
    )


def test_a_much_longer_file_than_listed(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(RATE), RATE)
    file = write_jsonl(tmp_path / "m.jsonl", [{"id": "a", "path": "a.wav", "duration": 0.5}])
    [utterance] = read_all(open_source(file, listing=tmp_path / "run"), 1)
    assert "1.00 s of audio are there, and the list says 0.50 s" in decode(utterance, RATE).reason


def test_dots_in_names_of_a_tar(tmp_path, capsys):
    """Keys end at the first dot; two recordings of one key are refused, and the remedy that is named works."""
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for i in range(3):
            add(tar, f"s.v{i}.wav", wav(i))
            add(tar, f"s.v{i}.txt", TEXTS[i].encode())
    with pytest.raises(
        ConfigError, match=r"'s\.v0\.wav' and 's\.v1\.wav' are both the audio of 's'.*--key name"
    ):
        read_all(open_source(str(tmp_path / "t.tar"), listing=tmp_path), 2)
    source = open_source(str(tmp_path / "t.tar"), listing=tmp_path, options=SourceOptions(key="name"))
    assert [(u.key, u.text) for u in read_all(source, 2)] == [(f"s.v{i}", TEXTS[i]) for i in range(3)]
    with pytest.raises(ConfigError, match="--key id: tars name utterances by their members"):
        open_source(str(tmp_path / "t.tar"), listing=tmp_path, options=SourceOptions(key="id"))


def test_stray_files_are_left_out_with_a_word(tmp_path, capsys):
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for name in ("a.wav", "README.md", "b.wav"):
            add(tar, name, wav(0))
    assert [u.key for u in read_all(open_source(str(tmp_path / "t.tar"), listing=tmp_path), 9)] == ["a", "b"]
    assert "t.tar: left out 1 keys without audio, the first with README.md" in capsys.readouterr().err
    (tmp_path / "c").mkdir()
    for name in ("a.wav", "a.txt", "b.txt", "c.wv", "._a.wav"):
        (tmp_path / "c" / name).write_bytes(wav(0))
    for spec in ("c", "c/*"):
        [found] = read_all(open_source(f"{tmp_path}/{spec}", listing=tmp_path / f"run{len(spec)}"), 9)
        assert found.key == "a"
        assert "c: left out 3 files of other kinds: 2 .txt, 1 .wv" in capsys.readouterr().err


def test_columns_of_cosyvoice(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {"utt": ["u1"], "spk": ["s1"], "text": ["hi"], "audio_data": [wav(0)], "wav": ["a.wav"]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "p.parquet")
    [found] = read_all(open_source(str(tmp_path / "p.parquet"), listing=tmp_path), 9)
    assert (found.key, found.speaker, found.text, found.audio) == ("u1", "s1", "hi", wav(0))


def test_parts_of_files_in_a_table_are_refused(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"path": ["a.wav"], "offset": [1.0]}), tmp_path / "p.parquet")
    with pytest.raises(ConfigError, match=r"names files in 'path' and parts of them in \['offset'\]"):
        read_all(open_source(str(tmp_path / "p.parquet"), listing=tmp_path), 9)


def test_tars_beside_audio_are_ambiguous(tmp_path):
    (tmp_path / "wavs").mkdir()
    (tmp_path / "wavs" / "a.wav").write_bytes(wav(0))
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        add(tar, "b.wav", wav(0))
    with pytest.raises(ConfigError, match=r"holds \.tar files and audio files .*choose one") as raised:
        open_source(str(tmp_path), listing=tmp_path / "run")
    for number, spec in enumerate(str(raised.value).split("'")[1::2]):  # the remedies work
        found = read_all(open_source(spec, listing=tmp_path / f"run{number}"), 9)
        assert [utterance.key for utterance in found] == [["b"], ["wavs/a"]][number]
