"""Extracted tokens as training data: the same batches from every form, in any layout of processes."""

import functools
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import refused
from corpora import write_shard
from torch import Tensor
from torch.utils.data import DataLoader

from vokens.data.dataset import TokenBatch, TokenBatches, TokenDataset, collate
from vokens.data.items import CodecInfo, Row
from vokens.data.outputs import OUTPUTS, get_output
from vokens.errors import ConfigError

FACTS = CodecInfo("mini", "fedcba9876543210", 16000, 50.0, (16, 8))
SHARDS, ROWS = 5, 12


def make_rows(shard: int, rows: int = ROWS) -> list[Row]:
    draw = np.random.default_rng(shard)
    made = []
    for i in range(rows):
        frames = int(draw.integers(5, 40))
        codes = np.stack([draw.integers(0, size, frames) for size in FACTS.codebook_sizes])
        samples = frames * 320
        key = f"{shard}/{i}"
        made.append(Row(key, codes, samples, samples / 16000, f"/nowhere/{key}.wav", "hi", "me", "en"))
    return made


def write_run(folder: Path, name: str, shards: int = SHARDS, rows: int = ROWS) -> Path:
    """An output folder as a run leaves it."""
    folder.mkdir(exist_ok=True)
    output = get_output(name, audio_root="/nowhere" if name == "sidecar" else None)
    for shard in range(shards):
        write_shard(folder, output, shard, make_rows(shard, rows), FACTS)
    (folder / "run.json").write_text(json.dumps({"format": name, **asdict(FACTS), "source": "somewhere"}))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("runs")
    return functools.cache(lambda name: write_run(root / name, name))


@pytest.mark.parametrize("name", [name for name in OUTPUTS if name != "cosyvoice"])
def test_every_form_gives_the_batches_of_the_rows_themselves(name, folders):
    """Names in no file: so a model that is trained from any form learns the same."""
    rows = [row for shard in range(SHARDS) for row in make_rows(shard)]
    dataset = TokenDataset(folders(name))
    plan = list(TokenBatches(dataset, 400, seed=3))
    assert plan == list(TokenBatches(TokenDataset(folders("npy")), 400, seed=3))
    for batch, places in zip(
        DataLoader(dataset, batch_sampler=plan, collate_fn=dataset.collate), plan, strict=True
    ):
        expected = collate([rows[i] for i in places], FACTS)
        assert batch.keys == expected.keys
        assert torch.equal(batch.tokens.codes, expected.tokens.codes)
        assert torch.equal(batch.tokens.lengths, expected.tokens.lengths)


