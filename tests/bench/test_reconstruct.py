"""The reconstruction benchmark: what is chosen, and a run that is stopped and resumed."""

import dataclasses
import importlib.util
import json
import pickle
from pathlib import Path

import pytest
import soundfile
from conftest import refused, speechlike
from corpora import write_jsonl

from vokens import registry
from vokens.bench import evaluators
from vokens.bench.options import METRICS, Reconstruct, codebook_ranges
from vokens.bench.results import Row
from vokens.bench.tasks.items import find_items
from vokens.bench.tasks.reconstruct import run, summary_row
from vokens.cli import main
from vokens.errors import CheckpointError, ConfigError, MissingExtra, NotInstalled, VokensError

RATE = 16000


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder, lines = tmp_path_factory.mktemp("corpus"), []
    lengths = (16000, 14400, 12800, 16000)
    labels = [("test", "en", "ONE"), ("test", "en", None), ("test", "de", "EINS"), ("train", "en", "A")]
    for i, (length, facts) in enumerate(zip(lengths, labels, strict=True)):
        soundfile.write(folder / f"{i}.wav", speechlike(length, i), RATE)
        line = {"id": f"s/{9 - i}", "path": f"{i}.wav", "duration": length / RATE}
        lines.append(line | dict(zip(("split", "language", "text"), facts, strict=True)))
    write_jsonl(folder / "manifest.jsonl", lines)
    return folder


