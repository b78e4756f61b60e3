"""Every form of stored tokens: rows come back as they were, bytes are the same twice, and others can read them."""

import gzip
import io
import json
import math
import struct
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import refused
from corpora import write_shard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vokens.data.items import CodecInfo, Row
from vokens.data.outputs import OUTPUTS, Output, get_output
from vokens.data.outputs.megatron import Documents
from vokens.data.outputs.tars import sample_name
from vokens.errors import ConfigError, MissingExtra, TokensError

S3 = CodecInfo("speech_tokenizer_v2_25hz", "0123456789abcdef", 16000, 25.0, (6561,))
MINI = CodecInfo("mini", "fedcba9876543210", 16000, 50.0, (1024,) * 8)
WIDE = CodecInfo("wide", "0" * 16, 24000, 12.5, (70000, 3))
FORMS = [name for name in OUTPUTS if name != "cosyvoice"]  # which has its own tests


def form(name: str) -> Output:
    """A format whose files all lie in the output folder."""
    return get_output(name, audio_root="/" if name == "sidecar" else None)


def make_row(facts: CodecInfo, frames: int, key: str = "a/b", seed: int = 0, **fields: str | None) -> Row:
    draw = np.random.default_rng(seed)
    codes = np.stack([draw.integers(0, size, frames) for size in facts.codebook_sizes])
    samples = math.ceil((frames - 0.7) * facts.sample_rate / facts.frame_rate) if frames else 0
    fields = {"audio": f"/data/{key}.wav", **fields}
    return Row(key, codes, samples, samples / facts.sample_rate, **fields)


def place(root: Path, name: str, rows: Sequence[Row], facts: CodecInfo, shard: int = 12) -> list[Path]:
    """Write a shard as a run does, into root / 'out'."""
    return write_shard(root / "out", form(name), shard, rows, facts)


def read_back(root: Path, name: str, facts: CodecInfo) -> list[Row]:
    output = form(name)
    return [row for file in output.shards(root / "out") for row in output.open(root / "out", file, facts)]


def assert_equal(ours: Row, theirs: Row, only_codes: bool = False) -> None:
    assert ours.key == theirs.key
    np.testing.assert_array_equal(ours.codes, theirs.codes)
    assert theirs.codes.dtype == np.int64
    if ours.global_vector is None:
        assert theirs.global_vector is None
    else:
        np.testing.assert_array_equal(ours.global_vector, theirs.global_vector, strict=True)
    if not only_codes:
        for name in ("num_samples", "duration", "audio", "text", "speaker", "language"):
            assert getattr(ours, name) == getattr(theirs, name)


# There and back --------------------------------------------------------------------------------------------

PART = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=12)
KEY = st.lists(PART.filter(lambda part: part not in (".", "..")), min_size=1, max_size=3).map("/".join)
TEXT = st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@st.composite
def shards(draw: st.DrawFn) -> tuple[CodecInfo, list[Row]]:
    facts = draw(st.sampled_from([S3, MINI, WIDE]))
    vectors = draw(st.booleans())
    keys = draw(st.lists(KEY, max_size=4, unique=True))
    stems = {f"{key}.npy" for key in keys}
    keys = [key for key in keys if not any(key.startswith(f"{stem}/") for stem in stems)]
    rows = []
    for i, key in enumerate(keys):
        texts = {name: draw(TEXT) for name in ("text", "speaker", "language")}
        row = make_row(facts, draw(st.integers(0, 9)), key, seed=i, **texts, audio=f"/data/{i}.wav")
        rows.append(replace(row, global_vector=np.float32([0.1, -i, 1e-30])) if vectors else row)
    return facts, rows


@pytest.mark.parametrize("name", FORMS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shard=shards())
def test_rows_come_back(name, shard, tmp_path_factory):
    facts, rows = shard
    root = tmp_path_factory.mktemp("shard")
    finals = place(root, name, rows, facts)
    output = form(name)
    read = list(output.open(root / "out", finals[-1], facts))
    frames = output.frames(root / "out", finals[-1], facts)
    assert frames.dtype == np.int64
    assert frames.tolist() == [row.codes.shape[1] for row in rows]
    assert len(read) == len(rows)
    for ours, theirs in zip(rows, read, strict=True):
        assert_equal(ours, theirs, only_codes=name == "jsonl")


