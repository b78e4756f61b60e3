"""How fast a corpus becomes tokens on this machine, where the time goes, and that memory does not grow with the corpus.

python benchmarks/extract.py --source corpus.jsonl --model mini --limit 200
python benchmarks/extract.py --memory 1000000
"""

import argparse
import json
import os
import random
import tempfile
import time
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import soundfile

import vokens
from vokens.corpus.decode import decode, open_decoder
from vokens.corpus.engine.local import Worker, extract
from vokens.corpus.run import Settings, open_run
from vokens.corpus.shard import ShardTiming, encode_shard
from vokens.data.items import Utterance
from vokens.data.lease import Leases
from vokens.models.codec import Codec


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", help="a jsonl manifest (default: pieces of the shipped samples)")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--limit", type=int, default=200, help="utterances")
    parser.add_argument("--shard-size", type=int, default=100)
    parser.add_argument("--batch-seconds", type=float, default=60.0)
    parser.add_argument("--workers", default="0,1,2", help="decode processes to try")
    parser.add_argument(
        "--memory", type=int, default=0, help="instead: plan so many files, encode shards far apart"
    )
    arguments = parser.parse_args()
    with suppress(PermissionError):  # it leads a session already
        os.setsid()
    codec = vokens.load(arguments.model, device=arguments.device)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.memory:
            memory(codec, Path(folder), arguments.memory)
        else:
            speed(codec, Path(folder), arguments)


def speed(codec: Codec, folder: Path, arguments: argparse.Namespace) -> None:
    """A line for each number of workers: audio hours per hour, and where the time went."""
    manifest = folder / "manifest.jsonl"
    if arguments.source is None:
        clips(manifest, arguments.limit)
    else:
        shorten(Path(arguments.source), manifest, arguments.limit)
    codec.encode(np.zeros(16000, np.float32), 16000)  # the first call is slower
    print(f"{arguments.model} on {codec.device}, {os.cpu_count()} cores, {arguments.limit} utterances")
    print("workers  x real time  waiting for audio  model  writing  CPU  padding")
    for workers in map(int, arguments.workers.split(",")):
        settings = Settings(
            str(manifest),
            folder / f"out{workers}",
            shard_size=arguments.shard_size,
            batch_seconds=arguments.batch_seconds,
        )
        figures = folder / f"figures{workers}.json"
        before, begun = cpu_seconds(), time.perf_counter()
        extract(settings, codec, Worker(workers=workers, metrics=figures))
        elapsed = time.perf_counter() - begun
        used = cpu_seconds() - before
        state = json.loads(figures.read_text())
        share = [state[name] / elapsed for name in ("decode_wait_seconds", "model_seconds", "write_seconds")]
        print(
            f"{workers:7d}  {state['hours'] * 3600 / elapsed:11.1f}  {share[0]:17.1%}  {share[1]:5.1%}  "
            f"{share[2]:7.1%}  {used / elapsed:3.1f}  {state['padding']:7.2%}"
        )
    items = [json.loads(line) for line in manifest.read_text().splitlines()][:100]
    begun, seconds = time.process_time(), 0.0
    for item in items:
        wave = decode(Utterance(item["id"], item["path"]), codec.sample_rate).wave
        seconds += 0.0 if wave is None else len(wave) / codec.sample_rate
    taken = time.process_time() - begun
    print(
        f"decoding alone, one core: {seconds / taken:.0f} x real time, {taken / len(items) * 1e3:.2f} ms per file"
    )
    pipes(codec.sample_rate, items)


def pipes(sample_rate: int, items: list[dict[str, str]]) -> None:
    """What it costs to bring waves from a worker to the parent."""
    utterances = [Utterance(item["id"], item["path"]) for item in items] * 5
    with closing(open_decoder(sample_rate, 1)) as decoder:
        decoder.expect(0, utterances[:1])
        list(decoder.take(0))  # the worker has started
        before, begun = time.process_time(), time.perf_counter()
        decoder.expect(1, utterances)
        seconds = sum(len(item.wave) for item in decoder.take(1) if item.wave is not None) / sample_rate
        used, elapsed = time.process_time() - before, time.perf_counter() - begun
    print(
        f"one worker: {seconds / elapsed:.0f} x real time; the parent spends {used / len(utterances) * 1e3:.2f} ms "
        f"of CPU per file, {seconds / used:.0f} x real time"
    )


def memory(codec: Codec, folder: Path, files: int) -> None:
    """Plan a manifest of so many files (32 real ones under many names), and encode shards from all over it."""
    clips(folder / "few.jsonl", 32)
    paths = [json.loads(line)["path"] for line in (folder / "few.jsonl").read_text().splitlines()]
    manifest = folder / "many.jsonl"
    with open(manifest, "w") as out:
        for i in range(files):
            out.write(f'{{"id": "utt{i:09d}", "path": {json.dumps(paths[i % len(paths)])}}}\n')
    settings = Settings(str(manifest), folder / "out", shard_size=200)
    print(f"resident before planning: {resident():.0f} MB")
    begun = time.perf_counter()
    with Leases(settings.out / "leases") as leases, closing(open_decoder(codec.sample_rate, 1)) as decoder:
        run = open_run(settings, codec, leases)
        print(
            f"planned {files} files in {time.perf_counter() - begun:.1f} s; {len(run)} shards, {resident():.0f} MB"
        )
        timing = ShardTiming()
        for place in range(10):
            shard = place * (len(run) - 1) // 9
            decoder.expect(shard, run.utterances(shard))
            encode_shard(run, shard, codec, decoder, timing)
            print(f"after shard {shard}: {resident():.0f} MB")


def clips(manifest: Path, count: int) -> None:
    """Pieces of 1 to 10 s of the shipped samples as flac files, and their manifest."""
    samples = Path(vokens.__file__).parent / "samples"
    waves = [soundfile.read(samples / f"{name}.flac", dtype="float32") for name in ("english", "mandarin")]
    draw = random.Random(0)
    with open(manifest, "w") as out:
        for i in range(count):
            wave, rate = waves[i % 2]
            length = min(len(wave), draw.randint(rate, 10 * rate))
            start = draw.randint(0, len(wave) - length)
            path = manifest.with_name(f"clip{i:06d}.flac")
            soundfile.write(path, wave[start : start + length], rate)
            out.write(json.dumps({"id": f"clip{i:06d}", "path": str(path)}) + "\n")


def shorten(source: Path, manifest: Path, count: int) -> None:
    """The first lines of a manifest, with absolute paths."""
    with open(source) as lines, open(manifest, "w") as out:
        for line, _ in zip(lines, range(count), strict=False):
            item = json.loads(line)
            item["path"] = str((source.parent / item["path"]).resolve())
            out.write(json.dumps(item) + "\n")


def cpu_seconds() -> float:
    """Of this session's processes, decode workers included (those that have ended count with their server)."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[3]) == os.getsid(0):
                ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def resident() -> float:
    """MB of memory that this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    main()