def options(corpus: Path, out: Path, **changes) -> Reconstruct:
    base = Reconstruct(
        data=corpus / "manifest.jsonl", out=out, models="", split="test", processes=1,
        peers="original", metrics="si-sdr,mel",
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


def ids(chosen: Reconstruct) -> list[str]:
    return [item.id for item in find_items(chosen)]


def test_filters_and_order(corpus, tmp_path):
    chosen = options(corpus, tmp_path)
    assert ids(chosen) == ["s/7", "s/8", "s/9"]
    assert ids(dataclasses.replace(chosen, limit=2)) == ["s/7", "s/9"]
    assert ids(dataclasses.replace(chosen, language="en", with_text=True)) == ["s/9"]
    assert ids(dataclasses.replace(chosen, min_seconds=0.85, max_seconds=0.95)) == ["s/8"]
    assert ids(dataclasses.replace(chosen, split=None)) == ["s/6", "s/7", "s/8", "s/9"]
    refused(ConfigError, "split=none", lambda: find_items(dataclasses.replace(chosen, split="none")))


def test_a_folder_without_manifest(tmp_path):
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in" / "a.wav", speechlike(8000), RATE)
    actual = find_items(Reconstruct(data=tmp_path, out=tmp_path / "out"))
    assert [(item.id, item.text) for item in actual] == [("in/a.wav", None)]


@pytest.mark.parametrize(
    "text",
    [
        *('{"id": 1', '{"id": "a"}', '{"id": "a", "path": "x"}\n{"id": "a", "path": "y"}'),
        *('{"path": "x", "offset": 1, "duration": 1}', '{"path": "s3://b/x.wav"}'),
    ],
)
def test_bad_manifests_are_named(tmp_path, text):
    (tmp_path / "m.jsonl").write_text(text)
    refused(ConfigError, r"m\.jsonl", find_items, Reconstruct(data=tmp_path / "m.jsonl", out=tmp_path))


def test_codebook_rows():
    every = {"1": (0, 1), "1-2": (0, 2), "1-4": (0, 4), "1-8": (0, 8), "2-8": (1, 8)}
    assert codebook_ranges(None, 8) == every
    assert codebook_ranges(None, 1) == {"1": (0, 1)}
    assert codebook_ranges("3, 2-2, all", 4) == {"1-3": (0, 3), "2": (1, 2), "1-4": (0, 4)}
    for wrong in ("0", "5", "3-2", "x"):
        refused(ConfigError, "within 1 to 4", codebook_ranges, wrong, 4)


def test_unknown_peers_are_named(corpus, tmp_path):
    refused(ConfigError, "mp3-8", lambda: run(options(corpus, tmp_path, peers="mp3-8")))


def test_a_peer_is_whole_and_not_measured_twice(corpus, tmp_path):
    assert run(options(corpus, tmp_path, models="mini", peers="mini,original", codebooks="8", limit=2)) == 0
    rows = json.loads((tmp_path / "reconstruct.json").read_text())["rows"]
    assert [(row["row"], row["files"]) for row in rows] == [("mini 1-8", 2), ("original", 2)]
    assert run(options(corpus, tmp_path / "alone", peers="mini", limit=2)) == 0
    (row,) = json.loads((tmp_path / "alone" / "reconstruct.json").read_text())["rows"]
    assert row["row"] == "mini"
    assert row["metric"]["mel"] == rows[0]["metric"]["mel"]


def test_a_peer_has_its_rate_and_is_in_time(corpus, tmp_path):
    if sentence := registry.lacking(registry.get("opus-6")):
        pytest.skip(sentence)
    assert run(options(corpus, tmp_path, peers="opus-6", metrics="stoi", limit=2)) == 0
    (row,) = json.loads((tmp_path / "reconstruct.json").read_text())["rows"]
    assert row["metric"]["bitrate"]["value"] == pytest.approx(6, rel=0.15)  # the last frame, and the delay
    assert row["metric"]["stoi"]["value"] > 0.7  # in time: Codec2 with its 20 ms would lose 0.2


def test_every_evaluator_is_asked(corpus, tmp_path):
    """On small graphs of the published form: of the recording itself, its own voice and the words that they say."""
    pytest.importorskip("onnx")
    from evaluator_graphs import SENTENCE, write_campplus, write_dnsmos, write_moonshine

    write_moonshine(tmp_path / "moonshine-tiny-en", SENTENCE)
    write_campplus(tmp_path / "campplus-zh-en")
    write_dnsmos(tmp_path / "dnsmos")
    metrics = "speaker,dnsmos,dnsmos-sig,dnsmos-bak,wer"
    asked = options(corpus, tmp_path / "out", metrics=metrics, language="en", limit=2, evaluators=tmp_path)
    assert run(asked) == 0
    (row,) = json.loads((tmp_path / "out" / "reconstruct.json").read_text())["rows"]
    assert row["metric"].keys() == {"bitrate", "rtf", *metrics.split(",")}
    assert row["metric"]["speaker"]["value"] == pytest.approx(1)
    assert row["metric"]["wer"]["value"] == 200  # "the sea" for "one": one word wrong, and one too many


def test_summary_pools_words_and_rates():
    second = {"row": "a", "seconds": 1.0, "bits": 1000, "compute_seconds": 0.5}
    results = [
        second | {"id": "1", "stoi": 0.5, "edits": 1, "words": 1},
        second | {"id": "2", "stoi": None, "seconds": 3.0, "bits": 5000},  # no text
        second | {"id": "3", "stoi": 0.7, "edits": 0, "words": 9},
    ]
    row = summary_row(Row("a", "model"), results, "ears")
    values = {name: actual["value"] for name, actual in row["metric"].items()}
    assert values == {"bitrate": 1.4, "rtf": 0.3, "wer": 10.0, "stoi": 0.6}
    assert [row["metric"][name]["n"] for name in ("bitrate", "stoi", "wer")] == [3, 2, 2]
    assert row["metric"]["wer"]["mode"] == "ears, greedy"


def without_time(folder: Path) -> list[dict]:
    results = [json.loads(line) for line in (folder / "reconstruct.jsonl").read_text().splitlines()]
    return sorted(
        ({k: v for k, v in result.items() if k != "compute_seconds"} for result in results),
        key=lambda result: (result["row"], result["id"]),
    )


def test_run_resumes_to_the_same_results(corpus, tiny_codec_folder, tmp_path, capsys):
    whole = options(corpus, tmp_path / "whole", models=str(tiny_codec_folder))
    assert run(whole) == 0
    rows = json.loads((whole.out / "reconstruct.json").read_text())["rows"]
    assert [row["row"] for row in rows] == ["mini 1", "mini 1-2", "mini 1-4", "mini 2-4", "original"]
    assert [row["files"] for row in rows] == [3] * 5
    kbps = rows[2]["metric"]["bitrate"]["value"]
    assert kbps == pytest.approx(1.0, rel=0.05)  # 50 Hz x 4 x 5 bits, and the last frames' padding
    assert "mini 1-4 3 (3 s)" in (whole.out / "reconstruct.md").read_text()
    assert "reconstruct: 3 recordings, 3 s of speech" in capsys.readouterr().out

    parts = dataclasses.replace(whole, out=tmp_path / "parts", limit=1)
    run(parts)
    cut = (parts.out / "reconstruct.jsonl").read_text()[:-20]  # the last line of a run that was killed
    (parts.out / "reconstruct.jsonl").write_text(cut)
    assert run(dataclasses.replace(whole, out=parts.out)) == 0
    assert without_time(parts.out) == without_time(whole.out)
    for folder in (whole.out, parts.out):
        names = sorted(path.name for path in (folder / "tokens/mini").iterdir())
        assert names == ["s%2F7.vok", "s%2F8.vok", "s%2F9.vok"]

    refused(ConfigError, "another --out", lambda: run(dataclasses.replace(whole, metrics="mel")))


def test_several_models_in_one_run(corpus, tiny_codec_folder, tmp_path):
    chosen = options(
        corpus, tmp_path, models=f"{tiny_codec_folder},mini", limit=1, codebooks="4", metrics="mel"
    )
    assert run(chosen) == 0
    lines = [json.loads(line) for line in (tmp_path / "reconstruct.jsonl").read_text().splitlines()]
    assert [line["row"] for line in lines] == [f"{tiny_codec_folder} 1-4", "mini 1-4", "original"]
    assert lines[0]["mel"] > lines[1]["mel"] > lines[2]["mel"] == 0  # random weights, trained ones, none
    before = (tmp_path / "reconstruct.jsonl").read_bytes()
    assert run(chosen) == 0
    assert (tmp_path / "reconstruct.jsonl").read_bytes() == before


@pytest.mark.slow  # two fresh processes import torch
def test_two_processes_give_what_one_gives(corpus, tmp_path):
    for processes in (1, 2):
        run(options(corpus, tmp_path / str(processes), processes=processes))
    assert without_time(tmp_path / "1") == without_time(tmp_path / "2")


def test_missing_peers_do_not_stop_the_rest(corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("VOKENS_EVAL_MODELS", str(tmp_path))
    monkeypatch.setenv("VOKENS_CACHE", str(tmp_path))
    assert run(options(corpus, tmp_path / "out", peers="original,lyra-6")) == 0
    summary = json.loads((tmp_path / "out" / "reconstruct.json").read_text())
    assert "vokens.load('lyra-6') fetches them" in summary["notes"]["lyra-6"]


def test_what_cannot_be_read_is_named_and_left_out(tmp_path, capsys):
    """A file that is no audio, one that is not there, and m4a: lengths and all, without durations in the manifest."""
    soundfile.write(tmp_path / "good.wav", speechlike(8000), RATE)
    (tmp_path / "page.wav").write_text("<html>")
    (tmp_path / "cut.m4a").write_bytes(b"\0\0\0\x1cftypM4A " + bytes(100))
    (tmp_path / "._good.wav").write_bytes(b"of macOS")
    whole = options(tmp_path, tmp_path / "folder", data=tmp_path, split=None)
    assert ids(whole) == ["cut.m4a", "good.wav", "page.wav"]
    lines = [json.dumps({"path": name}) for name in ("good.wav", "page.wav", "cut.m4a", "missing.wav")]
    (tmp_path / "m.jsonl").write_text("\n".join(lines))
    capsys.readouterr()
    assert run(options(tmp_path, tmp_path / "manifest", data=tmp_path / "m.jsonl", split=None)) == 1
    said = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[1] for line in said] == ["cut", "missing", "page"]
    summary = json.loads((tmp_path / "manifest" / "reconstruct.json").read_text())
    assert (summary["failed"], summary["rows"][0]["files"]) == (3, 1)


@pytest.mark.parametrize("wrong", [{"processes": 0}, {"threads": 0}, {"limit": 0}, {"min_seconds": -1.0}])
def test_options_are_checked(corpus, tmp_path, wrong):
    with pytest.raises(ConfigError, match=f"--{next(iter(wrong)).replace('_', '-')} .* or more is accepted"):
        options(corpus, tmp_path, **wrong)


def test_without_evaluators_the_rest_is_measured(corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VOKENS_EVAL_MODELS", str(tmp_path / "none"))
    assert run(options(corpus, tmp_path, metrics=None, limit=1)) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "vokens: reconstruct leaves out: speaker, dnsmos, dnsmos-sig, dnsmos-bak, distill-mos, wer ("
    )
    assert "lacks campplus-zh-en, dnsmos, distillmos, moonshine-tiny-en: docs/jobs/metrics.md" in line
    summary = json.loads((tmp_path / "reconstruct.json").read_text())
    assert summary["rows"][0]["metric"].keys() >= {"stoi", "mel", "f0", "bitrate", "rtf"}
    assert summary["notes"].keys() == {"speaker", "dnsmos", "dnsmos-sig", "dnsmos-bak", "distill-mos", "wer"}
    with pytest.raises(NotInstalled, match=r"--metrics wer: .*docs/jobs/metrics\.md"):  # asked for by name
        run(options(corpus, tmp_path / "out", metrics="mel,wer"))


def test_without_the_extra_the_rest_is_measured(corpus, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        evaluators, "find_spec", lambda name: None if name in ("pesq", "pystoi") else find(name)
    )
    notes = evaluators.unmeasurable(METRICS, "whisper:ID", tmp_path)
    assert notes["stoi"] == notes["pesq-nb"]
    assert notes["stoi"].startswith("measuring them needs the package 'pystoi, pesq': pip install")
    assert "wer" not in notes  # of transformers, which says itself what it needs


def test_rates_may_be_asked_for_alone(corpus, tmp_path):
    assert run(options(corpus, tmp_path, metrics="bitrate,rtf", limit=1)) == 0
    (row,) = json.loads((tmp_path / "reconstruct.json").read_text())["rows"]
    assert row["metric"].keys() == {"bitrate", "rtf"}


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])  # fresh ones import torch
def test_a_damaged_evaluator_is_one_line(corpus, tmp_path, capsys, processes):
    (tmp_path / "dnsmos").mkdir()
    (tmp_path / "dnsmos" / "sig_bak_ovr.onnx").write_bytes(b"not a graph")
    command = ["bench", "reconstruct", "--models", "", "--peers", "original", "--metrics", "dnsmos"]
    command += ["--data", str(corpus), "--out", str(tmp_path / "out"), "--judges", str(tmp_path)]
    assert main([*command, "--processes", str(processes)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "sig_bak_ovr.onnx cannot be opened by onnxruntime" in line


def test_errors_travel_between_processes():
    for error in (MissingExtra("pesq", "eval", "PESQ"), NotInstalled("x"), CheckpointError("y")):
        again = pickle.loads(pickle.dumps(error))
        assert isinstance(again, VokensError)
        assert str(again) == str(error)