@pytest.mark.parametrize("name", FORMS)
def test_bytes_are_the_same_twice_and_shards_are_found_in_order(name, tmp_path):
    rows = [make_row(MINI, 5 + i, f"k.{i}/ü", i, audio=f"/nowhere/{i}.wav", text="hello") for i in range(3)]
    output = form(name)
    contents = []
    for attempt in ("one", "two"):
        (tmp_path / attempt).mkdir()
        files = output.write(tmp_path / attempt, 3, rows, MINI)
        contents.append([(file, (tmp_path / attempt / file.path).read_bytes()) for file in files])
    assert contents[0] == contents[1]
    last = contents[0][-1][0].path
    assert output.shards(tmp_path / "one") == [last]  # it completes a shard
    (tmp_path / "more").mkdir()
    assert output.write(tmp_path / "more", 10, rows, MINI)[-1].path > last


@pytest.mark.parametrize("name", FORMS)
def test_empty_shards(name, tmp_path):
    place(tmp_path, name, [], MINI)
    assert read_back(tmp_path, name, MINI) == []


@pytest.mark.parametrize("name", FORMS)
def test_views_write_their_own_codes(name, tmp_path):
    """Codes of a padded batch are slices of it: neither its order in memory nor its padding may show."""
    batch = np.arange(8 * 50).reshape(50, 8).T % 1024
    row = replace(make_row(MINI, 7), codes=batch[:, 3:10])
    place(tmp_path, name, [row], MINI)
    np.testing.assert_array_equal(read_back(tmp_path, name, MINI)[0].codes, batch[:, 3:10])


# What others expect ----------------------------------------------------------------------------------------


def test_jsonl_is_what_s3tokenizer_writes(tmp_path):
    row = replace(make_row(S3, 3, "BAC009 你好"), codes=np.array([[6560, 0, 12]]))
    (file,) = place(tmp_path, "jsonl", [row], S3)
    assert file == Path("shard-000012.jsonl")
    expected = '{"key": "BAC009 你好", "code": [6560, 0, 12]}\n'
    assert (tmp_path / "out" / file).read_text("utf-8") == expected
    (file,) = place(tmp_path, "jsonl", [make_row(MINI, 2)], MINI, shard=13)
    assert np.shape(json.loads((tmp_path / "out" / file).read_text())["code"]) == (8, 2)


def test_jsonl_estimates_what_it_has_no_room_for(tmp_path):
    row = make_row(S3, 26)
    place(tmp_path, "jsonl", [row], S3)
    (read,) = read_back(tmp_path, "jsonl", S3)
    assert read.num_samples == 26 * 640
    assert 0 <= read.num_samples - row.num_samples < 640


def test_parquet_columns_and_datasets(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [make_row(S3, 40, "a", text="hello"), make_row(S3, 3, "b", 1)]
    (file,) = place(tmp_path, "parquet", rows, S3)
    stored = parquet.ParquetFile(tmp_path / "out" / file)
    assert stored.num_row_groups == 1
    assert stored.metadata.row_group(0).column(1).compression == "ZSTD"
    assert json.loads(stored.metadata.metadata[b"vokens"])["fingerprint"] == S3.fingerprint
    assert str(stored.schema_arrow.field("codes").type).startswith("list<")
    assert "uint16" in str(stored.schema_arrow.field("codes").type)
    assert stored.schema_arrow.names == [
        *("key", "codes", "frames", "num_samples", "duration"),
        *("text", "speaker", "language", "audio"),
    ]
    assert stored.read().column("text").to_pylist() == ["hello", None]
    (wide,) = place(tmp_path, "parquet", [make_row(WIDE, 4)], WIDE, shard=13)
    assert "list<" in str(parquet.read_schema(tmp_path / "out" / wide).field("codes").type.value_type)
    assert "int32" in str(parquet.read_schema(tmp_path / "out" / wide).field("codes").type)


@pytest.mark.parametrize("facts", [S3, MINI], ids=["K=1", "K=8"])
def test_parquet_is_read_by_datasets(facts, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    rows = [make_row(facts, 40, "a"), make_row(facts, 3, "b", 1)]
    (file,) = place(tmp_path, "parquet", rows, facts)
    files = str(tmp_path / "out" / file)
    data = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))["train"]
    assert data["key"][:] == ["a", "b"]
    np.testing.assert_array_equal(np.atleast_2d(data[0]["codes"]), rows[0].codes)


