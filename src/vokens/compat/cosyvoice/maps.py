"""`extract_speech_token`, `extract_embedding`: corpus runs in a hidden folder, whose rows become the published maps.

The folder is removed at the end: a stopped command resumes, a finished one starts again.
"""

import argparse
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from vokens.atomic import atomic_write
from vokens.compat.s3tokenizer.__main__ import read_scp
from vokens.corpus.engine.local import Worker, extract
from vokens.corpus.run import Settings
from vokens.corpus.speaker import RATE
from vokens.data.dataset import TokenDataset
from vokens.data.items import Row
from vokens.data.outputs.cosyvoice import SpeakerMeans
from vokens.data.outputs.pt_map import PtMap, write_pt_map
from vokens.data.sources.kaldi import KeyedLines
from vokens.errors import ConfigError
from vokens.models.codec import Codec
from vokens.models.pretrained import load
from vokens.tokens import Tokens


def extract_speech_token(arguments: argparse.Namespace) -> list[str]:
    """utt2speech_token.pt: ids of each utterance, of any length; returns a line per failure."""
    codec = load(arguments.onnx_path, device="auto")
    if codec.num_codebooks != 1:
        raise ConfigError(f"--onnx_path {arguments.onnx_path} holds {codec.name}, no tokenizer of 1 codebook")
    with atomic_write(arguments.dir / "utt2speech_token.pt") as partial:
        return _extract(arguments, codec, None, partial, lambda row: row.codes[0])


def extract_embedding(arguments: argparse.Namespace) -> list[str]:
    """utt2embedding.pt and spk2embedding.pt, the mean of each speaker's utterances; returns a line per failure."""
    speakers = _speakers(arguments.dir)
    means = SpeakerMeans()

    def embedding(row: Row) -> np.ndarray:
        assert row.embedding is not None
        means.add(speakers[row.key], row.embedding)
        return row.embedding

    device = "cuda" if torch.cuda.is_available() else "cpu"
    targets = [arguments.dir / f"{name}2embedding.pt" for name in ("utt", "spk")]
    with atomic_write(targets[0]) as utterances, atomic_write(targets[1]) as voices:
        failed = _extract(arguments, NoCodec(device), arguments.onnx_path, utterances, embedding)
        write_pt_map(voices, means.of_all())
    return failed


def _speakers(folder: Path) -> dict[str, str]:
    """The speaker of each utterance of wav.scp. Raises ConfigError, before any work, where one is missing."""
    keys = [item.key for item in read_scp(folder / "wav.scp")]
    file = folder / "utt2spk"
    lines = KeyedLines(file).find([key.encode() for key in keys])
    for key, line in zip(keys, lines, strict=True):
        if not line:
            raise ConfigError(f"{file} has no speaker for {key!r}: add the line '{key} SPEAKER'")
    return {key: line.decode().split()[0] for key, line in zip(keys, lines, strict=True) if line}


class NoCodec(Codec):
    """A codec without frames, for runs that only compute speaker embeddings."""

    system = "none"
    sample_rate, hop_length, codebook_sizes = RATE, RATE, (1,)

    def __init__(self, device: str) -> None:
        super().__init__(None)
        self._fingerprint = "none"
        self.place = torch.nn.Parameter(torch.zeros((), device=device), requires_grad=False)

    def encode(self, source: object, *_: object, **__: object) -> Tokens:
        """Zero frames for each of a list of waves (T,)."""
        waves = source if isinstance(source, list) else [source]
        none = self.tokens(torch.zeros(len(waves), 1, 0, dtype=torch.int64))
        return replace(none, num_samples=torch.tensor([len(wave) for wave in waves]))


def _extract(
    arguments: argparse.Namespace,
    codec: Codec,
    speaker: Path | None,
    target: Path,
    values: Callable[[Row], np.ndarray],
) -> list[str]:
    """Run over wav.scp and write the map of each row's values; returns a line per failure."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ConfigError(
            "under torchrun each process would write the same file: torchrun -m vokens extract DIR --format cosyvoice "
            "--speaker CAMPPLUS --out OUT shares the work"
        )
    if arguments.num_thread < 1:
        raise ConfigError(f"--num_thread {arguments.num_thread}: give 1 thread or more")
    torch.set_num_threads(min(arguments.num_thread, os.cpu_count() or 1))
    scp = arguments.dir / "wav.scp"
    state = f"{arguments.command} {codec.fingerprint} {speaker}".encode() + scp.read_bytes()
    out = arguments.dir / f".{arguments.command}-{hashlib.sha256(state).hexdigest()[:12]}"
    summary = extract(Settings(str(scp), out, speaker=speaker, sinc=True), codec, Worker(retry_failed=True))
    with PtMap(target) as file:
        dataset = TokenDataset(out) if summary["utterances"] else []
        for index in range(len(dataset)):
            row = dataset[index]
            file.add(row.key, values(row))
    failed = [
        f"{failure['key']}: {failure['reason']}"
        for part in sorted((out / "failures").glob("*.jsonl"))
        for failure in map(json.loads, part.read_text().splitlines())
    ]
    if not summary["utterances"]:
        raise ConfigError(f"all {summary['failures']} utterances failed; the first, {failed[0]}")
    for run in arguments.dir.glob(f".{arguments.command}-*"):  # also of stopped runs over other lists
        shutil.rmtree(run)
    return failed
