"""vokens inspect: a whole folder passes; each kind of damage is found and named."""

import json
import shutil
from itertools import islice
from pathlib import Path

import pytest
import soundfile
from corpora import write_clips

import vokens
from vokens.cli import main
from vokens.corpus.engine.local import Worker, extract
from vokens.corpus.inspect import Findings, Inspection
from vokens.corpus.picture import statistics_figure
from vokens.corpus.run import Settings

CLIPS, SHARD, BAD = 12, 5, 7


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_codec_folder: Path) -> Path:
    """A folder with audio, a codec, and three finished runs below out/."""
    folder = tmp_path_factory.mktemp("inspect")
    shutil.copytree(tiny_codec_folder, folder / "codec")
    manifest = write_clips(folder, CLIPS, BAD)
    codec = vokens.load(folder / "codec")
    for form in ("jsonl", "megatron", "shar"):
        settings = Settings(str(manifest), folder / "out" / form, format=form, shard_size=SHARD)
        extract(settings, codec, Worker(workers=0))
    return folder


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    """A copy whose files a test may damage; its source stays where it was."""
    return shutil.copytree(made / "out/jsonl", tmp_path / "out")


def inspect(folder: Path, codec: Path | None = None) -> Findings:
    inspection, findings = Inspection(folder), Findings()
    assert list(inspection.check(findings)) == list(range(len(inspection.plan)))
    if codec is not None:
        inspection.compare(vokens.load(codec), findings, 6)
    return findings


@pytest.mark.parametrize("form", ["jsonl", "megatron", "shar"])
def test_a_whole_folder_passes(made, form):
    findings = inspect(made / "out" / form, made / "codec")
    assert findings.faults == []
    assert (findings.shards, findings.done) == (3, 3)
    assert (findings.utterances, findings.failures) == (CLIPS - 1, 1)
    assert findings.compared == findings.equal > 0
    assert len(findings.durations) == CLIPS - 1


def test_damage_is_found(copied):
    first, second, *_ = sorted(copied.glob("shard-*.jsonl"))
    first.unlink()
    second.write_bytes(second.read_bytes().replace(b"0", b"1", 1))
    (copied / "receipts/000002.json").unlink()
    faults = inspect(copied).faults
    assert any("shard 0" in fault and "is missing" in fault for fault in faults)
    assert any("shard 1" in fault and "changed after" in fault for fault in faults)
    assert any("shard 2 has no receipt" in fault for fault in faults)


def test_a_wrong_summary_is_found(copied):
    summary = json.loads((copied / "summary.json").read_text())
    (copied / "summary.json").write_text(json.dumps({**summary, "utterances": 99}))
    assert any("summary.json says 99" in fault for fault in inspect(copied).faults)


def test_other_audio_encodes_to_other_codes(made, copied, tmp_path):
    other = shutil.copytree(made, tmp_path / "moved")
    for path in set(other.glob("clip*.wav")) - {other / f"clip{BAD:02d}.wav"}:
        wave, rate = soundfile.read(path)
        soundfile.write(path, wave[::-1], rate)
    run = json.loads((copied / "run.json").read_text())
    (copied / "run.json").write_text(json.dumps({**run, "source": str(other / "corpus.jsonl")}))
    plan = (copied / "plan.jsonl").read_text().replace(str(made), str(other))
    (copied / "plan.jsonl").write_text(plan)
    findings = inspect(copied, made / "codec")
    assert findings.equal < findings.compared
    assert any("other codes" in fault for fault in findings.faults)


@pytest.mark.parametrize("shards", [1, 3])
def test_the_picture(made, shards):
    """Legends keep off titles, and one shard, which differs from no other, shows what it uses of its codebooks."""
    Text = pytest.importorskip("matplotlib.text").Text
    inspection, findings = Inspection(made / "out/jsonl"), Findings()
    for shard in islice(inspection.check(findings), shards):
        assert shard < shards
    figure = statistics_figure(findings, inspection.facts, "run")
    figure.draw_without_rendering()
    *_, last = figure.axes
    assert last.get_title("left") + last.get_title() == (
        "Entries that occur, by codebook" if shards == 1 else "Shards against all others"
    )
    for axes in figure.axes:
        if legend := axes.get_legend():
            place = legend.get_window_extent()
            others = [text for text in axes.findobj(Text) if text.get_text() and text not in legend.texts]
            assert not [text for text in others if place.overlaps(text.get_window_extent())]


def test_the_suffix_of_a_picture_is_checked_first(tmp_path, capsys):
    assert main(["inspect", str(tmp_path), "--picture", "run.xyz"]) == 2
    assert "a picture 'run.xyz': end its name in .png, .svg, .pdf" in capsys.readouterr().err


def test_the_verb(made, copied, tmp_path, capsys):
    words = ["inspect", str(made / "out/jsonl"), "--model", str(made / "codec"), "--sample", "3"]
    assert main([*words, "--picture", str(tmp_path / "run.png")]) == 0
    assert "3 of 3 equal" in capsys.readouterr().out
    assert (tmp_path / "run.png").stat().st_size > 10_000
    assert main(["inspect", str(copied), "--sample", "3"]) == 1  # the folder does not say where its codec is
    assert "fingerprint" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path)]) == 2
    assert "no output of vokens extract" in capsys.readouterr().err
