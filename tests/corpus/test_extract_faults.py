"""Extraction under fire: killed, starved of disk or rights, fed with files that vanish. Afterwards the folder is
byte for byte that of a run which nothing disturbed.

Each run is a process of its own, forked from a clean server that has imported torch once.
"""

import hashlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
from corpora import tree, write_clips

from vokens.corpus.decode import decode, open_decoder
from vokens.data.items import Utterance

CLIPS, SHARD, BAD = 30, 5, 7
FULL = 1000  # bytes per file: enough for the plan, too few for the first shard
STEPS = ("open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree")
SERVER = multiprocessing.get_context("forkserver")
NEEDED = ("vokens.cli.extract", "vokens.corpus.engine.local", "vokens.models.mini")
SERVER.set_forkserver_preload(list(NEEDED))


@dataclass(frozen=True)
class Corpus:
    """A manifest of short pieces of real speech, one of them damaged; and a small random codec."""

    manifest: Path
    codec: Path

    def words(self, out: Path, *more: str) -> list[str]:
        words = f"extract {self.manifest} --model {self.codec} --out {out} --shard-size {SHARD}"
        return [*words.split(), "--workers", "0", "--batch-seconds", "1", *more]


@pytest.fixture(scope="module")
def corpus(tiny_codec_folder: Path) -> Iterator[Corpus]:
    folder = Path(tempfile.mkdtemp(prefix="vokens-corpus-"))
    folder.chmod(0o755)  # also for the run that has another user id
    shutil.copytree(tiny_codec_folder, folder / "codec")
    (folder / "codec").chmod(0o755)
    write_clips(folder, CLIPS, BAD)
    yield Corpus(folder / "corpus.jsonl", folder / "codec")
    shutil.rmtree(folder)


@dataclass(frozen=True)
class Trouble:
    """What befalls a run.

    die_at: it kills itself at this step in the run's folder (opening, renaming, linking or removing something).
    file_bytes: no file may grow beyond. user: it runs under this user id.
    """

    die_at: int | None = None
    file_bytes: int | None = None
    user: int | None = None


def serve(words: list[str], log: Path, trouble: Trouble) -> None:
    """What the process of a run does."""
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 2)

    import torch

    from vokens.cli import main

    torch.set_num_threads(1)
    if trouble.file_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (trouble.file_bytes, trouble.file_bytes))
    if trouble.user is not None:
        for name in NEEDED:  # another test may have started the server; nobody may read Python's own folder
            import_module(name)
        os.setuid(trouble.user)
    if trouble.die_at is not None:
        out, steps = words[words.index("--out") + 1], 0

        def step(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal steps
            if event in STEPS and str(arguments[0]).startswith(out):
                steps += 1
                if steps == trouble.die_at:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(step)
    sys.exit(main(words))


def start(words: list[str], log: Path, trouble: Trouble | None = None) -> BaseProcess:
    process = SERVER.Process(target=serve, args=(words, log, trouble or Trouble()))
    process.start()
    return process


def finish(process: BaseProcess) -> int:
    process.join(120)
    assert process.exitcode is not None, "the run hangs"
    return process.exitcode


def check_receipts(out: Path) -> int:
    """Every receipt tells the truth, at any moment; how many there are."""
    receipts = list((out / "receipts").glob("[0-9]*.json"))
    for receipt in receipts:
        for file in json.loads(receipt.read_text())["files"]:
            content = (out / file["path"]).read_bytes()
            assert len(content) == file["bytes"]
            assert hashlib.sha256(content).hexdigest() == file["sha256"]
    return len(receipts)


def nothing_half_written(out: Path) -> bool:
    return not any(path.name.startswith(".") for path in out.rglob("*")) and not (out / "leases").exists()


@pytest.fixture(scope="module")
def undisturbed(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    assert finish(start(corpus.words(out), out.with_suffix(".log"))) == 0
    files = sorted(out.glob("shard-*"))
    keys = [json.loads(line)["key"] for file in files for line in file.read_text().splitlines()]
    assert keys == [f"clip{i:02d}" for i in range(CLIPS) if i != BAD]
    assert nothing_half_written(out)
    return tree(out)


SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 12))]


