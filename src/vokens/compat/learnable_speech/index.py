"""`generate_json_index` and `create_data_list`: the list of utterances with all their files for training, by the
published flags.

Beyond the published script: latents have the names of the extraction, and utterances are named by their path, so
that equal file names in two folders are two utterances.
"""

import argparse
import json
import os
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from vokens.atomic import atomic_write
from vokens.errors import ConfigError
from vokens.train.published_files import Item, beside, complete, recordings

SPLITS = ("train", "val", "test")
KINDS = ("wav", "txt", "token", "latent")  # of files
SEED = 42  # of the published shuffle
GB, MB = 1024**3, 1024**2


def main(argv: Sequence[str]) -> int:
    """Write the index, with --split also one of each share."""
    add, parse = _flags("generate_json_index", "the index of all utterances that have their files")
    add("--input", nargs="+", required=True, help="folders, or text files with a recording in each line")
    add("--output", default="dataset_index.json", help="the index (dataset_index.json)")
    arguments = parse(argv)
    write_index(arguments.input, Path(arguments.output), arguments.split)
    return 0


def data_list(argv: Sequence[str]) -> int:
    """Write a folder's index and its `data.list`, the input of `train`; with --split the latter names the training
    part, and `train.list`, `val.list` and `test.list` one part each."""
    add, parse = _flags("create_data_list", data_list.__doc__)
    add("--src_dir", required=True, help="folder with recordings and their extracted files")
    add("--output_dir", required=True, help="folder for train_index.json and data.list")
    arguments = parse(argv)
    folder = Path(arguments.output_dir).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    indexes = write_index([arguments.src_dir], folder / "train_index.json", arguments.split)
    lists = {f"{name}.list": index for name, index in indexes.items() if name}
    for name, index in {"data.list": indexes.get("train", indexes[""]), **lists}.items():
        with atomic_write(folder / name) as partial:
            partial.write_text(f"{index}\n", encoding="utf-8")
        print(f"{folder / name}: {index.name}")
    return 0


def write_index(
    inputs: Iterable[str], output: Path, shares: Sequence[float] | None = None
) -> dict[str, Path]:
    """Write the index of all inputs, and one of each split where shares are given.

    Args:
        inputs: folders, or text files that list recordings.
        output: the index, *.json; splits are written next to it as *_train.json, *_val.json and *_test.json.
        shares: of train, val and test, 1 together.

    Returns:
        The files by split; "" is the whole.

    Raises ConfigError where no recording has all its files.
    """
    if output.suffix != ".json":
        raise ConfigError(f"--output {output} was given: give a name that ends in .json")
    if shares and (abs(sum(shares) - 1) > 1e-3 or min(shares) < 0):
        raise ConfigError(f"--split {' '.join(map(str, shares))} was given: three shares of 1 are accepted")
    rows, written = [_row(item) for item in find(inputs)], {}
    for name, part in ({"": rows} | (split(rows, shares) if shares else {})).items():
        path = written[name] = output.with_name(f"{output.stem}_{name}.json") if name else output
        _write(path, part, name)
        print(f"{path}: {len(part)} utterances" + f", split {name}" * bool(name))
    facts = statistics(rows)
    speakers, size = facts["num_speakers"], facts["total_size_gb"]
    print(f"{speakers} speakers by the part of file names before '_', {size:.2f} GB")
    return written


def find(inputs: Iterable[str]) -> list[Item]:
    """Items of all recordings with all files, in the order of file names; prints how many are incomplete."""
    paths = (path for name in inputs for path in recordings(Path(name).expanduser()))
    waves = sorted(Path(path) for path in set(map(os.path.abspath, paths)))
    if not waves:
        raise ConfigError("--input names no recording")
    root = Path(os.path.commonpath([path.parent for path in waves]))
    items = [beside(path, path.relative_to(root).with_suffix("").as_posix()) for path in waves]
    return sorted(complete(items, root), key=lambda item: (item.wav.stem, item.utt))


def split(rows: Sequence[dict[str, Any]], shares: Sequence[float]) -> dict[str, list[dict[str, Any]]]:
    """Split rows into train, val and test like the published script."""
    shuffled = list(rows)
    random.Random(SEED).shuffle(shuffled)
    first, second = int(len(rows) * shares[0]), int(len(rows) * (shares[0] + shares[1]))
    return dict(zip(SPLITS, (shuffled[:first], shuffled[first:second], shuffled[second:]), strict=True))


def statistics(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    sizes = {kind: sum(row[f"{kind}_size"] for row in rows) for kind in KINDS}
    speakers = Counter(row["spk"] for row in rows)
    return {
        "total_files": len(rows),
        "total_size_gb": sum(sizes.values()) / GB,
        "speakers": dict(speakers),
        "file_sizes": {
            "wav_total_gb": sizes["wav"] / GB,
            "txt_total_mb": sizes["txt"] / MB,
            "token_total_gb": sizes["token"] / GB,
            "latent_total_gb": sizes["latent"] / GB,
        },
        "num_speakers": len(speakers),
    }


def _row(item: Item) -> dict[str, Any]:
    sizes = {f"{kind}_size": path.stat().st_size for kind, path in zip(KINDS, item.files, strict=True)}
    names = {name: str(value) for name, value in asdict(item).items()}
    return {**names, **sizes, "mtime": item.wav.stat().st_mtime}


def _write(path: Path, rows: Sequence[dict[str, Any]], name: str) -> None:
    head = {"version": "1.0", "created": datetime.now().isoformat()} | ({"split": name} if name else {})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {**head, "statistics": statistics(rows), "data": list(rows)})


def write_json(path: Path, content: Any) -> None:
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")


def _flags(name: str, about: str | None) -> tuple[Callable[..., Any], Callable[..., argparse.Namespace]]:
    """A function that adds flags to a command, which has --split, and one that parses them."""
    parser = argparse.ArgumentParser(prog=name, description=about)
    shares = "also one index of each share, e.g. 0.9 0.05 0.05"
    parser.add_argument("--split", nargs=3, type=float, metavar=("TRAIN", "VAL", "TEST"), help=shares)
    return parser.add_argument, parser.parse_args