def test_sidecar_is_what_learnable_speech_reads(tmp_path):
    """One int64 tensor (T,), its own storage only: the published writer saved the whole padded batch with it."""
    batch = np.zeros((64, 1, 750), dtype=np.int64)
    audio = tmp_path / "speaker" / "take.wav.one.wav"
    row = replace(make_row(S3, 100, audio=str(audio)), codes=batch[3, :, :100])
    finals = write_shard(tmp_path / "out", get_output("sidecar"), 12, [row], S3)
    assert finals == [tmp_path / "speaker" / "take.wav.one_fsq.pt", Path("shard-000012.jsonl")]
    tensor = torch.load(finals[0], weights_only=True)
    assert (tensor.dtype, tensor.shape) == (torch.int64, (100,))
    assert tensor.untyped_storage().nbytes() == 800
    assert finals[0].stat().st_size < 800 + 1700  # what torch.save adds; with the batch it was 385 kB
    row = make_row(MINI, 9, audio=str(audio))
    finals = write_shard(tmp_path / "out", get_output("sidecar"), 13, [row], MINI)
    assert torch.load(finals[0], weights_only=True).shape == (8, 9)
    assert finals[0].name == "take.wav.one_codes.pt"


def test_sidecar_below_the_output_folder(tmp_path):
    output = get_output("sidecar", audio_root=tmp_path / "corpus")
    row = make_row(S3, 5, audio=f"{tmp_path}/corpus/a/../b/x.flac")
    files = output.write(tmp_path, 0, [row], S3)
    assert [file.final for file in files] == [Path("b/x_fsq.pt"), Path("shard-000000.jsonl")]
    refused(TokensError, "is not below", lambda: output.check(make_row(S3, 5, audio="/elsewhere/x.wav"), S3))


def test_npy_files(tmp_path):
    finals = place(tmp_path, "npy", [make_row(MINI, 6, "spk/utt.1"), make_row(MINI, 2, "z")], MINI)
    assert list(map(str, finals[:1])) == ["shard-000012/spk/utt.1.npy"]
    array = np.load(tmp_path / "out" / finals[0])
    assert (array.dtype, array.shape) == (np.uint16, (8, 6))
    (wide, _) = place(tmp_path, "npy", [make_row(WIDE, 6)], WIDE, shard=13)
    assert np.load(tmp_path / "out" / wide).dtype == np.int32


def test_tar_members_in_order_without_time_or_owner(tmp_path):
    rows = [make_row(S3, 4, key) for key in ("b/x.y", "a", "ü" * 80)]
    (file,) = place(tmp_path, "webdataset", rows, S3)
    with tarfile.open(tmp_path / "out" / file) as archive:
        members = archive.getmembers()
        first = archive.extractfile(members[0])
        assert first is not None
        assert np.load(io.BytesIO(first.read())).dtype == np.uint16
    names = [member.name for member in members]
    assert names[:4] == ["b/x%2Ey.codes.npy", "b/x%2Ey.json", "a.codes.npy", "a.json"]
    assert names[4:] == ["ü" * 80 + ".codes.npy", "ü" * 80 + ".json"]
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}


def test_webdataset_reads_samples_with_dots(tmp_path):
    """Without the quoting, WebDataset would join the first two and lose the third."""
    webdataset = pytest.importorskip("webdataset")
    keys = ["s/a.1", "s/a.2", "__x__/y", "%2E"]
    rows = [make_row(MINI, 4 + i, key, i, text="hi") for i, key in enumerate(keys)]
    (file,) = place(tmp_path, "webdataset", rows, MINI)
    pipeline = webdataset.WebDataset(str(tmp_path / "out" / file), shardshuffle=False, empty_check=False)
    samples = list(pipeline.decode())
    assert [sample["__key__"] for sample in samples] == [sample_name(row.key) for row in rows]
    for row, sample in zip(rows, samples, strict=True):
        assert (sample["json"]["key"], sample["json"]["text"]) == (row.key, "hi")
        np.testing.assert_array_equal(sample["codes.npy"], row.codes)