class TestKilled:
    """SIGKILL, which no program can answer."""

    @pytest.mark.parametrize("seed", SEEDS)
    def test_at_any_step(self, seed, corpus, undisturbed, tmp_path) -> None:
        draw, out, log = random.Random(seed), tmp_path / "out", tmp_path / "log"
        deaths = 0
        while finish(start(corpus.words(out), log, Trouble(die_at=draw.randint(1, 90)))) == -signal.SIGKILL:
            deaths += 1
            check_receipts(out)
        assert deaths > 1
        assert tree(out) == undisturbed

    @pytest.mark.slow
    def test_at_every_step(self, corpus, undisturbed, tmp_path) -> None:
        log, code, step = tmp_path / "log", -signal.SIGKILL, 0
        while code == -signal.SIGKILL:
            step, out = step + 1, tmp_path / f"out{step}"
            code = finish(start(corpus.words(out), log, Trouble(die_at=step)))
            assert finish(start(corpus.words(out), log)) == 0
            assert tree(out) == undisturbed
        assert step > 50

    @pytest.mark.parametrize("seed", SEEDS)
    def test_at_any_time_beside_another(self, seed, corpus, undisturbed, tmp_path) -> None:
        draw, out, log = random.Random(seed), tmp_path / "out", tmp_path / "log"
        for _ in range(3):
            runs = [start(corpus.words(out), log) for _ in range(2)]
            time.sleep(draw.uniform(0.1, 1.0))
            for run in runs:
                run.kill()
                run.join()
            check_receipts(out)
        runs = [start(corpus.words(out), log) for _ in range(2)]
        assert [finish(run) for run in runs] == [0, 0]
        assert tree(out) == undisturbed

    def test_decode_workers(self, corpus, monkeypatch) -> None:
        lines = [json.loads(line) for line in corpus.manifest.read_text().splitlines()]
        items = [Utterance(line["id"], str(corpus.manifest.parent / line["path"])) for line in lines] * 4
        draw, actual = random.Random(0), []
        monkeypatch.setattr("vokens.corpus.decode.AHEAD_SECONDS", 1.0)
        with closing(open_decoder(16000, 2)) as pool:
            pool.expect(0, items)
            for item in pool.take(0):
                actual.append(item)
                if len(actual) % 8 == 1:
                    at_work = [worker.process.pid for worker in pool._workers if worker.utterance]
                    if at_work:
                        with suppress(ProcessLookupError):  # it is being replaced
                            os.kill(draw.choice(at_work), signal.SIGKILL)
        for item, utterance in zip(actual, items, strict=True):
            alone = decode(utterance, 16000)
            assert (item.utterance, item.reason) == (utterance, alone.reason)
            assert np.array_equal(item.wave, alone.wave) if alone.wave is not None else item.wave is None

    def test_audio_that_kills_its_decoder_is_quarantined(self, corpus, tmp_path) -> None:
        """Opening a fifo waits for ever: whichever worker is at it is killed."""
        os.mkfifo(tmp_path / "deadly.wav")
        good = str(corpus.manifest.parent / "clip00.wav")
        over = threading.Event()
        with closing(open_decoder(16000, 1)) as pool:

            def kill() -> None:
                while not over.wait(0.01):
                    worker = pool._workers[0]
                    if worker.utterance is not None and worker.utterance.key == "deadly":
                        worker.process.kill()

            deadly = Utterance("deadly", str(tmp_path / "deadly.wav"))
            pool.expect(0, [Utterance("a", good), deadly, Utterance("b", good)])
            threading.Thread(target=kill).start()
            first, deadly, last = pool.take(0)
            over.set()
        assert deadly.reason == "the decoder died on it"
        assert first.wave is not None
        assert last.wave is not None

    @pytest.mark.slow
    def test_workers_end_with_their_parent(self, tmp_path) -> None:
        """Even one that waits for a file for ever."""
        os.mkfifo(tmp_path / "endless.wav")
        ours, theirs = SERVER.Pipe()
        run = SERVER.Process(target=hold_pool, args=(tmp_path / "endless.wav", theirs))
        run.start()
        worker = ours.recv()
        run.kill()
        run.join()
        until = time.monotonic() + 60
        while Path(f"/proc/{worker}/stat").exists() and time.monotonic() < until:
            time.sleep(0.01)
        assert not Path(f"/proc/{worker}/stat").exists()