def test_lhotse_trains_from_shar(folders):
    """The form shar needs nothing of ours: lhotse's cuts, bucketing sampler and collation."""
    from lhotse import CutSet
    from lhotse.dataset import DynamicBucketingSampler
    from lhotse.dataset.collation import collate_custom_field

    class Codes(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
        def __getitem__(self, cuts: CutSet) -> tuple[Tensor, Tensor]:
            codes, lengths = collate_custom_field(cuts, "codes", pad_value=0)  # (B, T, K), (B,)
            return codes.transpose(1, 2).long(), lengths

    cuts = CutSet.from_shar(in_dir=folders("shar") / "shar", shuffle_shards=True, seed=0)
    sampler = DynamicBucketingSampler(cuts, max_duration=8.0, num_buckets=3, shuffle=True, seed=0)
    batches = DataLoader(Codes(), sampler=sampler, batch_size=None)
    read = [row[:, :n].tolist() for codes, lengths in batches for row, n in zip(codes, lengths, strict=True)]
    assert sorted(read) == sorted(row.codes.tolist() for shard in range(SHARDS) for row in make_rows(shard))


def test_rows_by_number(folders):
    dataset = TokenDataset(folders("megatron"), opened=2)
    rows = [row for shard in range(SHARDS) for row in make_rows(shard)]
    assert len(dataset) == len(rows)
    for i in np.random.default_rng(0).permutation(len(rows)):
        assert dataset[i].key == rows[i].key
        np.testing.assert_array_equal(dataset[i].codes, rows[i].codes)
        assert dataset.frames[i] == rows[i].codes.shape[1]
        assert len(dataset._opened) <= 2
    with pytest.raises(IndexError):
        dataset[len(rows)]


def test_collate():
    rows = [replace(row, global_vector=np.float32([i, 0.5])) for i, row in enumerate(make_rows(0)[:3])]
    batch = collate(rows, FACTS)
    assert isinstance(batch, TokenBatch)
    assert batch.keys == ["0/0", "0/1", "0/2"]
    assert (batch.texts, batch.speakers, batch.languages) == (["hi"] * 3, ["me"] * 3, ["en"] * 3)
    assert batch.tokens.fingerprint == FACTS.fingerprint
    for row, tokens in zip(rows, batch.tokens, strict=True):
        np.testing.assert_array_equal(tokens.codes[0], row.codes)
        assert int(tokens.num_samples[0]) == row.num_samples
    assert batch.tokens.global_vector is not None
    assert batch.tokens.global_vector.tolist() == [[0.0, 0.5], [1.0, 0.5], [2.0, 0.5]]


def test_an_epoch_is_all_rows_once_in_batches_of_like_length(folders):
    dataset = TokenDataset(folders("npy"))
    batches = TokenBatches(dataset, 200, seed=1)
    epochs = []
    for epoch in (0, 1, 0):
        batches.set_epoch(epoch)
        epochs.append(list(batches))
        assert sorted(chain.from_iterable(epochs[-1])) == list(range(len(dataset)))
        assert len(epochs[-1]) == len(batches)
    assert epochs[0] == epochs[2] != epochs[1]
    assert list(TokenBatches(dataset, 200, seed=2)) != epochs[0]
    padded = [dataset.frames[batch].max() * len(batch) for batch in epochs[0]]
    assert max(padded) <= 200
    assert dataset.frames.sum() / sum(padded) > 0.9  # shuffled alone it is 0.6


def test_few_shards_are_open_at_a_time(folders):
    dataset = TokenDataset(folders("npy"))
    order = [int(i) // ROWS for batch in TokenBatches(dataset, 100, window=1) for i in batch]
    changes = 1 + sum(a != b for a, b in pairwise(order))
    assert changes == SHARDS  # each is opened once, in an order of their own
    assert sorted(set(order)) != list(dict.fromkeys(order))


@pytest.mark.parametrize("world", [2, 3, 7])
def test_processes_share_the_rows(world, folders):
    dataset = TokenDataset(folders("npy"))
    plans = [list(TokenBatches(dataset, 60, seed=1, rank=rank, world=world)) for rank in range(world)]
    assert len({len(plan) for plan in plans}) == 1
    rows = [i for plan in plans for batch in plan for i in batch]
    assert len(rows) == len(set(rows))
    assert len(rows) > 0.7 * len(dataset)  # what is missing are last batches, of processes that had more


def test_workers_change_nothing_and_a_stopped_epoch_goes_on(folders):
    dataset = TokenDataset(folders("parquet"))

    def keys(workers: int, start: int = 0) -> list[list[str]]:
        batches = TokenBatches(dataset, 200, seed=5)
        batches.set_epoch(4, start)
        loader = DataLoader(dataset, batch_sampler=batches, collate_fn=dataset.collate, num_workers=workers)
        return [batch.keys for batch in loader]

    alone = keys(0)
    assert keys(2) == alone
    assert keys(2, start=3) == alone[3:]
    assert keys(0, start=len(alone)) == []


def test_rows_that_no_batch_takes(tmp_path):
    folder = write_run(tmp_path, "megatron", shards=2)
    dataset = TokenDataset(folder)
    dataset.frames[3] = 0
    assert 3 not in chain.from_iterable(TokenBatches(dataset, 100))
    refused(ConfigError, r"batch_frames is 20, but there are rows of \d\d frames", TokenBatches, dataset, 20)
    kept = chain.from_iterable(TokenBatches(dataset, 20, max_frames=20))
    assert sorted(kept) == [i for i, n in enumerate(dataset.frames) if 0 < n <= 20]


def test_folders_that_are_no_run(tmp_path):
    refused(ConfigError, r"no output of vokens extract.*run\.json", TokenDataset, tmp_path)
    (tmp_path / "run.json").write_text('{"format": "npy"}')
    refused(ConfigError, "no output of vokens extract", TokenDataset, tmp_path)
    folder = write_run(tmp_path / "run", "jsonl", shards=0)
    refused(ConfigError, "no complete shard", TokenDataset, folder)


def test_a_folder_without_its_run_file_is_read_when_told(tmp_path):
    folder = write_run(tmp_path, "webdataset", shards=1)
    (folder / "run.json").unlink()
    dataset = TokenDataset(folder, output=get_output("webdataset"), facts=FACTS)
    assert [row.key for row in dataset] == [row.key for row in make_rows(0)]


def test_processes_without_rows(tmp_path):
    dataset = TokenDataset(write_run(tmp_path, "jsonl", shards=1, rows=2))
    refused(ConfigError, "2 rows are too few for 3 processes", TokenBatches, dataset, 100, rank=0, world=3)
    refused(ConfigError, "rank 3 of 3", TokenBatches, dataset, 100, rank=3, world=3)
