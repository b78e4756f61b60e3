"""`make_parquet_list`: recordings, texts, speakers and maps of a folder as the parquet files that train.py reads."""

import argparse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from vokens.atomic import atomic_write
from vokens.compat.s3tokenizer.__main__ import Item, read_scp
from vokens.data.items import Utterance
from vokens.data.outputs.cosyvoice import (
    COLUMNS,
    file_bytes,
    file_name,
    write_json,
    write_lists,
    write_parquet,
)
from vokens.data.outputs.pt_map import read_pt_map
from vokens.data.sources.kaldi import KeyedLines
from vokens.errors import ConfigError

# column -> its file of lines or its map; columns of maps are optional
_LINES = {"text": "text", "spk": "utt2spk", "instruct": "instruct"}
_MAPS = {
    "utt_embedding": "utt2embedding.pt",
    "spk_embedding": "spk2embedding.pt",
    "speech_token": "utt2speech_token.pt",
}


def make_parquet_list(arguments: argparse.Namespace) -> list[str]:
    """Write parquet files of the utterances with all columns of the folder; returns a line per incomplete one."""
    for name in ("num_utts_per_parquet", "num_processes"):
        if getattr(arguments, name) < 1:
            raise ConfigError(f"--{name} {getattr(arguments, name)}: give 1 or more")
    items = read_scp(arguments.src_dir / "wav.scp")
    if not items:
        raise ConfigError(f"{arguments.src_dir / 'wav.scp'} has no line: give each utterance one, 'KEY PATH'")
    samples, failed = _samples(arguments, items)
    if not samples:
        raise ConfigError(f"no utterance of {arguments.src_dir} has all columns; the first, {failed[0]}")
    arguments.des_dir.mkdir(parents=True, exist_ok=True)
    size = arguments.num_utts_per_parquet
    shards = [samples[start : start + size] for start in range(0, len(samples), size)]
    with ThreadPoolExecutor(arguments.num_processes) as pool:
        list(pool.map(lambda job: _write(arguments.des_dir, *job), enumerate(shards)))
    write_lists(arguments.des_dir, arguments.des_dir, range(len(shards)))
    return failed


def _samples(arguments: argparse.Namespace, items: list[Item]) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows without audio, and the missing columns of incomplete ones."""
    folder, keys = arguments.src_dir, [item.key.encode() for item in items]
    lines = {
        column: KeyedLines(folder / name).find(keys)
        for column, name in _LINES.items()
        if column != "instruct" or (folder / name).exists()
    }
    maps = {column: read_pt_map(folder / name) for column, name in _MAPS.items() if (folder / name).exists()}
    rejected = Path(f"{folder}_reject/utt2speech_token.pt")
    if arguments.dpo and not rejected.exists():
        raise ConfigError(
            f"--dpo was given and {rejected} does not exist: make it with extract_speech_token --dir {folder}_reject"
        )
    samples, failed = [], []
    for place, item in enumerate(items):
        sample: dict[str, Any] = {"utt": item.key, "wav": str(item.path)}
        for column, rests in lines.items():
            words = (rests[place] or b"").decode().split()
            sample[column] = (words[0] if words else None) if column == "spk" else " ".join(words)
        for column, values in maps.items():
            sample[column] = values.get(sample["spk"] if column == "spk_embedding" else item.key)
        missing = [_LINES.get(name) or _MAPS[name] for name in (*lines, *maps) if sample[name] is None]
        missing += [_LINES[name] for name, rests in lines.items() if rests[place] is None and name != "spk"]
        if missing:
            failed.append(f"{item.key} is not in {' and '.join(missing)}")
        else:
            samples.append(sample)
    if arguments.dpo:
        tokens = read_pt_map(rejected)
        samples = [sample | {"reject_speech_token": tokens.get(sample["utt"], [])} for sample in samples]
    return samples, failed


def _write(folder: Path, number: int, samples: list[dict[str, Any]]) -> None:
    """Write one parquet file and the maps of its utterances and speakers."""

    def whole() -> Iterator[dict[str, Any]]:
        for sample in samples:
            yield sample | {"audio_data": file_bytes(Utterance(sample["utt"], sample["wav"]))}

    columns = [name for name in COLUMNS if name in samples[0] or name == "audio_data"]
    with atomic_write(folder / file_name("parquet", number)) as partial:
        write_parquet(partial, columns, whole())
    write_json(folder, folder, number, [one["utt"] for one in samples], [one["spk"] for one in samples])