def hold_pool(endless: Path, tell: Connection) -> None:
    """A process whose decode worker waits."""
    with closing(open_decoder(16000, 1)) as pool:
        pool.expect(0, [Utterance("endless", str(endless))])
        while pool._workers[0].utterance is None:
            time.sleep(0.01)
        tell.send(pool._workers[0].process.pid)
        time.sleep(600)


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
def test_stopped_politely(which, corpus, undisturbed, tmp_path) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    run = start(corpus.words(out), log)
    while not list((out / "receipts").glob("[0-9]*")) and run.is_alive():
        time.sleep(0.005)
    os.kill(run.pid or 0, which)
    code = finish(run)
    if code:  # else it had ended before
        assert code == 130
        assert "the same command resumes" in log.read_text()
        assert nothing_half_written(out)
        assert finish(start(corpus.words(out), log)) == 0
    assert tree(out) == undisturbed


def test_disk_full(corpus, undisturbed, tmp_path) -> None:
    """Files may have few bytes: the plan fits, the first shard does not."""
    out, log = tmp_path / "out", tmp_path / "log"
    assert finish(start(corpus.words(out), log, Trouble(file_bytes=FULL))) == 2
    assert "cannot write shard 0" in log.read_text()
    assert log.read_text().count("\n") == 1
    assert nothing_half_written(out)
    assert sorted(tree(out)) == ["plan.jsonl", "run.json"]
    assert finish(start(corpus.words(out), log)) == 0
    assert tree(out) == undisturbed


@pytest.mark.parametrize("begun", [False, True])
def test_unwritable_folder(begun, corpus, undisturbed) -> None:
    """Nobody may write into the run's folder, or into its receipts in the middle of a run."""
    base = Path(tempfile.mkdtemp(prefix="vokens-unwritable-"))
    try:
        out, log = base / "out", base / "log"
        other = Trouble(user=65534) if os.getuid() == 0 else Trouble()
        base.chmod(0o777)
        out.mkdir()
        out.chmod(0o777)
        if begun:
            assert finish(start(corpus.words(out), log, other)) == 0
            for name in ("receipts/000003.json", "summary.json"):
                (out / name).unlink()
        closed = out / "receipts" if begun else out
        closed.chmod(0o555)
        if not begun:
            base.chmod(0o755)
        assert finish(start(corpus.words(out), log, other)) == 2
        assert "cannot write shard 3" in log.read_text() if begun else "ermission" in log.read_text()
        assert nothing_half_written(out)
        closed.chmod(0o777)
        assert finish(start(corpus.words(out), log, other)) == 0
        assert tree(out) == undisturbed
    finally:
        shutil.rmtree(base)


@pytest.mark.parametrize("harm", ["vanished", "truncated"])
def test_files_that_change_under_the_run(harm, corpus, undisturbed, tmp_path) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    clip = corpus.manifest.parent / "clip12.wav"
    content = clip.read_bytes()
    assert finish(start(corpus.words(out), log, Trouble(file_bytes=FULL))) == 2  # planned, and nothing done
    try:
        clip.write_bytes(content[:-500]) if harm == "truncated" else clip.unlink()
        assert finish(start(corpus.words(out, "--strict"), log)) == 1
        failure = json.loads((out / "failures/000002.jsonl").read_text())
        assert failure["key"] == "clip12"
        assert failure["audio"] == str(clip)
        assert "clip12" in failure["reason"]
        assert "2 failed" in log.read_text()
    finally:
        clip.write_bytes(content)
    assert finish(start(corpus.words(out), log)) == 0  # nothing to do
    assert (out / "failures/000002.jsonl").exists()
    assert finish(start(corpus.words(out, "--retry-failed"), log)) == 0
    assert tree(out) == undisturbed
