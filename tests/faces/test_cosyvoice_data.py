"""CosyVoice's training data: read back by the published column names, equal to the published loops over the graphs."""

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import build_tiny_mini, speechlike

from vokens import audio, checkpoint
from vokens.audio.mel import WHISPER_128
from vokens.cli import main as vokens_main
from vokens.compat.cosyvoice.__main__ import main
from vokens.corpus.engine.local import Worker, extract
from vokens.corpus.run import Settings
from vokens.data.outputs.pt_map import read_pt_map, write_pt_map
from vokens.errors import ConfigError
from vokens.models.codec import Codec
from vokens.models.pretrained import load
from vokens.nn.campplus import CAMPPlus

parquet = pytest.importorskip("pyarrow.parquet")
RELEASED = Path(__file__).parents[1] / "golden/s3tokenizer/onnx_v2.onnx"  # in the released form, small
KEYS = ("a-1", "a-2", "b-1", "b-2", "a-3")
RATES = dict(zip(KEYS, ((24000, 1.3), (16000, 0.8), (16000, 0.4), (22050, 0.5), (16000, 0.7)), strict=True))


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("campplus") / "campplus.safetensors"
    checkpoint.save_safetensors(path, CAMPPlus().state_dict())
    return path


@pytest.fixture(scope="module")
def codec() -> Codec:
    return load(RELEASED, config={"heads": 2})  # which a released size says by itself


