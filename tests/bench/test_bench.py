"""What the parts of the benchmark share: one form of results, which resumes, refuses and repeats itself."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import refused, speechlike

from vokens.bench import BENCHES
from vokens.bench.options import Every, Measure, Reconstruct, Robust, TokenStatistics
from vokens.bench.report.definitions import DEFINITIONS, metric, single
from vokens.bench.report.table import compact, markdown
from vokens.bench.results import Results, Row
from vokens.bench.tasks import codecs, every, robust
from vokens.cli import main
from vokens.errors import ConfigError

DOCS = Path(__file__).parents[2] / "docs" / "jobs" / "metrics.md"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for name, length in (("a", 16000), ("b", 12345)):
        soundfile.write(folder / f"{name}.wav", speechlike(length, seed=length), 16000)
    return folder


def measured(corpus: Path, codec: Path, out: Path) -> Robust:
    return Robust(models=str(codec), data=corpus, out=out, dtypes="")


def test_a_mean_and_its_interval() -> None:
    values = np.random.default_rng(1).normal(3.0, 0.5, 400)
    actual = metric("stoi", [*values, None])
    assert actual["n"] == 400
    assert actual["value"] == pytest.approx(values.mean(), abs=1e-6)
    half = 1.96 * values.std(ddof=1) / math.sqrt(400)  # of the normal distribution
    assert actual["ci"] == pytest.approx([values.mean() - half, values.mean() + half], abs=0.2 * half)
    assert actual == metric("stoi", [*values, None])


def test_sums_over_sums() -> None:
    actual = metric("wer", [1, 2, None], [10, 40, 1000], scale=100, mode="by ear")
    assert (actual["value"], actual["n"], actual["unit"], actual["mode"]) == (6.0, 2, "%", "by ear")
    low, high = actual["ci"]
    assert (low, high) == (5.0, 10.0)  # one of the two recordings twice
    assert metric("wer", [None], [1]) == single("wer", None, 0)
    assert "ci" not in metric("wer", [1], [2])
    assert single("used", math.nan, 3)["value"] is None


def test_every_number_is_defined_in_the_docs() -> None:
    text = DOCS.read_text()
    for name, known in DEFINITIONS.items():
        assert f"`{name}`" in text, f"{name} ({known.title}) is not in docs/jobs/metrics.md"


def test_form_of_results(tmp_path, capsys) -> None:
    options, x = Measure(models="x,y", out=tmp_path / "new"), Row("x", "x", "f")
    with Results(options, "demo", colour="red") as results:
        assert results.get(x, "1") is None
        line = results.add(x, "1", stoi=math.nan, seconds=1 / 3, parts=[math.inf, 2])
        assert line == {
            **{"row": "x", "model": "x", "id": "1", "fingerprint": "f"},
            **{"stoi": None, "seconds": 0.333333, "parts": [None, 2]},
        }
        metrics = {"stoi": metric("stoi", [0.5]), "ued/gain/6 dB": metric("ued", [0.1])}
        rows = [x.summary(2, 1.0, metrics)]
        results.leave_out({"y": "it is gone", "z": "it is gone", "w": "too long"})
        assert capsys.readouterr().err == "vokens: demo leaves out: y, z (it is gone); w (too long)\n"
        for _ in range(2):  # by two codecs
            results.fail("2", "is truncated")
        assert capsys.readouterr().err == "vokens: 2: is truncated\n"
        assert results.finish(rows) == 1
    written = json.loads((options.out / "demo.json").read_text())
    assert list(written) == ["bench", "settings", "selection", "machine", "rows", "notes", "failed"]
    assert written["rows"] == rows
    assert written["settings"]["colour"] == "red"
    assert written["selection"]["models"] == ["x", "y"]
    text = (options.out / "demo.md").read_text()
    assert text == markdown(written)
    assert compact(written, 80) in capsys.readouterr().out
    assert f"| STOI |  | {DEFINITIONS['stoi'].mode} | 0.500 (1) |" in text
    assert "| unit edit distance gain 6 dB | % |" in text
    assert "y: not measured. it is gone" in text
    assert written["failed"] == 1

    with Results(options, "demo", colour="red") as results:
        assert results.get(x, "1") == line
        refused(ConfigError, "with weights f, now they are g", results.get, Row("x", "x", "g"), "1")
        assert json.loads((options.out / "demo.json").read_text()) == written  # until the next run ends
    words = r"holds results with \{'colour': 'red'\}, not \{'colour': 'blue'\}"
    refused(ConfigError, words, Results(options, "demo", colour="blue").__enter__)


def test_the_table_of_a_terminal_fits() -> None:
    """Codecs side by side as far as the width goes, then below; conditions against numbers; nothing wider."""
    plain = {"stoi": single("stoi", 0.5, 3), "pesq-wb": single("pesq-wb", 2.25, 2)}
    pairs = [(name, db) for name in ("ued", "agreement") for db in (10, 30)]
    under = {f"{name}/white noise/{db} dB": single(name, db, 3) for name, db in pairs}
    rows = [Row(f"codec {i}", "codec").summary(3, 61.0, plain | under) for i in range(12)]
    text = compact({"bench": "demo", "rows": rows, "notes": {}, "failed": 0}, 60)
    lines = text.splitlines()
    assert lines[0] == "demo: 3 recordings, 61 s of speech"
    assert max(map(len, lines)) <= 60
    assert all(text.count(f"codec {i} ") + text.count(f"codec {i}\n") == 2 for i in range(12))
    assert [line.split() for line in lines[-3:]] == [
        ["codec", "11", "ued", "%", "agreement", "%"],
        ["white", "noise", "10", "dB", "10.0", "10.0"],
        ["white", "noise", "30", "dB", "30.0", "30.0"],
    ]
    assert "2.25 (2)" in text  # of two recordings


def test_a_run_that_measured_nothing_leaves_nothing(tmp_path) -> None:
    """Its settings would refuse those of the next one."""
    options = Measure(out=tmp_path / "new")
    with pytest.raises(ConfigError, match="no such"), Results(options, "demo", colour="rde"):
        raise ConfigError("no such colour")
    assert not options.out.exists()
    with Results(options, "demo", colour="red") as results:
        results.add(Row("x", "x"), "1")
    with pytest.raises(ConfigError, match="later"), Results(options, "demo", colour="red"):
        raise ConfigError("later")
    assert len((options.out / "demo.jsonl").read_text().splitlines()) == 1


def test_one_process_at_a_time(tmp_path) -> None:
    pytest.importorskip("fcntl")
    options = Measure(out=tmp_path)
    with Results(options, "demo"), Results(options, "other"):
        refused(ConfigError, "another process", Results(options, "demo").__enter__)
    with Results(options, "demo") as results:  # free again
        results.add(Row("x", "x"), "1")


def test_a_line_cut_off_is_measured_again(tmp_path) -> None:
    options = Measure(out=tmp_path)
    with Results(options, "demo") as results:
        for id in ("é", "b"):
            results.add(Row("x", "x"), id, value=1)
    path = tmp_path / "demo.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    with Results(options, "demo") as results:
        assert results.get(Row("x", "x"), "é") is not None
        assert results.get(Row("x", "x"), "b") is None
        results.add(Row("x", "x"), "b", value=1)
    assert path.read_bytes() == whole


@pytest.fixture
def few_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = ("white noise/20 dB", "codec/opus")
    monkeypatch.setattr(robust, "ALIGNED", {name: robust.ALIGNED[name] for name in kept})


def test_runs_repeat_themselves_and_resume(
    corpus, tiny_codec_folder, tmp_path, monkeypatch, few_changes
) -> None:
    first, second, stopped = (measured(corpus, tiny_codec_folder, tmp_path / name) for name in "abc")
    assert robust.run(first) == robust.run(second) == 0
    for name in ("robust.jsonl", "robust.json", "robust.md", "tokens/mini/a.wav.vok"):
        assert (first.out / name).read_bytes() == (second.out / name).read_bytes(), name

    measure = robust.Probe.measure

    def interrupted(probe: robust.Probe, item: object) -> object:
        if item.id == "b.wav":
            raise KeyboardInterrupt
        return measure(probe, item)

    monkeypatch.setattr(robust.Probe, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        robust.run(stopped)
    assert len((stopped.out / "robust.jsonl").read_text().splitlines()) == 1

    def only_b(probe: robust.Probe, item: object) -> object:
        assert item.id == "b.wav", "what was measured is measured again"
        return measure(probe, item)

    monkeypatch.setattr(robust.Probe, "measure", only_b)
    assert robust.run(stopped) == 0
    for name in ("robust.jsonl", "robust.json", "robust.md"):
        assert (first.out / name).read_bytes() == (stopped.out / name).read_bytes(), name


def test_several_parts_and_models_from_the_command_line(corpus, tiny_codec_folder, tmp_path) -> None:
    out = tmp_path / "out"
    command = ["bench", "all", "--models", f"{tiny_codec_folder},mini", "--data", str(corpus), "--only"]
    assert main([*command, "tokens", "--out", str(out), "--limit", "1"]) == 0
    rows = json.loads((out / "tokens.json").read_text())["rows"]
    assert [row["row"] for row in rows] == [str(tiny_codec_folder), "mini"]  # both are called mini
    assert main([*command, "tokens,sleep", "--out", str(out)]) == 2


def test_all_leaves_out_what_the_data_do_not_allow(corpus, tmp_path, monkeypatch, capsys) -> None:
    possible = {name: BENCHES[name] for name in ("slmtok", "tokens")}  # the first needs transcripts
    monkeypatch.setattr("vokens.bench.tasks.every.BENCHES", possible)
    options = Every(out=tmp_path, data=corpus, limit=1)
    assert every.run(options) == 0
    assert (tmp_path / "tokens.json").is_file()
    assert "slmtok was left out: " in capsys.readouterr().err
    refused(ConfigError, "with text", lambda: every.run(dataclasses.replace(options, only="slmtok")))


def test_what_all_runs_has_the_options_that_all_share(tmp_path) -> None:
    asked = Every(out=tmp_path, models="a, b,a", limit=3)
    for name, bench in BENCHES.items():
        options = bench.options_class()
        if issubclass(options, Measure) and options is not Every:
            actual = asked.of(options)
            assert (actual.limit, actual.model_names(), actual.out) == (3, ["a", "b"], tmp_path), name
    assert asked.of(TokenStatistics) == TokenStatistics(out=tmp_path, models="a, b,a", limit=3)
    assert dataclasses.replace(asked, only="x").only == "x"


def test_labels(tiny_codec_folder, tmp_path) -> None:
    def labels(text: str) -> dict[str, str]:
        return codecs.labels(Reconstruct(models=text, out=tmp_path))

    folder = str(tiny_codec_folder)
    assert labels("opus-6") == {"opus-6": "opus-6"}
    assert labels(folder) == {"mini": folder}
    assert labels(f"mini,{folder}") == {"mini": "mini", folder: folder}
    assert labels(f"opus-6,{folder}") == {"opus-6": "opus-6", "mini": folder}
