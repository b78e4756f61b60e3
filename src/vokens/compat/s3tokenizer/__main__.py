"""`s3tokenizer`, also `python -m vokens.compat.s3tokenizer`: recordings to ids, by the flags of s3tokenizer 0.3.0.

`--root_path`, `--file_list`, `--skip_existing` and those of the cache are of Learnable-Speech's copy, which writes ids
next to the files.

Under torchrun, each process takes every world-th recording and writes its own results, without synchronisation.
Recordings are prefetched by threads.
"""

import argparse
import json
import os
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.rendezvous import rendezvous
from tqdm import tqdm

from vokens.atomic import atomic_write
from vokens.audio_files import find_files
from vokens.cli import exit_code
from vokens.cli.conversion import Loaded, convert_each
from vokens.cli.jobs import refuse_collisions
from vokens.compat import s3tokenizer
from vokens.corpus.engine.torchrun import Layout
from vokens.data.sources.lines import ScpSource
from vokens.data.sources.options import SourceOptions
from vokens.errors import ConfigError
from vokens.models.codec import Codec
from vokens.models.s3tokenizer.long import WINDOW
from vokens.text.files import read_json, read_list
from vokens.tokens import Tokens

WINDOW_SAMPLES = WINDOW * 160  # 30 s
SAMPLE_RATE = 16000


@dataclass(frozen=True)
class Item:
    """A recording: the name of its ids, and its file."""

    key: str
    path: Path


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 some recordings failed (under torchrun: all), 2 nothing done."""
    arguments = _parser().parse_args(argv)

    def work() -> int:
        process = Layout.from_environment() or Layout(0, 1, 0, 1)
        done, failed = run(arguments, process)
        return int(failed > 0 if process.world == 1 else _nothing_done(process, done))

    return exit_code("s3tokenizer", work)


def _nothing_done(process: Layout, done: int) -> bool:
    """True in the last process to end if none has encoded a recording, else False.

    torchrun ends all processes when one does not return 0, which one bad recording must not cause.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":  # independent processes
        return False
    store, _, _ = next(iter(rendezvous("env://")))
    store.add("vokens/done", done)
    last = store.add("vokens/ended", 1) == process.world
    return last and store.add("vokens/done", 0) == 0


def script() -> int:
    """Entry point `s3tokenizer`: that of the published package if installed, else `main`."""
    for entry in metadata.entry_points(group="console_scripts", name="s3tokenizer"):
        if entry.dist is not None and entry.dist.name != "vokens":
            return entry.load()()
    return main()


def run(arguments: argparse.Namespace, process: Layout) -> tuple[int, int]:
    """Encode this process's share; returns the numbers of finished (also by earlier runs) and failed recordings."""
    items = find(arguments)[process.rank :: process.world]
    out = Path(arguments.output_dir or "")
    sink = Part(out, process, arguments.skip_existing) if arguments.wav_scp else Beside()
    todo = [item for item in items if not sink.has(item)] if arguments.skip_existing else items
    device = f"cuda:{process.local_rank}" if arguments.device == "cuda" else arguments.device
    codec = s3tokenizer.load_model(arguments.model, device=device).codec
    if codec.device.type != "cpu":
        codec.frames_per_forward = arguments.batch_size * WINDOW
    failed = _encode(codec, todo, sink, arguments, progress=process.rank == 0)
    return len(items) - failed, failed


def find(arguments: argparse.Namespace) -> list[Item]:
    """All recordings of the flags. Raises ConfigError for none, or for two kinds of lists."""
    if arguments.batch_size < 1:
        raise ConfigError(f"--batch_size {arguments.batch_size} was given: give at least 1")
    folder_mode = bool(arguments.root_path or arguments.file_list)
    if folder_mode == bool(arguments.wav_scp):
        raise ConfigError("give either --wav_scp, or --root_path or --file_list")
    if arguments.wav_scp and not arguments.output_dir:
        raise ConfigError("--wav_scp needs --output_dir")
    if arguments.wav_scp:
        items = read_scp(Path(arguments.wav_scp))
    elif arguments.file_list:
        items = [Item(path, Path(path)) for path in read_list(arguments.file_list)]
    else:
        items = _below_root(arguments)
    if not items:
        source = arguments.wav_scp or arguments.file_list or arguments.root_path
        raise ConfigError(f"{source} names no recording")
    if folder_mode:
        targets = ((item.path, Beside.target(item)) for item in items)
        refuse_collisions(targets, "keep one of them, or choose with --extensions")
    return items


def read_scp(path: Path) -> list[Item]:
    """Kaldi's list: a key, blanks, and a path, which may contain blanks; one recording per line."""
    lines, source = read_list(path, comment=None), ScpSource({}, SourceOptions())
    try:
        keys = [str(source.key(line.encode())) for line in lines]
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return [Item(key, Path(line.split(maxsplit=1)[1])) for key, line in zip(keys, lines, strict=True)]


