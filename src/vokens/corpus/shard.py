"""One shard, from its utterances to its files and receipt, deterministic to the byte.

Utterances are decoded in the order of the source into pools of bounded length; a pool is sorted by length and encoded
in batches with under 2 % padding. Batches depend only on the shard.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch

from vokens.batching import batches
from vokens.corpus.decode import Decoded, Decoder
from vokens.corpus.health import Tally
from vokens.corpus.run import Receipt, Run, sha256
from vokens.data.items import Row
from vokens.errors import AudioError, ConfigError, VokensError
from vokens.models.codec import Codec
from vokens.tokens import Tokens

POOL_SECONDS = 3600.0  # seconds of audio sorted together: 230 MB at 16 kHz, and enough for full batches
PADDING = 0.02


@dataclass
class ShardTiming:
    """Wall time of each step and seconds of encoded audio, summed over shards.

    beat: called after every batch.
    """

    decode: float = 0.0  # waiting for audio
    model: float = 0.0
    write: float = 0.0
    audio: float = 0.0  # seconds of audio encoded
    padded: float = 0.0  # with padding
    beat: Callable[[], None] = field(default=lambda: None, repr=False)


@dataclass(frozen=True)
class Failure:
    """An utterance in quarantine."""

    key: str
    audio: str | None
    reason: str


def encode_shard(
    run: Run, shard: int, codec: Codec, decoder: Decoder, timing: ShardTiming | None = None
) -> Receipt:
    """Encode a shard that was announced to the decoder, and commit it.

    Tokens are batch-invariant: `codec.encode` of one utterance gives the same. Repeating a shard gives the same files.
    Raises VokensError for files that cannot be written; nothing of the shard remains.
    """
    timing = timing or ShardTiming()
    rows: list[Row] = []
    failures: list[Failure] = []
    tally = Tally(run.facts.codebook_sizes)
    for pool in _pools(_timed(decoder.take(shard), timing), run.facts.sample_rate):
        for item, encoded in zip(pool, _encode(run, codec, pool, timing), strict=True):
            try:
                if isinstance(encoded, str):
                    raise AudioError(encoded)
                run.output.check(encoded, run.facts)
            except VokensError as error:
                failures.append(Failure(item.utterance.key, _place(item), str(error)))
            else:
                tally.add(encoded.codes, encoded.duration, item.silent_seconds)
                rows.append(encoded)
        pool.clear()  # before the next one is filled: one pool in memory, not two
    start = time.perf_counter()
    try:
        return _commit(run, shard, rows, failures, tally)
    except OSError as error:
        if run.done(shard):  # by a worker that considered this one dead
            return run.receipt(shard)
        raise VokensError(
            f"cannot write shard {shard} of {run.folder}: {error}; finished shards are kept: free "
            "space or set the rights, and run the same command again"
        ) from error
    finally:
        timing.write += time.perf_counter() - start
        timing.beat()


def _timed(items: Iterator[Decoded], timing: ShardTiming) -> Iterator[Decoded]:
    while True:
        start = time.perf_counter()
        item = next(items, None)
        timing.decode += time.perf_counter() - start
        if item is None:
            return
        yield item


def _pools(items: Iterable[Decoded], sample_rate: int) -> Iterator[list[Decoded]]:
    """Consecutive items of at most POOL_SECONDS in total; a longer one is a pool of its own."""
    pool: list[Decoded] = []
    samples = 0
    for item in items:
        more = 0 if item.wave is None else len(item.wave)
        if pool and samples + more > POOL_SECONDS * sample_rate:
            yield pool
            pool, samples = [], 0
        pool.append(item)
        samples += more
    if pool:
        yield pool


def _encode(run: Run, codec: Codec, pool: list[Decoded], timing: ShardTiming) -> list[Row | str]:
    """The row of each item of a pool, or the reason of its failure."""
    encoded: list[Row | str] = [item.reason for item in pool]
    waves = [(place, item.wave) for place, item in enumerate(pool) if item.wave is not None]
    lengths = [len(wave) for _, wave in waves]
    budget = int(run.settings.batch_seconds * run.facts.sample_rate)
    for group in batches(lengths, budget, PADDING):
        start = time.perf_counter()
        some = [waves[i][1] for i in group]
        voices = [None] * len(some) if run.speaker is None else run.speaker.embed(some, codec.sample_rate)
        for i, tokens, voice in zip(group, _encode_batch(run, codec, some), voices, strict=True):
            place = waves[i][0]
            if isinstance(tokens, str) or isinstance(voice, str):
                encoded[place] = tokens if isinstance(tokens, str) else str(voice)
            else:
                encoded[place] = _row(pool[place], tokens, voice, run.facts.sample_rate)
        timing.model += time.perf_counter() - start
        timing.audio += sum(lengths[i] for i in group) / run.facts.sample_rate
        timing.padded += len(group) * lengths[group[0]] / run.facts.sample_rate
        timing.beat()
    return encoded


def _encode_batch(run: Run, codec: Codec, waves: list[np.ndarray]) -> list[Tokens | str]:
    """Tokens of waves in one forward pass; where the batch fails, each is retried alone."""
    try:
        books, seconds = len(run.facts.codebook_sizes), len(waves) * max(map(len, waves)) / codec.sample_rate
        return list(codec.encode(waves, codec.sample_rate, num_codebooks=books, batch_seconds=seconds + 1.0))
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"the device's memory does not hold {run.settings.batch_seconds:g} s of audio: lower --batch-seconds "
            "and run again; finished shards are kept"
        ) from error
    except VokensError as error:
        if len(waves) == 1:
            return [str(error)]
    return [tokens for wave in waves for tokens in _encode_batch(run, codec, [wave])]


def _row(item: Decoded, tokens: Tokens, embedding: np.ndarray | None, sample_rate: int) -> Row:
    utterance = item.utterance
    vector = tokens.global_vector
    return Row(
        key=utterance.key,
        codes=tokens.codes[0, :, : int(tokens.lengths[0])].cpu().numpy(),
        num_samples=int(tokens.num_samples[0]),
        duration=int(tokens.num_samples[0]) / sample_rate,
        audio=_place(item),
        text=utterance.text,
        speaker=utterance.speaker,
        language=utterance.language,
        instruct=utterance.instruct,
        global_vector=None if vector is None else vector[0].float().cpu().numpy(),
        embedding=embedding,
    )


def _place(item: Decoded) -> str | None:
    return item.utterance.audio if isinstance(item.utterance.audio, str) else None


def _commit(run: Run, shard: int, rows: list[Row], failures: list[Failure], tally: Tally) -> Receipt:
    """Write into a scratch folder, flush, rename; the receipt last."""
    name = f"{shard:06d}"
    with run.leases.scratch(name) as scratch:
        written = run.output.write(scratch, shard, rows, run.facts)
        files = [(scratch / file.path, file.final) for file in written]
        quarantine = Path("failures") / f"{name}.jsonl"
        if failures:
            draft = scratch / "failures.jsonl"
            lines = "".join(json.dumps(asdict(item), ensure_ascii=False) + "\n" for item in failures)
            draft.write_bytes(lines.encode(errors="backslashreplace"))  # file names may be invalid Unicode
            files.append((draft, quarantine))
        else:
            (run.folder / quarantine).unlink(missing_ok=True)  # of an earlier attempt
        receipt = Receipt(
            shard=shard,
            utterances=len(rows),
            failures=len(failures),
            samples=sum(row.num_samples for row in rows),
            frames=tally.frames,
            files=[
                {"path": str(final), "bytes": draft.stat().st_size, "sha256": sha256(draft)}
                for draft, final in files
            ],
            health=tally.facts(run.facts.frame_rate),
        )
        run.publish(files)
        (scratch / "receipt.json").write_text(json.dumps(asdict(receipt)) + "\n")
        run.publish([(scratch / "receipt.json", Path("receipts") / f"{name}.json")])
        return receipt
