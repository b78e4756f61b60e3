"""Extracted tokens as training data: a map-style dataset, and batches of similar length.

    dataset = TokenDataset("out")
    batches = TokenBatches(dataset, batch_frames=20_000, seed=0, rank=rank, world=world)
    for batch in DataLoader(dataset, batch_sampler=batches, collate_fn=dataset.collate, num_workers=4): ...

The batches of an epoch are a pure function of (seed, epoch): the number of workers does not matter,
ranks partition the rows, and a stopped run resumes with `set_epoch(epoch, start=batches done)`.
"""

import json
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from vokens.data.items import CodecInfo, Row
from vokens.data.outputs import Output, Shard, get_output
from vokens.errors import ConfigError
from vokens.tokens import Tokens

RUN_FILE = "run.json"


@dataclass(frozen=True)
class TokenBatch:
    """B utterances: `tokens` padded (B, K, T) with their lengths, and the labels of each."""

    tokens: Tokens
    keys: list[str]
    texts: list[str | None]
    speakers: list[str | None]
    languages: list[str | None]


class TokenDataset(Dataset[Row]):
    """The rows of an output folder in any format; shards are opened lazily.

    Opening reads the lengths of all rows. For 1000 rows that takes 0.2 ms of CPU from megatron, 2 ms from parquet,
    6 ms from npy, about 60 ms from jsonl, webdataset and shar.

    Args:
        folder: the output of `vokens extract`. Its run.json names the format and the codec.
        output: format of a folder without run.json. facts: its codec.
        opened: number of shards kept open.

    Attributes:
        frames: (n,) int64, T of each row. starts: (shards + 1,) int64, the number of each shard's first row.
        facts: of the codec.

    Raises ConfigError for a folder that is no output of a run, or has no complete shard.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        output: Output | None = None,
        facts: CodecInfo | None = None,
        opened: int = 16,
    ) -> None:
        self.folder = Path(folder)
        if output is None or facts is None:
            output, facts = read_run(self.folder)
        self.output, self.facts = output, facts
        self._files = output.shards(self.folder)
        if not self._files:
            raise ConfigError(f"{self.folder} has no complete shard ({output.pattern}): extract first")
        counts = [output.frames(self.folder, file, facts) for file in self._files]
        self.frames = np.concatenate(counts)
        self.starts = np.cumsum([0, *map(len, counts)])
        self._most = opened
        self._opened: OrderedDict[int, Shard] = OrderedDict()

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        number = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self._shard(number)[index - int(self.starts[number])]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": OrderedDict()}  # workers open their own files

    def collate(self, rows: Sequence[Row]) -> TokenBatch:
        """The rows as one padded batch."""
        return collate(rows, self.facts)

    def _shard(self, number: int) -> Shard:
        if number not in self._opened:
            self._opened[number] = self.output.open(self.folder, self._files[number], self.facts)
            if len(self._opened) > self._most:
                self._opened.popitem(last=False)
        self._opened.move_to_end(number)
        return self._opened[number]


class TokenBatches(Sampler[list[int]]):
    """Batches of similar length for `DataLoader(batch_sampler=…)`, shuffled by (seed, epoch).

    Shards are shuffled and concatenated; each rank takes an equal part. Within a part, the rows of every `window`
    shards are sorted by length and cut where longest · count would exceed `batch_frames`, and these batches are
    shuffled. So few shards are open at a time, and each is read by one or two ranks.

    All ranks get the same number of batches: surplus ones are dropped.

    Args:
        batch_frames: maximum padded frames of a batch, B·T.
        max_frames: longer rows are dropped, and always rows without frames.
        rank: of this process; world: number of processes.
        window: shards whose rows are mixed; less than the dataset's `opened`, or files are reopened often.

    Raises ConfigError for a row that exceeds a batch, and where a rank would get no batch.
    """

    def __init__(
        self,
        dataset: TokenDataset,
        batch_frames: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        window: int = 8,
        max_frames: int | None = None,
    ) -> None:
        if not 0 <= rank < world or window < 1:
            raise ConfigError(f"rank {rank} of {world}, window {window}: give 0 <= rank < world, window >= 1")
        self._frames, self._starts = dataset.frames, dataset.starts
        longest = int(self._frames.max(initial=0)) if max_frames is None else max_frames
        if longest > batch_frames:
            raise ConfigError(
                f"batch_frames is {batch_frames}, but there are rows of {longest} frames: "
                "give more, or drop long rows with max_frames"
            )
        self._batch_frames, self._longest, self._window = batch_frames, longest, window
        self._seed, self._rank, self._world = seed, rank, world
        self.set_epoch(0)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Make the next iteration yield the batches of this epoch, from number `start` on."""
        plans = self._plan(epoch)
        count = min(map(len, plans))
        if not count:
            raise ConfigError(f"{len(self._frames)} rows are too few for {self._world} processes: use fewer")
        self._batches, self._start = plans[self._rank][:count], start

    def __iter__(self) -> Iterator[list[int]]:
        return (batch.tolist() for batch in self._batches[self._start :])

    def __len__(self) -> int:
        return max(0, len(self._batches) - self._start)

    def _plan(self, epoch: int) -> list[list[np.ndarray]]:
        """The batches of all ranks; each rank computes all, in one pass and without communication."""
        draw = np.random.default_rng([self._seed, epoch])
        shards = draw.permutation(len(self._starts) - 1)
        line = np.concatenate([np.arange(self._starts[s], self._starts[s + 1]) for s in shards])
        line = line[(self._frames[line] > 0) & (self._frames[line] <= self._longest)]
        size = max(1, -(-len(line) * self._window // len(shards)))  # rows of a window
        plans = []
        for share in np.array_split(line, self._world):
            plan: list[np.ndarray] = []
            for first in range(0, len(share), size):
                rows = draw.permutation(share[first : first + size])
                batches = self._cut(rows[np.argsort(self._frames[rows], kind="stable")])
                plan += [batches[i] for i in draw.permutation(len(batches))]
            plans.append(plan)
        return plans

    def _cut(self, rows: np.ndarray) -> list[np.ndarray]:
        """Cut rows sorted by length into the largest batches within batch_frames."""
        batches = []
        while len(rows):
            most = rows[: self._batch_frames // self._frames[rows[0]]]
            padded = self._frames[most] * np.arange(1, len(most) + 1)  # grows with every row
            count = int(np.searchsorted(padded, self._batch_frames, side="right"))
            batches.append(rows[:count])
            rows = rows[count:]
        return batches


def read_run(folder: Path) -> tuple[Output, CodecInfo]:
    """The format and the codec of an output folder, from its run.json."""
    try:
        run: dict[str, Any] = json.loads((folder / RUN_FILE).read_bytes())
        facts = {field.name: run[field.name] for field in fields(CodecInfo)}
        facts["codebook_sizes"] = tuple(facts["codebook_sizes"])
        return get_output(run["format"]), CodecInfo(**facts)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{folder} is no output of vokens extract, its {RUN_FILE} cannot be used ({error!r}): give that folder, "
            "or pass output= and facts="
        ) from error


def collate(rows: Sequence[Row], facts: CodecInfo) -> TokenBatch:
    """Rows as one batch, codes padded with 0 to the longest: (B, K, T)."""
    lengths = torch.tensor([row.codes.shape[1] for row in rows], dtype=torch.int64)
    codes = torch.zeros(len(rows), len(facts.codebook_sizes), int(lengths.max()), dtype=torch.int64)
    for padded, row in zip(codes, rows, strict=True):
        padded[:, : row.codes.shape[1]] = torch.from_numpy(row.codes)
    vectors = [torch.from_numpy(row.global_vector) for row in rows if row.global_vector is not None]
    tokens = Tokens(
        codes=codes,
        lengths=lengths,
        num_samples=torch.tensor([row.num_samples for row in rows]),
        global_vector=torch.stack(vectors) if vectors else None,
        **vars(facts),
    )
    names = ("key", "text", "speaker", "language")
    return TokenBatch(tokens, *([getattr(row, name) for row in rows] for name in names))