def _below_root(arguments: argparse.Namespace) -> list[Item]:
    """Recordings below --root_path, cached in --cache_file."""
    root = Path(arguments.root_path)
    search = {"root": str(root.resolve()), "extensions": sorted(arguments.extensions)}
    cache = Path(arguments.cache_file) if arguments.cache_file else None
    if cache is not None and cache.exists() and not arguments.no_cache:
        try:
            kept = read_json(cache)
            if kept["search"] == search:
                return [Item(path, Path(path)) for path in kept["files"]]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"--cache_file {cache} is no list of files: --no_cache replaces it") from error
    if not root.is_dir():
        raise ConfigError(f"--root_path {root} is not a folder")
    endings = {extension.lower() for extension in arguments.extensions}
    items = [Item(str(path), path) for path in find_files(root, endings)]
    if cache is not None:
        with atomic_write(cache) as partial:
            partial.write_text(json.dumps({"search": search, "files": [item.key for item in items]}))
    return items


class Part:
    """`part_<i>_of_<n>`: a JSON line with key and code per recording; `has` covers all parts."""

    def __init__(self, folder: Path, process: Layout, keep: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"part_{process.rank + 1}_of_{process.world}"
        self._done = {key for part in folder.glob("part_*_of_*") for key in _keys(part)} if keep else set()
        self.path.open("a" if keep else "w").close()
        os.truncate(self.path, self.path.read_bytes().rfind(b"\n") + 1)  # half a line of a killed run

    def has(self, item: Item) -> bool:
        return item.key in self._done

    def write(self, item: Item, codes: Tensor) -> None:
        line = json.dumps({"key": item.key, "code": codes.tolist()}, ensure_ascii=False)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


class Beside:
    """`<name>_fsq.pt` next to each recording: its ids (T,) int64."""

    def has(self, item: Item) -> bool:
        return self.target(item).exists()

    def write(self, item: Item, codes: Tensor) -> None:
        with atomic_write(self.target(item)) as partial:
            torch.save(codes.clone(), partial)  # of a view, torch.save would write the whole batch

    @staticmethod
    def target(item: Item) -> Path:
        return item.path.with_name(f"{item.path.stem}_fsq.pt")


def _keys(part: Path) -> Iterator[str]:
    with part.open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)["key"]


def _encode(
    codec: Codec, items: Sequence[Item], sink: Part | Beside, arguments: argparse.Namespace, progress: bool
) -> int:
    """Read, encode in groups, write; returns the number of failed recordings."""
    together, start = arguments.batch_size * max(1, arguments.prefetch), time.perf_counter()
    bar = tqdm(total=len(items), desc="Processing", unit="wavs", disable=not progress)

    def read(item: Item) -> Loaded[Tensor]:
        wave = next(waves).result()
        return Loaded(wave, max(1.0, len(wave) / WINDOW_SAMPLES))

    def write(item: Item, tokens: Tokens) -> float:
        sink.write(item, tokens.codes[0, 0])
        return float(tokens.duration)

    def fail(item: Item, error: Exception) -> None:
        bar.write(f"s3tokenizer: {item.key} failed: {error}", file=sys.stderr)

    with ThreadPoolExecutor(max(1, arguments.num_workers)) as pool, bar:
        waves = _ahead(pool, items, together)
        done, seconds = convert_each(
            items, read, lambda group: list(codec.encode(group, SAMPLE_RATE)), write, together, fail, bar
        )
    taken = time.perf_counter() - start
    print(
        f"s3tokenizer: {done} of {len(items)} done, {seconds:.1f} s of speech in {taken:.1f} s",
        file=sys.stderr,
    )
    return len(items) - done


def _ahead(pool: ThreadPoolExecutor, items: Iterable[Item], count: int) -> Iterator[Future[Tensor]]:
    """The audio of the items, in order, with `count` items prefetched."""
    waiting: deque[Future[Tensor]] = deque()
    for item in items:
        waiting.append(pool.submit(s3tokenizer.load_audio, str(item.path)))
        if len(waiting) > count:
            yield waiting.popleft()
    yield from waiting


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="s3tokenizer", description=__doc__)
    add = parser.add_argument
    add("--model", required=True, help="a release, or a file of its weights")
    add("--device", required=True, help="cpu, or cuda: of torchrun's processes each takes its own")
    add("--batch_size", type=int, required=True, help="windows of 30 s per forward pass (GPU), bounds memory")
    add("--wav_scp", help="list of recordings, 'key path' per line")
    add("--output_dir", help="folder for part_<i>_of_<n>, one line of JSON per recording of --wav_scp")
    add("--root_path", help="folder with recordings; ids are written next to them as <name>_fsq.pt")
    add("--file_list", help="paths, one per line, instead of --root_path; # begins a comment")
    suffixes = [".wav", ".flac", ".mp3"]
    add("--extensions", nargs="+", default=suffixes, help="suffixes of recordings in --root_path")
    add("--cache_file", help="caches the list of --root_path for the next run")
    add("--no_cache", action="store_true", help="search again, and replace --cache_file")
    add("--use_cache", action="store_true", help="no effect: a --cache_file is always used")
    add("--scan_workers", type=int, default=8, help="no effect: one thread is as fast")
    add("--skip_existing", action="store_true", help="resume: skip finished recordings")
    add("--num_workers", type=int, default=4, help="threads that read recordings")
    add("--prefetch", type=int, default=5, help="batches that are prefetched and grouped by length")
    return parser


if __name__ == "__main__":
    sys.exit(main())
