"""Every way to list a corpus gives the same utterances, once, in order, at any shard size."""

import json
import os
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import refused
from corpora import (
    NAMES,
    RATE,
    TEXTS,
    columns,
    cuts,
    wav,
    wave,
    write,
    write_corpus,
    write_forms,
    write_jsonl,
    write_table,
    write_tables,
    write_tar,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from vokens import audio
from vokens.corpus.decode import decode
from vokens.data.fetch import open_audio
from vokens.data.items import Source, Utterance
from vokens.data.sources import SourceOptions, open_source
from vokens.data.sources.records import parse_line, read_manifest
from vokens.errors import ConfigError, DownloadError, MissingExtra


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The corpus as files, below a folder whose name has a blank."""
    return write_corpus(tmp_path_factory.mktemp("my corpus"))


TABLES = ["parquet", "saved"]
TEXTED = ["ours", "ours_gz", "nemo", "lhotse", "shar", "kaldi", "webdataset", "webdataset_gz", *TABLES]
BARE = ["path_list", "as_folder", "as_glob"]


@pytest.fixture(scope="module")
def forms(folder: Path, tmp_path_factory) -> dict[str, str]:
    """Arguments of open_source, by the name of the form."""
    out = tmp_path_factory.mktemp("forms")
    tables = find_spec("pyarrow") is not None
    return write_forms(folder, out) | (write_tables(out) if tables else {})


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


def read(spec: Path | str, run: Path, size: int = 9, **options) -> list[Utterance]:
    """All utterances of what `spec` names. run: the folder of its lists."""
    return read_all(open_source(str(spec), listing=run, options=SourceOptions(**options)), size)


def samples(utterance: Utterance) -> list[float]:
    played, rate = audio.load(open_audio(utterance), offset=utterance.start, duration=utterance.duration)
    assert rate == RATE
    return played.tolist()


@pytest.mark.parametrize("form", TEXTED + BARE)
def test_all_forms_give_the_same_utterances_at_any_shard_size(form, forms, tmp_path):
    spec = forms.get(form) or pytest.skip("needs pyarrow")
    source = open_source(spec, listing=tmp_path / "run")
    whole = read_all(source, 100)
    order = sorted(range(len(NAMES)), key=lambda i: os.path.split(NAMES[i])) if form in BARE[1:] else range(7)
    assert len(whole) == len(NAMES)
    if form in BARE:
        assert [utterance.key for utterance in whole] == [NAMES[i] for i in order]
    elif form not in ("kaldi", "webdataset", "webdataset_gz"):  # whose keys have no blanks, or no dots
        assert [utterance.key for utterance in whole] == NAMES
    for i, utterance in zip(order, whole, strict=True):
        assert samples(utterance) == wave(i).tolist()
        assert (utterance.start, utterance.duration) == (0.0, None)
        assert utterance.text == (None if form in BARE else TEXTS[i])
        assert utterance.speaker == (None if form in [*BARE, "kaldi"] else "s")
    for size in range(1, 9):
        assert read_all(source, size) == whole
    # Another process, another order of spans, the list of the first run
    again = open_source(spec, listing=tmp_path / "run")
    spans = [span for span, _ in source.plan(2)]
    assert [one for span in reversed(spans) for one in reversed(list(again.read(span)))] == whole[::-1]


names = st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"], include_characters=" \xa0"), min_size=1)


@settings(max_examples=40, deadline=None)
@given(st.lists(names.map(str.strip).filter(bool), unique=True, min_size=1, max_size=12), st.integers(1, 13))
def test_line_sources_keep_any_name_at_any_shard_size(tmp_path_factory, names, size):
    out = tmp_path_factory.mktemp("lines")
    paths = [f"/data/{name}.wav" for name in names]
    ids = [f"key{i}" for i in range(len(names))]
    jsonl = [{"id": name, "path": path} for name, path in zip(names, paths, strict=True)]
    write_jsonl(out / "m.jsonl", jsonl)
    write(out / "m.txt", paths)
    write(
        out / "m.scp", (f"{key}\t{path}\r\n" for key, path in zip(ids, paths, strict=True))
    )  # blank lines, CRLF
    for file, keys in (("m.jsonl", names), ("m.scp", ids)):
        found = read(out / file, out / "run", size)
        assert [(one.key, one.audio) for one in found] == list(zip(keys, paths, strict=True))
    listed = read(out / "m.txt", out / "run", size)
    assert [utterance.audio for utterance in listed] == paths
    assert len({utterance.key for utterance in listed}) == len(paths)


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
        first = read(spec, listing)
        assert {utterance.key for utterance in first} == {"a", "b"}
        (top / "later.wav").write_bytes(wav(1))
        (top / "a.wav").rename(top / "a.moved")
        assert read(spec, listing) == first
        (top / "a.moved").rename(top / "a.wav")
        (top / "later.wav").unlink()


def test_files_that_differ_by_suffix_keep_it(tmp_path):
    for name in ("x/a.wav", "x/a.flac", "x/b.wav", "a.wav", "x/v1.0"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    (tmp_path / "in" / "x" / "loop").symlink_to(tmp_path / "in", target_is_directory=True)
    found = read(tmp_path / "in", tmp_path / "run")
    assert [utterance.key for utterance in found] == ["a", "x/a.flac", "x/a.wav", "x/b"]


def test_keys_of_lists_begin_below_the_folder_that_all_paths_share(tmp_path):
    spec = write(tmp_path / "l.lst", ["/d/one/a.wav", "", "/d/two/a.b.flac", "/d/two/noise 1.5"])
    found = read(spec, tmp_path / "run")
    assert [utterance.key for utterance in found] == ["one/a", "two/a.b", "two/noise 1.5"]


# Pieces, filters and paths


def test_kaldi_segments(folder, tmp_path):
    write(tmp_path / "wav.scp", [f"r2 {folder}/b c.wav", f"r1 {folder}/a.wav"])
    write(tmp_path / "segments", ["u1 r1 0.01 0.03", "u2 r2 0 0.02 1", "u3 r1 0.02 0.05"])
    write(tmp_path / "text", ["u3 drei", "u1 eins  zwei"])
    found = read(tmp_path, tmp_path / "run", 2)
    expected = [("u1", 0.01, 0.02, "eins  zwei"), ("u2", 0.0, 0.02, None), ("u3", 0.02, 0.03, "drei")]
    assert [(one.key, one.start, one.duration, one.text) for one in found] == expected
    assert samples(found[0]) == wave(0)[80:240].tolist()
    files = {"segments": tmp_path / "segments", "text": tmp_path / "text"}
    spoken = read(tmp_path / "wav.scp", tmp_path / "run2", 2, **files, with_text=True)
    assert [utterance.key for utterance in spoken] == ["u1", "u3"]
    write(tmp_path / "who", ["u1 anna"])
    write(tmp_path / "how", ["u1 Speak slowly."])
    labels = {"speakers": tmp_path / "who", "instruct": tmp_path / "how"}
    (named,) = [
        one for one in read(tmp_path / "wav.scp", tmp_path / "run3", 2, **files, **labels) if one.speaker
    ]
    assert (named.key, named.speaker, named.instruct) == ("u1", "anna", "Speak slowly.")


def test_kaldi_folder_as_windows_leaves_it(folder, tmp_path):
    """Byte order marks, an end of -1, speakers in utt2spk, and a channel of a recording that has one."""
    mark = "\ufeff"
    write(tmp_path / "wav.scp", [f"{mark}r1 {folder}/a.wav", f"r2 {folder}/b c.wav"])
    write(tmp_path / "segments", [f"{mark}u1 r1 0.01 -1", "u2 r2 0 0.02 0", "u3 r2 0 0.02 1"])
    write(tmp_path / "text", [f"{mark}u1 eins", "u2 zwei"])
    write(tmp_path / "utt2spk", [f"{mark}u1 anna", "u2 bert"])
    found = read(tmp_path, tmp_path / "run", 2)
    assert [(u.key, u.start, u.duration, u.text, u.speaker, u.channel) for u in found] == [
        ("u1", 0.01, None, "eins", "anna", None),
        ("u2", 0.0, 0.02, "zwei", "bert", 0),
        ("u3", 0.0, 0.02, None, None, 1),
    ]
    assert decode(found[1], RATE).wave is not None
    assert "channel 1 of 1 was chosen" in decode(found[2], RATE).reason


def test_pieces_of_manifests(folder, tmp_path):
    from lhotse import CutSet

    path = str(folder / "a.wav")
    lines = [
        {"audio_filepath": path, "offset": 0.01, "duration": 0.02},
        {"audio_filepath": path, "duration": 0.02},
    ]
    found = read(write_jsonl(tmp_path / "n.jsonl", lines), tmp_path)
    assert [(utterance.start, utterance.duration) for utterance in found] == [(0.01, 0.02), (0.0, None)]
    assert [utterance.key for utterance in found] == [f"{path[1:-4]}@0.01+0.02", path[1:-4]]
    windows = CutSet.from_cuts(list(cuts(folder))[:1]).cut_into_windows(0.02).to_eager()
    windows.to_file(tmp_path / "w.jsonl")
    found = read(tmp_path / "w.jsonl", tmp_path)
    assert [samples(utterance) for utterance in found] == [cut.load_audio()[0].tolist() for cut in windows]


def test_filters_at_any_shard_size(tmp_path):
    lines = [
        {"id": f"{i}", "path": f"{i}.wav", "split": "ab"[i % 2], "language": ["en", "de"][i // 4 % 2]}
        | ({"text": "t"} if i % 3 else {"text": ""})
        for i in range(24)
    ]
    spec = write_jsonl(tmp_path / "m.jsonl", lines)
    for options in (
        {"split": "a"}, {"language": "de"}, {"with_text": True},
        {"split": "b", "language": "en", "with_text": True},
    ):  # fmt: skip
        expected = [
            line["id"]
            for line in lines
            if options.get("split") in (None, line["split"])
            and options.get("language") in (None, line["language"])
            and (line["text"] or "with_text" not in options)
        ]
        for size in (1, 4, 100):
            found = read(spec, tmp_path, size, **options)
            assert [utterance.key for utterance in found] == expected


@pytest.mark.parametrize("form", ["shar", "webdataset", *TABLES, "lhotse"])
def test_containers_are_filtered_and_named_too(form, forms, tmp_path):
    spec = forms.get(form) or pytest.skip("needs pyarrow")
    assert len(read(spec, tmp_path / "1", 3, with_text=True)) == len(NAMES)
    assert read(spec, tmp_path / "2", 3, language="xx") == []


def test_relative_paths(folder, tmp_path, monkeypatch):
    """Ours start from the manifest; NeMo's, Kaldi's and lhotse's from the working directory, if they are there."""
    for where in ("cwd", "lists"):
        (tmp_path / where / "x").mkdir(parents=True)
        (tmp_path / where / "x" / "both.wav").touch()
    monkeypatch.chdir(tmp_path / "cwd")

    def found(file: str, *lines: str) -> list[str | bytes]:
        spec = write(tmp_path / "lists" / file, lines)
        return [utterance.audio for utterance in read(spec, tmp_path / "run")]

    here, beside = str(tmp_path / "cwd"), str(tmp_path / "lists")
    assert found("o.jsonl", '{"path": "x/both.wav"}') == [f"{beside}/x/both.wav"]
    foreign = ['{"audio_filepath": "x/both.wav"}', '{"audio_filepath": "x/gone.wav"}']
    assert found("n.jsonl", *foreign) == [f"{here}/x/both.wav", f"{beside}/x/gone.wav"]
    assert found("k.scp", "1 x/both.wav", "2 x/gone.wav") == [f"{here}/x/both.wav", f"{beside}/x/gone.wav"]
    assert found("u.txt", "s3://b/a.wav", "/r/a.wav") == ["s3://b/a.wav", "/r/a.wav"]


# Tables


def test_splits_of_datasets(tmp_path):
    for name in ("data/train-0.parquet", "data/test-0.parquet", "other/0000.parquet"):
        write_table(tmp_path / "d" / name, {"wav": [b"1", b"2"]})

    def keys(**options) -> list[str]:
        return [utterance.key for utterance in read(tmp_path / "d", tmp_path / "run", **options)]

    assert keys(split="test") == ["test-0-00000000", "test-0-00000001"]
    assert keys(split="none") == []
    assert keys()[:1] == ["data/test-0-00000000"]
    assert len(set(keys())) == 6
    refused(ConfigError, "'row' names them", keys, key="name")
    refused(ConfigError, r"no column 'sound' of audio: there are wav \(binary\)", keys, column="sound")


def test_rows_without_audio_and_ambiguous_columns(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    sounds = pyarrow.array([{"bytes": None, "path": "x.wav"}, None, {"bytes": b"w", "path": None}], kind)
    spec = write_table(tmp_path / "t.parquet", {"sound": sounds, "other": sounds})
    refused(ConfigError, "2 columns that may be its audio", read, spec, tmp_path)
    found = read(spec, tmp_path, 2, column="sound", key="row")
    assert [utterance.audio for utterance in found] == [f"{tmp_path}/x.wav", b"", b"w"]
    of_cosyvoice = {"utt": ["u1"], "spk": ["s1"], "text": ["hi"], "audio_data": [wav(0)], "wav": ["a.wav"]}
    [found] = read(write_table(tmp_path / "c.parquet", of_cosyvoice), tmp_path)
    assert (found.key, found.speaker, found.text, found.audio) == ("u1", "s1", "hi", wav(0))
    spec = write_table(tmp_path / "p.parquet", {"path": ["a.wav"], "offset": [1.0]})
    refused(ConfigError, r"names files in 'path' and parts of them in \['offset'\]", read, spec, tmp_path)


def test_pyarrow_may_be_missing(tmp_path, monkeypatch):
    (tmp_path / "t.parquet").write_bytes(b"PAR1....")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    refused(MissingExtra, r"\[parquet\]", read, tmp_path / "t.parquet", tmp_path)


def test_the_hub(monkeypatch, tmp_path, request):
    """fsspec's memory filesystem under the hub's scheme has the hub's layout."""
    import fsspec
    from fsspec.implementations.memory import MemoryFileSystem

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
    table = Path(write_table(tmp_path / "t.parquet", columns())).read_bytes()
    for split in ("train", "test"):
        fsspec.filesystem("hf").pipe(f"hf://datasets/me/speech/data/{split}-0.parquet", table)
    found = read("hf://datasets/me/speech", tmp_path / "run", 3, split="train", column="audio")
    assert [utterance.key for utterance in found] == NAMES
    assert [samples(utterance) for utterance in found] == [wave(i).tolist() for i in range(len(NAMES))]
    refused(ConfigError, "has no parquet files", read, "hf://datasets/me/none", tmp_path / "run2")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refused(DownloadError, "HF_HUB_OFFLINE is set", read, "hf://datasets/me/speech", tmp_path / "run3")
    assert len(read("hf://datasets/me/speech", tmp_path / "run")) == 14


def test_a_byte_order_mark_in_every_list(folder, tmp_path):
    for name, lines in {
        "a.jsonl": [json.dumps({"id": "a", "path": str(folder / "a.wav")})],
        "a.txt": [str(folder / "a.wav")],
        "a.scp": [f"a {folder}/a.wav"],
    }.items():
        file = write(tmp_path / name, ["\ufeff" + lines[0]])
        [utterance] = read(file, tmp_path / f"run {name}")
        assert (utterance.key, utterance.audio) == ("a", str(folder / "a.wav"))
    [utterance] = read_manifest(tmp_path / "a.jsonl")
    assert utterance.key == "a"


@pytest.mark.parametrize(
    ("length", "listed", "says"),
    [
        (
            400,
            {"offset": 0.01, "duration": 9},
            "0.04 s of audio are there from 0.01 s on, and the list says 9.00 s",
        ),
        (400, {"duration": 9}, "0.05 s of audio are there, and the list says 9.00 s"),
        (400, {"duration": 0.06}, ""),
        (RATE, {"duration": 0.5}, "1.00 s of audio are there, and the list says 0.50 s"),
        (400, {"channel": 1}, "channel 1 of 1 was chosen"),
        (400, {"channel_selector": "average"}, ""),
    ],
)
def test_audio_is_compared_with_its_list(length, listed, says, tmp_path):
    """A piece that comes out much shorter than its list says goes into quarantine, and so does a whole file."""
    soundfile.write(tmp_path / "a.wav", np.zeros(length), RATE)
    [utterance] = read(write_jsonl(tmp_path / "m.jsonl", [{"id": "a", "path": "a.wav", **listed}]), tmp_path)
    decoded = decode(utterance, RATE)
    assert decoded.reason.startswith(says)
    assert (decoded.wave is None) == bool(says)


def test_dots_in_names_of_a_tar(tmp_path):
    """Keys end at the first dot; two recordings of one key are refused, and the remedy that is named works."""
    names = [f"s.v{i}" for i in range(3)]
    content = {f"{name}.{kind}": value for i, name in enumerate(names)
               for kind, value in (("wav", wav(i)), ("txt", TEXTS[i].encode()))}  # fmt: skip
    spec = write_tar(tmp_path / "t.tar", content)
    both = r"'s\.v0\.wav' and 's\.v1\.wav' are both the audio of 's'.*--key name"
    refused(ConfigError, both, read, spec, tmp_path)
    assert [(u.key, u.text) for u in read(spec, tmp_path, 2, key="name")] == list(
        zip(names, TEXTS, strict=False)
    )
    refused(ConfigError, "--key id: tars name utterances by their members", read, spec, tmp_path, key="id")


def test_stray_files_are_left_out_with_a_word(tmp_path, capsys):
    spec = write_tar(tmp_path / "t.tar", dict.fromkeys(("a.wav", "README.md", "b.wav"), wav(0)))
    assert [utterance.key for utterance in read(spec, tmp_path)] == ["a", "b"]
    assert "t.tar: left out 1 keys without audio, the first with README.md" in capsys.readouterr().err
    (tmp_path / "c").mkdir()
    for name in ("a.wav", "a.txt", "b.txt", "c.wv", "._a.wav"):
        (tmp_path / "c" / name).write_bytes(wav(0))
    for spec in ("c", "c/*"):
        [found] = read(f"{tmp_path}/{spec}", tmp_path / f"run{len(spec)}")
        assert found.key == "a"
        assert "c: left out 3 files of other kinds: 2 .txt, 1 .wv" in capsys.readouterr().err


def test_tars_beside_audio_are_ambiguous(tmp_path):
    (tmp_path / "wavs").mkdir()
    (tmp_path / "wavs" / "a.wav").write_bytes(wav(0))
    write_tar(tmp_path / "t.tar", {"b.wav": wav(0)})
    with pytest.raises(ConfigError, match=r"holds \.tar files and audio files .*choose one") as raised:
        open_source(str(tmp_path), listing=tmp_path / "run")
    for number, spec in enumerate(str(raised.value).split("'")[1::2]):  # the remedies work
        found = read(spec, tmp_path / f"run{number}")
        assert [utterance.key for utterance in found] == [["b"], ["wavs/a"]][number]