@pytest.fixture(scope="module")
def model(codec: Codec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return codec.save_pretrained(tmp_path_factory.mktemp("model"))


def write_data(folder: Path) -> Path:
    """A folder as CosyVoice's recipes make it: 5 utterances of 2 speakers."""
    folder.mkdir(parents=True)
    lines: dict[str, list[str]] = {name: [] for name in ("wav.scp", "text", "utt2spk", "instruct")}
    for seed, (key, (rate, seconds)) in enumerate(RATES.items()):
        path = folder / f"{key}.wav"
        soundfile.write(path, speechlike(int(rate * seconds), seed, rate), rate)
        rests = (path, f"words of  {key}", key[0], "Speak.<|endofprompt|>")
        for name, rest in zip(lines, rests, strict=True):
            lines[name].append(f"{key} {rest}\n")
    for name, content in lines.items():
        (folder / name).write_text("".join(content))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_data(tmp_path_factory.mktemp("cosyvoice") / "data")
    rejected = folder.with_name("data_reject")
    rejected.mkdir()
    torch.save({"a-1": [1, 2, 3], "b-2": [4]}, rejected / "utt2speech_token.pt")
    return folder


def settings(data: Path, out: Path, **more: Any) -> Settings:
    return replace(Settings(str(data), out, format="cosyvoice", shard_size=2, sinc=True), **more)


@pytest.fixture(scope="module")
def made(data: Path, codec: Codec, speaker: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "out"
    extract(settings(data, out, speaker=speaker), codec, Worker(workers=0))
    return out


def samples(data_list: Path) -> Iterator[dict[str, Any]]:
    """What CosyVoice's opener gives its processors, from the published names alone."""
    for url in data_list.read_text().split():
        for batch in parquet.ParquetFile(url).iter_batches(batch_size=64):
            rows = batch.to_pandas()
            yield from (dict(rows.loc[i]) for i in range(len(rows)))


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def wave16(path: str | Path) -> torch.Tensor:
    wave, rate = soundfile.read(path, dtype="float32")
    return audio.sinc_resample(torch.from_numpy(wave), rate, 16000)


def test_a_reader_of_the_published_columns(made, data):
    pytest.importorskip("pandas")
    rows = list(samples(made / "data.list"))
    assert [row["utt"] for row in rows] == list(RATES)
    speakers = read_pt_map(made / "spk2embedding.pt")
    for row in rows:
        assert list(row) == ["utt", "audio_data", "wav", "text", "spk", "utt_embedding", "spk_embedding",
                             "speech_token", "instruct", "reject_speech_token"]  # fmt: skip
        wave, rate = soundfile.read(io.BytesIO(row["audio_data"]))
        assert row["audio_data"] == Path(row["wav"]).read_bytes()
        assert (rate, len(wave) / rate) == pytest.approx(RATES[row["utt"]], abs=1e-3)
        assert row["text"] == f"words of {row['utt']}"
        assert row["instruct"] == "Speak.<|endofprompt|>"
        tokens = torch.tensor(row["speech_token"])
        assert tokens.dtype == torch.int64
        assert len(tokens) == -(-len(wave16(row["wav"])) // 640)
        assert torch.tensor(row["utt_embedding"], dtype=torch.float32).shape == (192,)
        assert row["spk_embedding"].tolist() == speakers[row["spk"]]
        assert row["reject_speech_token"].tolist() == {"a-1": [1, 2, 3], "b-2": [4]}.get(row["utt"], [])


def test_maps_and_lists(made):
    rows = {row["utt"]: row for row in parquet_rows(made)}
    for name, column in (("utt2speech_token", "speech_token"), ("utt2embedding", "utt_embedding")):
        stored = torch.load(made / f"{name}.pt", weights_only=True)
        assert stored == {key: row[column] for key, row in rows.items()}
    means = torch.load(made / "spk2embedding.pt")
    for name in ("a", "b"):
        own = torch.tensor([row["utt_embedding"] for row in rows.values() if row["spk"] == name])
        torch.testing.assert_close(torch.tensor(means[name]), own.mean(0), atol=1e-6, rtol=0)
    for kind in ("utt", "spk"):
        files = (made / f"{kind}2data.list").read_text().split()
        assert [Path(file).name for file in files] == [f"{kind}2parquet_{i:09d}.json" for i in range(3)]
        for file, url in zip(files, (made / "data.list").read_text().split(), strict=True):
            members = {row[kind] for row in parquet.read_table(url).to_pylist()}
            assert json.loads(Path(file).read_text()) == dict.fromkeys(members, url)


def parquet_rows(out: Path) -> list[dict[str, Any]]:
    urls = (out / "data.list").read_text().split()
    return [row for url in urls for row in parquet.read_table(url).to_pylist()]


def test_doing_it_again_or_by_two_changes_nothing(made, data, codec, speaker, tmp_path):
    before = tree(made)
    extract(settings(data, made, speaker=speaker), codec, Worker(workers=0))
    assert tree(made) == before
    (made / "parquet_000000001.tar").write_bytes(before["parquet_000000001.tar"][:-9])  # damaged, gone
    (made / "data.list").unlink()
    extract(settings(data, made, speaker=speaker), codec, Worker(rank=1, world=2, workers=0))
    assert tree(made) == before
    assert not [name for name in before if name.startswith(("leases", "."))]


def test_from_the_folder_where_all_is(made, data, model, speaker, tmp_path, monkeypatch):
    """By relative paths the files are the same, the lists hold whole paths, and inspection encodes the same again."""
    monkeypatch.chdir(tmp_path)
    for name, place in (("data", data), ("model", model), ("campplus", speaker.parent)):
        (tmp_path / name).symlink_to(place)
    command = "extract data/ --model model --format cosyvoice --speaker campplus --out out --shard-size 2 --workers 0"
    assert vokens_main([*command.split(), "--device", "cpu"]) == 0
    assert (tmp_path / "out/data.list").read_text().split()[0] == str(tmp_path / "out/parquet_000000000.tar")
    assert (tmp_path / "out/utt2speech_token.pt").read_bytes() == (made / "utt2speech_token.pt").read_bytes()
    assert vokens_main(["inspect", "out", "--model", "model", "--sample", "20", "--device", "cpu"]) == 0


def test_another_speaker_encoder_is_refused(made, data, codec, tmp_path):
    with pytest.raises(ConfigError, match="was begun with speaker"):
        extract(settings(data, made), codec, Worker(workers=0))


def test_what_is_missing_is_said(data, codec, speaker, tmp_path):
    folder = write_data(tmp_path / "data")
    (folder / "utt2spk").write_text("".join(f"{key} {key[0]}\n" for key in RATES if key != "b-2"))
    (folder / "instruct").write_text("a-1 Speak.\n")
    soundfile.write(folder / "a-2.wav", np.zeros(700, np.float32), 16000)  # 44 ms
    out = tmp_path / "out"
    summary = extract(settings(folder, out, speaker=speaker), codec, Worker(workers=0))
    assert (summary["utterances"], summary["failures"]) == (3, 2)
    reasons = "".join(path.read_text() for path in sorted((out / "failures").iterdir()))
    assert "too short for a speaker embedding: 45 ms" in reasons
    assert "'b-2' has no speaker" in reasons
    assert [row["instruct"] for row in parquet_rows(out)] == ["Speak.", "", ""]
    assert "reject_speech_token" not in parquet_rows(out)[0]
    # Mended: it changes its speaker's mean everywhere.
    soundfile.write(folder / "a-2.wav", speechlike(9000, 2), 16000)
    again = extract(settings(folder, out, speaker=speaker), codec, Worker(workers=0, retry_failed=True))
    assert (again["utterances"], again["failures"]) == (4, 1)
    rows, means = parquet_rows(out), read_pt_map(out / "spk2embedding.pt")
    assert [row["utt"] for row in rows] == ["a-1", "a-2", "b-1", "a-3"]
    assert all(row["spk_embedding"] == means[row["spk"]] for row in rows)
    with pytest.raises(ConfigError, match="--format cosyvoice holds one codebook, mini has 4"):
        extract(settings(folder, tmp_path / "mini"), build_tiny_mini(), Worker(workers=0))
    assert not (tmp_path / "mini").exists()


def test_pieces_and_other_forms(codec, model, speaker, tmp_path):
    """A piece of a recording becomes a file of its own; the embedding is there in every form."""
    soundfile.write(tmp_path / "long.flac", speechlike(48000, 3, 24000), 24000)
    line = {"id": "piece", "audio_filepath": "long.flac", "offset": 0.5, "duration": 1.0}
    line |= {"text": "t", "speaker": "s"}
    (tmp_path / "list.jsonl").write_text(json.dumps(line) + "\n")
    for form in ("cosyvoice", "jsonl"):
        run = settings(tmp_path / "list.jsonl", tmp_path / form, speaker=speaker, format=form)
        extract(run, codec, Worker(workers=0))
    (row,) = parquet_rows(tmp_path / "cosyvoice")
    wave, rate = soundfile.read(io.BytesIO(row["audio_data"]))
    assert (len(wave), rate, row["text"]) == (24000, 24000, "t")
    stored = json.loads((tmp_path / "jsonl/shard-000000.jsonl").read_text())
    assert stored["embedding"] == row["utt_embedding"] == row["spk_embedding"]
    # and what CosyVoice's own tools made is a source again
    again = ["extract", f"{tmp_path}/cosyvoice/parquet_*.tar", "-o", f"{tmp_path}/again", "--workers", "0"]
    assert vokens_main([*again, "-m", str(model)]) == 0
    assert json.loads((tmp_path / "again/shard-000000.jsonl").read_text())["key"] == "piece"


def test_tokens_are_those_of_the_graph(made, data):
    """The published loop: one recording at a time."""
    onnxruntime = pytest.importorskip("onnxruntime")
    session, log_mel = onnxruntime.InferenceSession(RELEASED), audio.LogMel(replace(WHISPER_128, n_mels=4))
    tokens = read_pt_map(made / "utt2speech_token.pt")
    names = [node.name for node in session.get_inputs()]
    for key in RATES:
        mel = log_mel(wave16(data / f"{key}.wav")[None]).numpy()
        ids = session.run(None, {names[0]: mel, names[1]: np.array([mel.shape[2]], np.int32)})[0]
        assert tokens[key] == ids.reshape(-1).tolist(), key


def test_over_30_seconds_and_without_a_speaker_encoder(codec, tmp_path):
    """The published loop leaves an empty list for it."""
    wave = speechlike(16000 * 31, 1)
    soundfile.write(tmp_path / "long.flac", wave, 16000)
    line = {"id": "long", "path": "long.flac", "text": "t", "speaker": "s"}
    (tmp_path / "list.jsonl").write_text(json.dumps(line) + "\n")
    extract(settings(tmp_path / "list.jsonl", tmp_path / "out"), codec, Worker(workers=0))
    (row,) = parquet_rows(tmp_path / "out")
    assert list(row) == ["utt", "audio_data", "wav", "text", "spk", "speech_token"]
    assert row["speech_token"] == codec.encode(tmp_path / "long.flac").codes[0, 0].tolist()
    assert len(row["speech_token"]) == 31 * 25
    assert not list((tmp_path / "out").glob("*embedding.pt"))


@pytest.mark.slow  # the export takes 10 s
def test_embeddings_are_those_of_the_graph(made, data, speaker, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    fbank = pytest.importorskip("kaldi_native_fbank")
    pytest.importorskip("onnxscript")
    model = CAMPPlus().eval()
    model.load_state_dict(checkpoint.read_state_dict(speaker))
    graph = tmp_path / "campplus.onnx"
    torch.onnx.export(model, (torch.randn(1, 60, 80),), graph, dynamo=False, input_names=["input"],
                      dynamic_axes={"input": {1: "frames"}})  # fmt: skip
    session, embeddings = onnxruntime.InferenceSession(graph), read_pt_map(made / "utt2embedding.pt")
    for key in RATES:
        features = kaldi_features(fbank, wave16(data / f"{key}.wav").numpy())
        actual = session.run(None, {"input": features[None] - features.mean(0)})[0].reshape(-1)
        np.testing.assert_allclose(embeddings[key], actual, atol=2e-3 * np.abs(actual).max())


def kaldi_features(fbank: Any, wave: np.ndarray) -> np.ndarray:
    """(F, 80) by Kaldi's own code, as torchaudio's compliance has them."""
    options = fbank.FbankOptions()
    options.frame_opts.dither, options.mel_opts.num_bins, options.energy_floor = 0.0, 80, 0.0
    computer = fbank.OnlineFbank(options)
    computer.accept_waveform(16000, wave.tolist())
    return np.stack([computer.get_frame(i) for i in range(computer.num_frames_ready)])


class TestPublishedCommands:
    """`python -m vokens.compat.cosyvoice`, by the published flags."""

    @pytest.fixture(scope="class")
    def prepared(self, tmp_path_factory: pytest.TempPathFactory, speaker: Path, model: Path) -> Path:
        folder = write_data(tmp_path_factory.mktemp("published") / "data")
        threads = ["--num_thread", "1"]
        assert main(["extract_speech_token", "--dir", str(folder), "--onnx_path", str(model), *threads]) == 0
        assert main(["extract_embedding", "--dir", str(folder), "--onnx_path", str(speaker), *threads]) == 0
        return folder

    def test_maps_as_the_run_makes_them(self, prepared, made):
        for name in ("utt2speech_token.pt", "utt2embedding.pt", "spk2embedding.pt"):
            assert read_pt_map(prepared / name) == read_pt_map(made / name), name
        assert not [path for path in prepared.iterdir() if path.name.startswith(".")]

    def test_parquet_as_the_run_makes_it(self, prepared, data, made, tmp_path):
        rejected = prepared.with_name("data_reject")
        rejected.mkdir()
        (rejected / "utt2speech_token.pt").symlink_to(f"{data}_reject/utt2speech_token.pt")
        places = ["--src_dir", str(prepared), "--des_dir", str(tmp_path / "out")]
        flags = "--num_utts_per_parquet 2 --num_processes 2 --dpo"
        assert main(["make_parquet_list", *places, *flags.split()]) == 0
        for ours, theirs in zip(parquet_rows(tmp_path / "out"), parquet_rows(made), strict=True):
            assert Path(ours.pop("wav")).name == Path(theirs.pop("wav")).name
            assert ours == theirs
        urls = (tmp_path / "out/data.list").read_text().split()
        assert urls == [f"{tmp_path}/out/parquet_{i:09d}.tar" for i in range(3)]
        types = {field.name: str(field.type) for field in parquet.read_schema(urls[0])}
        assert types["audio_data"] == "binary"
        assert types["speech_token"].startswith("list<") and "int64" in types["speech_token"]  # noqa: PT018
        assert "double" in types["utt_embedding"]

    def test_what_fails_is_left_out_and_said(self, prepared, model, tmp_path, capsys):
        folder = write_data(tmp_path / "data")
        (folder / "a-1.wav").write_bytes(b"RIFF")
        assert main(["extract_speech_token", "--dir", str(folder), "--onnx_path", str(model)]) == 1
        assert "a-1: " in capsys.readouterr().err
        assert set(read_pt_map(folder / "utt2speech_token.pt")) == set(RATES) - {"a-1"}
        out = tmp_path / "out"
        assert main(["make_parquet_list", "--src_dir", str(folder), "--des_dir", str(out)]) == 1
        assert "a-1 is not in utt2speech_token.pt" in capsys.readouterr().err
        assert len(parquet_rows(out)) == 4
        assert "utt_embedding" not in parquet_rows(out)[0]
        assert not [path for path in folder.iterdir() if path.name.startswith(".")]
        (folder / "utt2spk").write_text("a-1 a\n")
        assert main(["extract_embedding", "--dir", str(folder), "--onnx_path", str(model)]) == 2
        assert "has no speaker for 'a-2': add the line" in capsys.readouterr().err

    def test_what_failed_is_tried_again(self, model, tmp_path, capsys):
        (tmp_path / "wav.scp").write_text(f"a {tmp_path}/a.wav\n")
        command = ["extract_speech_token", "--dir", str(tmp_path), "--onnx_path", str(model)]
        assert main(command) == 2
        assert "all 1 utterances failed; the first, a: " in capsys.readouterr().err
        soundfile.write(tmp_path / "a.wav", speechlike(8000), 16000)
        assert main(command) == 0
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.wav", "utt2speech_token.pt", "wav.scp"]

    @pytest.mark.parametrize(
        ("line", "said"),
        [
            ("extract_speech_token --dir D --onnx_path nowhere.onnx", "nowhere.onnx"),
            ("extract_embedding --dir D --onnx_path nowhere.onnx", "nowhere.onnx does not exist"),
            ("make_parquet_list --src_dir nowhere --des_dir out", "nowhere/wav.scp"),
            ("make_parquet_list --src_dir EMPTY --des_dir out", "wav.scp has no line"),
            ("make_parquet_list --src_dir ALONE --des_dir o --dpo", "alone_reject/utt2speech_token.pt does"),
            ("make_parquet_list --src_dir D --des_dir o --num_processes 0", "give 1 or more"),
        ],
    )
    def test_bad_input_is_one_line(self, line, said, prepared, tmp_path, capsys):
        folders = {"D": prepared, "EMPTY": tmp_path / "empty", "ALONE": tmp_path / "alone"}
        for name, content in (("EMPTY", "\n"), ("ALONE", "a a.wav\n")):
            folders[name].mkdir()
            (folders[name] / "wav.scp").write_text(content)
            for side in ("text", "utt2spk"):
                (folders[name] / side).write_text("a a\n")
        assert main([str(folders.get(word, word)) for word in line.split()]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
        assert not [path for path in prepared.iterdir() if path.name.startswith(".")]


def test_a_map_is_what_torch_saves(tmp_path):
    numbers, floats = np.array([0, 255, 256, 6560, 2**31 - 1]), np.float32([0.1, -2.5])
    entries = {"é/1": numbers, "": np.zeros(0, np.int64), "f": floats}
    write_pt_map(tmp_path / "map.pt", entries)
    expected = {name: values.tolist() for name, values in entries.items()}
    for safe in (True, False):
        assert torch.load(tmp_path / "map.pt", weights_only=safe) == expected
    torch.save(expected, tmp_path / "torch.pt")
    assert read_pt_map(tmp_path / "torch.pt") == expected