@pytest.mark.parametrize("facts", [S3, MINI], ids=["K=1", "K=8"])
def test_shar_is_read_by_lhotse(facts, tmp_path):
    from lhotse import CutSet

    rows = [make_row(facts, n, f"s{n}/u.{n}", n, text="hi", speaker="me") for n in (26, 1, 0, 101)]
    place(tmp_path, "shar", rows[:2], facts, shard=0)
    place(tmp_path, "shar", rows[2:], facts, shard=1)
    (tmp_path / "out" / "run.json").touch()
    cuts = list(CutSet.from_shar(in_dir=tmp_path / "out" / "shar"))
    for row, cut in zip(rows, cuts, strict=True):
        codes = cut.load_codes()  # all frames, also where the length law rounds up: 1.01 s at 25 Hz is 26
        np.testing.assert_array_equal(codes.T, row.codes)
        assert codes.dtype == np.uint16
        assert cut.id == row.key
        assert (cut.supervisions[0].text, cut.supervisions[0].speaker) == ("hi", "me")
        assert cut.duration == pytest.approx(row.duration or 1 / facts.frame_rate)
        assert cut.custom["vokens"]["audio"] == row.audio
    half = cuts[3].truncate(duration=cuts[3].duration / 2).load_codes()
    np.testing.assert_array_equal(half.T, rows[3].codes[:, : len(half)])
    assert abs(len(half) - 50.5) <= 1


def test_shar_codes_attach_to_the_cuts_of_a_shar_source(tmp_path):
    """Codes extracted from a Shar folder are one more field of it."""
    import soundfile
    from lhotse import CutSet, MonoCut, Recording

    (tmp_path / "source").mkdir()
    cuts, rows = [], [make_row(S3, 25 + i, f"utt-{i}", i) for i in range(3)]
    for i, row in enumerate(rows):
        soundfile.write(tmp_path / f"{i}.wav", np.full(row.num_samples, i / 8), 16000)
        recording = Recording.from_file(tmp_path / f"{i}.wav")
        cuts.append(MonoCut(row.key, 0, row.duration, 0, recording=recording))
    CutSet(cuts).to_shar(tmp_path / "source", fields={"recording": "wav"}, shard_size=3)
    place(tmp_path, "shar", rows, S3, shard=0)
    fields = {
        "cuts": [tmp_path / "source" / "cuts.000000.jsonl.gz"],
        "recording": [tmp_path / "source" / "recording.000000.tar"],
        "codes": [tmp_path / "out" / "shar" / "codes.000000.tar"],
    }
    for i, (row, cut) in enumerate(zip(rows, CutSet.from_shar(fields=fields), strict=True)):
        np.testing.assert_array_equal(cut.load_codes().T, row.codes)
        np.testing.assert_allclose(cut.load_audio()[0], i / 8, atol=1e-4)


def test_shar_gzip_has_no_time(tmp_path):
    finals = place(tmp_path, "shar", [make_row(S3, 3)], S3)
    packed = (tmp_path / "out" / finals[-1]).read_bytes()
    assert packed[3] == 0  # no name
    assert packed[4:8] == b"\0\0\0\0"  # no time
    assert json.loads(gzip.decompress(packed))["type"] == "MonoCut"


