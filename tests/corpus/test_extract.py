"""Extraction: the right tokens in the right order, whatever the pools, batches, workers and ranks; what it tells."""

import json
import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import build_tiny_mini, refused, speechlike
from corpora import tree, write_jsonl

from vokens.cli import main
from vokens.corpus import decode, shard
from vokens.corpus.decode import automatic_workers, open_decoder
from vokens.corpus.engine.local import Worker, extract
from vokens.corpus.engine.torchrun import Layout
from vokens.corpus.health import Drift, Tally, divergence, entropy, fold, silent_seconds
from vokens.corpus.progress import _MEANING, prometheus
from vokens.corpus.run import Plan, Settings, open_run
from vokens.data import lease
from vokens.data.dataset import TokenDataset
from vokens.data.items import Utterance
from vokens.data.lease import Leases, Owner
from vokens.errors import ConfigError, VokensError
from vokens.models.codec import Codec

RATE = 16000
LENGTHS = [9000, 1, 4000, 12345, 640, 4000, 7777, 320, 2000, 15000, 6001]


@pytest.fixture(scope="module")
def codec() -> Codec:
    return build_tiny_mini()


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings of many lengths, two rates and one or two channels, and pieces of one of them."""
    folder = tmp_path_factory.mktemp("corpus")
    lines = []
    for i, length in enumerate(LENGTHS):
        rate = RATE if i % 3 else 8000
        wave = speechlike(length, seed=i, sample_rate=rate)
        soundfile.write(folder / f"{i}.wav", np.stack([wave, -0.5 * wave], 1) if i % 4 == 2 else wave, rate)
        lines.append({"id": f"u{i}", "path": f"{i}.wav", "text": f"text {i}"})
    wave = np.concatenate([speechlike(8000, 3, 8000), np.zeros(8000, np.float32)])
    soundfile.write(folder / "long.flac", wave, 8000)
    for start, duration in ((0.1, 0.25), (0.5, 1.2), (0.123, 0.1)):
        lines.append(
            {"audio_filepath": "long.flac", "offset": start, "duration": duration, "id": f"l{start}"}
        )
    return Path(write_jsonl(folder / "corpus.jsonl", lines))


def settings(manifest: Path, out: Path, **more: object) -> Settings:
    return replace(Settings(str(manifest), out, shard_size=6, batch_seconds=2.0, format="npy"), **more)


@pytest.fixture(scope="module")
def done(manifest: Path, codec: Codec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "out"
    extract(settings(manifest, out), codec, Worker(workers=0))
    return out


def test_tokens_are_those_of_each_utterance_alone(done, manifest, codec) -> None:
    rows = list(TokenDataset(done))
    with Leases(done / "leases") as leases:
        run = open_run(settings(manifest, done), codec, leases)
        utterances = [utterance for i in range(len(run)) for utterance in run.utterances(i)]
    assert [row.key for row in rows] == [utterance.key for utterance in utterances]
    for row, utterance in zip(rows, utterances, strict=True):
        wave, rate = soundfile.read(utterance.audio, dtype="float32", always_2d=True)
        first = round(utterance.start * rate)
        last = None if utterance.duration is None else first + round(utterance.duration * rate)
        alone = codec.encode(wave[first:last].mean(1), rate)
        assert np.array_equal(row.codes, alone.codes[0].numpy())
        assert row.num_samples == int(alone.num_samples[0])
        assert row.text == utterance.text


class TestSameBytes:
    """Nothing but the shard decides what comes out."""

    @pytest.mark.parametrize(
        ("pool_seconds", "change", "worker"),
        [
            (3600.0, {"batch_seconds": 0.3}, Worker(workers=2)),  # worker processes and smaller batches
            (0.7, {}, Worker(workers=0)),  # small pools
            (3600.0, {}, Worker(rank=1, world=2, workers=0)),  # ranks one after the other
        ],
    )
    def test_from_other_layouts(
        self, pool_seconds, change, worker, done, manifest, codec, tmp_path, monkeypatch
    ) -> None:
        monkeypatch.setattr(shard, "POOL_SECONDS", pool_seconds)
        extract(settings(manifest, tmp_path, **change), codec, worker)
        assert tree(tmp_path) == tree(done)

    def test_done_again(self, done, manifest, codec) -> None:
        before = tree(done)
        (done / "receipts/000001.json").unlink()
        extract(settings(manifest, done), codec, Worker(workers=0))
        assert tree(done) == before


class TestIdentity:
    """What a folder may be continued with."""

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"shard_size": 5}, "shard_size"),
            ({"format": "jsonl"}, "format"),
            ({"num_codebooks": 2}, "codebook_sizes"),
        ],
    )
    def test_other_settings_are_refused(self, change, named, done, manifest, codec) -> None:
        before = tree(done)
        with pytest.raises(ConfigError, match=f"was begun with {named}"):
            extract(settings(manifest, done, **change), codec, Worker(workers=0))
        assert tree(done) == before

    def test_other_weights_are_refused(self, done, manifest) -> None:
        other = build_tiny_mini()
        with torch.no_grad():
            next(other.parameters()).add_(1e-3)
        refused(ConfigError, "fingerprint", extract, settings(manifest, done), other, Worker(workers=0))

    def test_a_foreign_folder_is_refused(self, manifest, codec, tmp_path) -> None:
        (tmp_path / "thesis.tex").write_text("years of work")
        refused(ConfigError, r"holds thesis\.tex", lambda: extract(settings(manifest, tmp_path), codec))
        assert list(tree(tmp_path)) == ["thesis.tex"]

    @pytest.mark.parametrize("source", ["nowhere.jsonl", "empty.jsonl", "twice.jsonl"])
    def test_a_source_that_cannot_be_planned_leaves_nothing(self, source, codec, tmp_path) -> None:
        (tmp_path / "empty.jsonl").write_text("")
        (tmp_path / "twice.jsonl").write_text('{"id": "a", "path": "a.wav"}\n' * 2)
        with pytest.raises(VokensError):
            extract(settings(tmp_path / source, tmp_path / "out"), codec)
        assert not (tmp_path / "out").exists()

    def test_a_folder_may_move(self, codec, manifest, tmp_path) -> None:
        """The list of a folder's files is the run's own, and found where the run is."""
        extract(settings(manifest.parent, tmp_path / "a"), codec, Worker(workers=0))
        (tmp_path / "a").rename(tmp_path / "b")
        (tmp_path / "b/receipts/000000.json").unlink()
        extract(settings(manifest.parent, tmp_path / "b"), codec, Worker(workers=0))
        assert Plan(tmp_path / "b/plan.jsonl")[0].where.startswith(str(tmp_path))


class TestPool:
    """Decode workers."""

    def test_order_and_bounds(self, manifest, monkeypatch) -> None:
        """Results come in order, and no more is decoded ahead than was allowed (plus a job per worker)."""
        items = [Utterance(str(i), str(manifest.parent / "9.wav")) for i in range(20)]
        monkeypatch.setattr(decode, "AHEAD_SECONDS", 3.0)
        with closing(open_decoder(RATE, 2)) as pool:
            pool.expect(0, items[:15])
            pool.expect(1, items[15:])
            actual, most = [], 0.0
            for item in [*pool.take(0), *pool.take(1)]:
                most = max(most, pool.ready_seconds)
                actual.append(item.utterance.key)
        assert actual == [str(i) for i in range(20)]
        assert most <= 3.0 + 2 * 2.0

    def test_an_error_of_the_source_reaches_the_caller(self) -> None:
        def broken():
            yield Utterance("a", "nowhere.wav")
            raise ConfigError("the list has changed")

        with closing(open_decoder(RATE, 1)) as pool:
            pool.expect(0, broken())
            refused(ConfigError, "has changed", lambda: list(pool.take(0)))

    def test_automatic_count(self, monkeypatch) -> None:
        monkeypatch.setattr(decode.os, "sched_getaffinity", lambda _: set(range(64)))
        assert automatic_workers("cuda", 8) == 7
        assert automatic_workers("cuda", 100) == 1
        assert automatic_workers("cpu") == 8
        monkeypatch.setattr(decode.os, "sched_getaffinity", lambda _: {0})
        assert automatic_workers("cpu") == 0


class TestLeases:
    """Claims between processes; here every `Leases` stands for one."""

    def test_one_holder_at_a_time(self, tmp_path) -> None:
        folder = tmp_path / "leases"
        with Leases(folder) as one, Leases(folder) as two:
            assert one.claim("000001")
            assert not two.claim("000001")
            two.release("000001")  # not its own
            assert not two.claim("000001")
            one.release("000001")
            assert two.claim("000001")
        assert not folder.exists()

    def test_many_threads_one_winner(self, tmp_path) -> None:
        folder, wins = tmp_path / "leases", []
        everyone = [Leases(folder).__enter__() for _ in range(8)]
        threads = [threading.Thread(target=lambda o=one: wins.append(o.claim("x"))) for one in everyone]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(wins) == [False] * 7 + [True]
        for one in everyone:
            one.__exit__()
        assert not folder.exists()

    @pytest.mark.parametrize(
        ("change", "ended"),
        [
            ({}, False),
            ({"start": "1"}, True),  # the process id came again
            ({"boot": "0badb007"}, True),  # the machine was started anew
            ({"space": "1"}, False),  # another container of this machine: nobody knows
            ({"host": "another-machine", "pid": 1 << 22}, False),
        ],
    )
    def test_who_has_ended(self, change, ended) -> None:
        owner = replace(Owner.here(), **change)
        assert Owner.of(owner.name) == owner
        assert owner.ended() is ended

    def test_silence_of_another_machine_is_death(self, tmp_path, monkeypatch) -> None:
        folder = tmp_path / "leases"
        with Leases(folder) as other:
            elsewhere = folder / replace(Owner.here(), host="another-machine").name
            other._file.rename(elsewhere)
            other._file = elsewhere
            assert other.claim("000001")
            scratch = other.scratch("000001")
            (scratch.__enter__() / "half").write_text("a file")
            with Leases(folder) as one:
                assert not one.claim("000001")
                lease.os.utime(elsewhere, (1, 1))
                monkeypatch.setattr(lease, "_SWEEP", 0.0)
                assert one.claim("000001")
                assert not list(folder.glob("*/half"))
                assert other.claim("000002")  # it was only slow: it enrols again


class TestHealth:
    """Numbers on tokens."""

    def test_entropy_and_use(self) -> None:
        tally = Tally((8, 4))
        tally.add(np.array([[0, 1, 2, 3] * 5, [2] * 20]), seconds=0.4, silent_seconds=0.1)
        facts = tally.facts(50.0)
        assert facts["entropy"] == [2.0, 0.0]
        assert facts["used"] == [0.5, 0.25]
        assert facts["tokens_per_second"] == 100.0
        assert facts["length_ratio"] == 1.0
        assert facts["silence"] == 0.25

    def test_fold_keeps_counts(self) -> None:
        counts = np.arange(6561)
        assert fold(counts).sum() == counts.sum()
        assert len(fold(counts)) == 64
        assert fold(np.arange(4)).tolist() == [0, 1, 2, 3]

    def test_divergence(self) -> None:
        assert divergence(np.array([1, 1, 0, 0]), np.array([0, 0, 3, 3])) == pytest.approx(1.0)
        assert divergence(np.array([1, 2, 3]), np.array([2, 4, 6])) == pytest.approx(0.0)
        assert entropy(np.zeros(4)) == 0.0

    def test_silence(self) -> None:
        wave = np.concatenate([np.zeros(8000), 0.5 * np.ones(8000), 5e-4 * np.ones(1600)]).astype(np.float32)
        assert silent_seconds(wave, RATE) == pytest.approx(0.6)

    def test_drift_warns_of_other_tokens_only(self) -> None:
        draw = np.random.default_rng(0)
        usual = draw.dirichlet(np.ones(64))
        drift = Drift()
        actual = [drift.check([draw.multinomial(20000, usual)], 100) for _ in range(20)]
        assert not any(actual)
        assert (drift.check([draw.multinomial(20000, usual[::-1])], 100) or 0.0) > 0.1
        assert drift.check([draw.multinomial(200, usual[::-1])], 1) is None  # one utterance says nothing
        other = usual * np.exp(draw.normal(0, 0.6, len(usual)))  # speakers of clean speech differ as much
        counts = draw.multinomial(200000, other / other.sum())
        assert 0.03 < divergence(counts, np.round(200000 * usual)) < 0.08
        assert drift.check([counts], 1000) is None


class TestTorchrun:
    """Layouts from the environment."""

    def test_none_without_a_launcher(self) -> None:
        assert Layout.from_environment({}) is None

    def test_ranks(self) -> None:
        names = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
        layout = Layout.from_environment(names)
        assert layout == Layout(5, 8, 1, 4)
        assert layout.device("cpu") == "cpu"

    @pytest.mark.parametrize("names", [{"RANK": "x", "WORLD_SIZE": "2"}, {"RANK": "2", "WORLD_SIZE": "2"}])
    def test_nonsense(self, names) -> None:
        refused(ConfigError, "RANK", Layout.from_environment, names)


class TestCommand:
    """vokens extract."""

    def words(self, manifest: Path, model: Path, out: Path, *more: str) -> list[str]:
        return ["extract", str(manifest), "-m", str(model), "-o", str(out), "--workers", "0", *more]

    def test_run_with_metrics(self, manifest, tiny_codec_folder, tmp_path, capsys) -> None:
        more = ["--metrics", str(tmp_path / "m.json"), "--num-codebooks", "2", "--shard-size", "8"]
        assert main(self.words(manifest, tiny_codec_folder, tmp_path / "out", *more)) == 0
        assert "is complete: 14 utterances" in capsys.readouterr().err
        figures = json.loads((tmp_path / "m.json").read_text())
        assert figures.keys() == _MEANING.keys()
        assert (figures["shards_done"], figures["utterances_done"], figures["failures"]) == (2, 14, 0)
        assert figures["padding"] < shard.PADDING
        text = prometheus(figures)
        assert "\nvokens_extract_shards_total 2\n" in text
        receipt = json.loads((tmp_path / "out/receipts/000000.json").read_text())
        assert len(receipt["health"]["entropy"]) == 2

    def test_strict_and_retry(self, tiny_codec_folder, tmp_path, capsys) -> None:
        path = tmp_path / "list.jsonl"
        path.write_text('{"id": "a", "path": "a.wav"}\n{"id": "b", "path": "b.wav"}\n')
        soundfile.write(tmp_path / "b.wav", speechlike(3000), RATE)
        words = self.words(path, tiny_codec_folder, tmp_path / "out")
        assert main(words) == 0
        assert "1 failed" in capsys.readouterr().err
        assert main([*words, "--strict"]) == 1
        soundfile.write(tmp_path / "a.wav", speechlike(3000), RATE)
        assert main([*words, "--strict"]) == 1  # failures stay until they are asked for
        assert main([*words, "--strict", "--retry-failed"]) == 0
        assert not list((tmp_path / "out/failures").iterdir())

    @pytest.mark.parametrize(
        "more",
        [
            ["--shard-size", "0"], ["--batch-seconds", "0"], ["--workers", "-1"], ["--num-codebooks", "9"],
            ["--metrics", "m.txt"], ["--engine", "torchrun"], ["--audio-root", "x"],
        ],
    )  # fmt: skip
    def test_wrong_settings(self, more, manifest, tiny_codec_folder, tmp_path, capsys) -> None:
        assert main(self.words(manifest, tiny_codec_folder, tmp_path / "out", *more)) == 2
        assert capsys.readouterr().err.count("\n") == 1
        assert not (tmp_path / "out").exists()

    def test_nothing_came_out(self, tiny_codec_folder, tmp_path, capsys) -> None:
        """A run of failures alone is a failure, and its line says why."""
        path = tmp_path / "wav.scp"
        path.write_text("a gone/a.wav\nb gone/b.wav\n")
        assert main(self.words(path, tiny_codec_folder, tmp_path / "out")) == 1
        said = capsys.readouterr().err
        assert "all 2 utterances failed; the first, 'a': cannot open" in said
        assert "is complete" not in said
        (tmp_path / "gone").mkdir()
        for name in ("a", "b"):  # the remedy works
            soundfile.write(tmp_path / f"gone/{name}.wav", speechlike(3000), RATE)
        words = [*self.words(path, tiny_codec_folder, tmp_path / "out"), "--retry-failed"]
        assert main(words) == 0
        assert "is complete: 2 utterances" in capsys.readouterr().err

    @pytest.mark.parametrize("damage", ["gone", "cut", "receipt", "flipped"])
    def test_lost_shards_come_back(self, damage, tiny_codec_folder, manifest, tmp_path, capsys) -> None:
        """The same command makes what is gone or of another size; for all else inspect names what to remove."""
        out = tmp_path / "out"
        words = [*self.words(manifest, tiny_codec_folder, out), "--shard-size", "8"]
        assert main(words) == 0
        whole = tree(out)
        file, receipt = out / "shard-000001.jsonl", out / "receipts/000001.json"
        content = file.read_bytes()
        if damage == "gone":
            file.unlink()
        elif damage == "receipt":
            receipt.write_text("{")
        else:
            file.write_bytes(content[:-9] if damage == "cut" else content.replace(b"1", b"2", 1))
        assert main(["inspect", str(out), "-m", str(tiny_codec_folder), "--sample", "4"]) == 1
        said = capsys.readouterr().err
        assert f"remove {receipt} and run the same extraction again" in said
        if damage == "flipped":
            receipt.unlink()
        assert main(words) == 0
        assert tree(out) == whole

    def test_a_folder_is_one_however_it_is_spelt(
        self, tiny_codec_folder, tmp_path, monkeypatch, capsys
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "c").mkdir()
        soundfile.write(tmp_path / "c/a.wav", speechlike(3000), RATE)
        for source in ("c", "c/", "./c", str(tmp_path / "c")):
            words = self.words(tmp_path, tiny_codec_folder, tmp_path / "out")
            assert main(["extract", source, *words[2:]]) == 0  # Path would take the slash away
        (tmp_path / "out/plan.jsonl").write_text("")
        capsys.readouterr()
        assert main(self.words(tmp_path / "c", tiny_codec_folder, tmp_path / "out")) == 2
        assert "plan.jsonl is empty" in capsys.readouterr().err
        (tmp_path / "out/plan.jsonl").write_text('{"count": 1')
        assert main(self.words(tmp_path / "c", tiny_codec_folder, tmp_path / "out")) == 2
        assert "plan.jsonl, line 1, is damaged" in capsys.readouterr().err