def test_megatron_bytes(tmp_path):
    """The index field by field, as Megatron-LM's reader takes it; ids by hand."""
    facts = replace(MINI, codebook_sizes=(10, 20))
    rows = [
        replace(make_row(facts, 2, "a"), codes=np.array([[1, 2], [3, 4]])),
        replace(make_row(facts, 1, "b"), codes=np.array([[9], [19]])),
    ]
    place(tmp_path, "megatron", rows, facts)
    index = (tmp_path / "out" / "shard-000012.idx").read_bytes()
    assert index[:9] == b"MMIDIDX\x00\x00"
    assert struct.unpack("<Q", index[9:17]) == (1,)
    assert struct.unpack("<B", index[17:18]) == (8,)  # uint16
    assert struct.unpack("<QQ", index[18:34]) == (2, 3)  # sequences, document borders
    np.testing.assert_array_equal(np.frombuffer(index, "<i4", 2, 34), [5, 3])
    np.testing.assert_array_equal(np.frombuffer(index, "<i8", 2, 42), [0, 10])
    np.testing.assert_array_equal(np.frombuffer(index, "<i8", 3, 58), [0, 1, 2])
    assert len(index) == 82
    ids = np.fromfile(tmp_path / "out" / "shard-000012.bin", "<u2")
    np.testing.assert_array_equal(ids, [1, 13, 2, 14, 30, 9, 29, 30])  # 30 = 10 + 20 ends a document
    assert list(Documents(tmp_path / "out" / "shard-000012")[1]) == [9, 29, 30]
    place(tmp_path, "megatron", [make_row(WIDE, 3)], WIDE, shard=13)
    assert (tmp_path / "out" / "shard-000013.idx").read_bytes()[17] == 4  # int32


# Bad input -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMS)
def test_codes_that_do_not_fit_are_refused(name, tmp_path):
    row = make_row(S3, 5)
    for codes, match in [
        (np.array([[0, 6561]]), r"'a/b' holds code 6561 in codebook 0, which has 6561 entries"),
        (np.array([[-1, 3]]), "holds code -1"),
        (np.zeros((2, 5), int), "has 1 codebooks"),
        (np.zeros((1, 5)), "float64"),
        (np.zeros(5, int), r"codes \(5,\)"),
    ]:
        refused(TokensError, match, get_output(name).write, tmp_path, 0, [replace(row, codes=codes)], S3)
    refused(TokensError, "appears 2 times", lambda: get_output(name).write(tmp_path, 0, [row, row], S3))
    refused(TokensError, "text is not valid Unicode", get_output(name).check, replace(row, text="\udcff"), S3)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["npy", "webdataset", "shar"])
@pytest.mark.parametrize("key", ["/etc/x", "../x", "a/../../x", "a//b", "./a", "", "a/", "nul\0", "é" * 130])
def test_keys_that_cannot_name_a_file_are_refused(name, key):
    refused(TokensError, "the key", lambda: get_output(name).check(make_row(S3, 3, key, audio=None), S3))


@pytest.mark.parametrize("name", ["jsonl", "parquet", "megatron"])
def test_keys_are_plain_text_elsewhere(name, tmp_path):
    place(tmp_path, name, [make_row(S3, 3, "/etc/../x")], S3)
    assert read_back(tmp_path, name, S3)[0].key == "/etc/../x"


def test_what_one_form_refuses(tmp_path):
    rows = [make_row(S3, 3, "a"), make_row(S3, 3, "a.npy/b")]
    refused(TokensError, "rename one", get_output("npy").write, tmp_path, 0, rows, S3)
    sidecar = get_output("sidecar")
    for audio in (None, "s3://bucket/x.wav"):
        refused(TokensError, "choose another output", sidecar.check, make_row(S3, 3, audio=audio), S3)
    rows = [make_row(S3, 3, key, audio="/x/long.wav") for key in ("long-1", "long-2")]
    refused(TokensError, "one whole recording per utterance", sidecar.write, tmp_path, 0, rows, S3)
    refused(ConfigError, "no output 'tfrecord': give jsonl, parquet", get_output, "tfrecord")
    refused(ConfigError, "audio_root", get_output, "npy", audio_root="/x")


def test_missing_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r"pip install .*\[parquet\]"):
        get_output("parquet").write(tmp_path, 0, [make_row(S3, 3)], S3)


@pytest.mark.parametrize("name", FORMS)
def test_damaged_files_are_errors(name, tmp_path):
    """Each file of a shard in turn is cut in half, then removed."""
    rows = [make_row(MINI, 50, f"k{i}", i, audio=f"{tmp_path}/{i}.wav") for i in range(3)]
    files = place(tmp_path, name, rows, MINI)
    for file in files:
        path = tmp_path / "out" / file
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(TokensError):
            list(form(name).open(tmp_path / "out", files[-1], MINI))
        path.unlink()
        with pytest.raises(TokensError):
            list(form(name).open(tmp_path / "out", files[-1], MINI))
        path.write_bytes(whole)
    assert len(read_back(tmp_path, name, MINI)) == 3
