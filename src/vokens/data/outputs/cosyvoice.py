"""Training data of CosyVoice's `train.py`: parquet with the recordings, `data.list`, maps by utterance.

A shard of the run is `shard-000012.parquet` without audio. A speaker's embedding is the mean over all utterances,
so `finish` writes the published file of each shard, and the lists, when all shards are done.
"""

import hashlib
import io
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from vokens import audio
from vokens.data.fetch import open_audio
from vokens.data.items import CodecInfo, Row, Utterance
from vokens.data.outputs.output import FinishedRun, shard_name
from vokens.data.outputs.parquet import Parquet, import_pyarrow
from vokens.data.outputs.pt_map import PtMap, read_pt_map, write_pt_map
from vokens.data.sources.addresses import note
from vokens.errors import ConfigError, TokensError

# The columns in the published order, with the types that pandas wrote.
COLUMNS = {
    "utt": "string",
    "audio_data": "binary",
    "wav": "string",
    "text": "string",
    "spk": "string",
    "utt_embedding": "double",
    "spk_embedding": "double",
    "speech_token": "int64",
    "instruct": "string",
    "reject_speech_token": "int64",
}
LISTS = {"parquet": "data.list", "utt2parquet": "utt2data.list", "spk2parquet": "spk2data.list"}
_LISTED = ("utt_embedding", "spk_embedding", "speech_token", "reject_speech_token")
_MAPS = {"tokens": "utt2speech_token.pt", "embeddings": "utt2embedding.pt", "speakers": "spk2embedding.pt"}
_ROWS = 64  # rows of a row group, which the published reader loads at once: 30 MB of audio instead of a whole shard
_POLL = 0.5  # seconds between checks of files that other workers write


class SpeakerMeans:
    """The mean embedding of each speaker, summed in float64."""

    def __init__(self) -> None:
        self._sums: dict[str, np.ndarray] = {}
        self._counts: Counter[str] = Counter()

    def add(self, speaker: str, embedding: np.ndarray) -> None:
        """Add an utterance."""
        self._counts[speaker] += 1
        self._sums[speaker] = self._sums.get(speaker, 0) + embedding.astype(np.float64)

    def of_all(self) -> dict[str, np.ndarray]:
        """(192,) float32 of each speaker, in order of first occurrence."""
        return {name: (total / self._counts[name]).astype(np.float32) for name, total in self._sums.items()}


@dataclass(frozen=True)
class Corpus:
    """Data of all shards that the published files need."""

    speakers: dict[str, np.ndarray]  # embedding (192,) float32 of each
    instruct: bool  # True if any utterance has one
    rejected: Mapping[str, list[int]] | None  # tokens of utterances, for preference optimisation
    digest: str  # of the content of the files

    @property
    def columns(self) -> list[str]:
        """The columns of this corpus."""
        there = {"instruct": self.instruct, "reject_speech_token": self.rejected is not None}
        there |= dict.fromkeys(("utt_embedding", "spk_embedding"), bool(self.speakers))
        return [name for name in COLUMNS if there.get(name, True)]


class CosyVoice(Parquet):
    """CosyVoice's training data, ready for its `train.py --train_data OUT/data.list`."""

    def check_codec(self, facts: CodecInfo) -> None:
        if len(facts.codebook_sizes) != 1:
            raise ConfigError(
                f"--format cosyvoice holds one codebook, {facts.model} has {len(facts.codebook_sizes)}: give a "
                "--model such as speech_tokenizer_v2_25hz, or --num-codebooks 1"
            )
        import_pyarrow()

    def check(self, row: Row, facts: CodecInfo) -> None:
        super().check(row, facts)
        missing = [name for name in ("text", "speaker") if getattr(row, name) is None]
        if missing:
            raise TokensError(
                f"{row.key!r} has no {' and no '.join(missing)}, and CosyVoice trains on both: give each utterance a "
                "line in text and utt2spk, or the fields text and speaker"
            )

    def finish(self, run: FinishedRun) -> None:
        """Write the published files, together with all other workers."""
        corpus = self._survey(run)
        shards = [shard for shard in range(len(run)) if run.receipt(shard).utterances]
        while waiting := [shard for shard in shards if not _holds(_path(run, shard), corpus.digest)]:
            if not any([self._write_parquet(run, shard, corpus) for shard in waiting]):
                time.sleep(_POLL)
        while not _listed(run, corpus.digest):
            with run.leases.held("lists") as mine:
                if mine:
                    self._write_lists(run, shards, corpus)
                else:
                    time.sleep(_POLL)

    def _rows(self, run: FinishedRun, shard: int) -> Iterator[Row]:
        return iter(self.open(run.folder, Path(f"{shard_name(shard)}.parquet"), run.facts))

    def _survey(self, run: FinishedRun) -> Corpus:
        """One pass over all rows."""
        means, instruct, utterances, digest = SpeakerMeans(), 0, 0, hashlib.sha256()
        for shard in range(len(run)):
            digest.update(json.dumps(run.receipt(shard).files).encode())
            for row in self._rows(run, shard):
                utterances, instruct = utterances + 1, instruct + (row.instruct is not None)
                if row.embedding is not None and row.speaker is not None:
                    means.add(row.speaker, row.embedding)
        if 0 < instruct < utterances:
            note(f"{utterances - instruct} of {utterances} utterances have no instruct: it is left empty")
        file = Path(f"{run.source_address}_reject/utt2speech_token.pt")
        if file.exists():
            digest.update(file.read_bytes())
        rejected = read_pt_map(file) if file.exists() else None
        return Corpus(means.of_all(), instruct > 0, rejected, digest.hexdigest()[:16])

    def _write_parquet(self, run: FinishedRun, shard: int, corpus: Corpus) -> bool:
        """Write the published file of a shard; return False where another worker does."""
        name, final = f"parquet-{shard:06d}", _path(run, shard)
        with run.leases.held(name) as mine:
            if mine and not _holds(final, corpus.digest):
                rows = {row.key: row for row in self._rows(run, shard)}
                spoken = (one for one in run.utterances(shard) if one.key in rows)
                samples = (_sample(one, rows[one.key], corpus) for one in spoken)
                with run.leases.scratch(name) as scratch:
                    write_parquet(scratch / "parquet", corpus.columns, samples, corpus.digest)
                    run.publish([(scratch / "parquet", Path(final.name))])
        return mine

    def _write_lists(self, run: FinishedRun, shards: Sequence[int], corpus: Corpus) -> None:
        home = run.folder.absolute()
        names = [_MAPS["tokens"], *([_MAPS["embeddings"]] if corpus.speakers else [])]
        with run.leases.scratch("lists") as scratch:
            tokens, embeddings = (PtMap(scratch / _MAPS[kind]) for kind in ("tokens", "embeddings"))
            with tokens, embeddings:
                for shard in shards:
                    rows = list(self._rows(run, shard))
                    for row in rows:
                        tokens.add(row.key, row.codes[0])
                        if row.embedding is not None:
                            embeddings.add(row.key, row.embedding)
                    keys, speakers = [row.key for row in rows], [str(row.speaker) for row in rows]
                    names += write_json(scratch, home, shard, keys, speakers)
            if corpus.speakers:
                names.append(_MAPS["speakers"])
                write_pt_map(scratch / _MAPS["speakers"], corpus.speakers)
            names += write_lists(scratch, home, shards)
            (scratch / _DONE).write_text(json.dumps({"digest": corpus.digest, "folder": str(home)}))
            run.publish([(scratch / name, Path(name)) for name in (*names, _DONE)])


_DONE = "cosyvoice.json"  # records the rows and the folder of the lists


def _listed(run: FinishedRun, digest: str) -> bool:
    with suppress(OSError, ValueError):
        there = json.loads((run.folder / _DONE).read_text())
        return there == {"digest": digest, "folder": str(run.folder.absolute())} and all(
            (run.folder / name).exists() for name in LISTS.values()
        )
    return False


def _path(run: FinishedRun, shard: int) -> Path:
    return run.folder / file_name("parquet", shard)


def _holds(path: Path, digest: str) -> bool:
    """True if a complete parquet file of this content exists."""
    arrow, parquet = import_pyarrow()
    with suppress(OSError, arrow.ArrowException):
        return (parquet.read_schema(path).metadata or {}).get(b"vokens") == digest.encode()
    return False


def _sample(utterance: Utterance, row: Row, corpus: Corpus) -> dict[str, Any]:
    sample = {
        "utt": row.key,
        "audio_data": file_bytes(utterance),
        "wav": row.audio or row.key,
        "text": " ".join((row.text or "").split()),
        "spk": row.speaker,
        "speech_token": row.codes[0],
        "instruct": " ".join((row.instruct or "").split()),
        "reject_speech_token": (corpus.rejected or {}).get(row.key, []),
    }
    if row.embedding is not None:
        sample |= {"utt_embedding": row.embedding, "spk_embedding": corpus.speakers[str(row.speaker)]}
    return sample


def file_bytes(utterance: Utterance) -> bytes:
    """The audio file of an utterance unchanged; for a segment, a 16-bit WAV file at its own rate."""
    opened = open_audio(utterance)
    if utterance.start > 0 or utterance.duration is not None:
        wave, rate = audio.load(opened, offset=utterance.start, duration=utterance.duration)
        file = io.BytesIO()
        soundfile.write(file, wave, rate, format="WAV", subtype="PCM_16")
        return file.getvalue()
    try:
        return opened if isinstance(opened, bytes) else opened.read_bytes()
    except OSError as error:
        raise TokensError(
            f"{opened} was readable when its tokens were made and is not now ({error.strerror}): put it back, and "
            "run the same command again"
        ) from error


def file_name(kind: str, number: int) -> str:
    """`parquet_000000012.tar`, `utt2parquet_000000012.json`, `spk2parquet_000000012.json`."""
    return f"{kind}_{number:09d}.{'tar' if kind == 'parquet' else 'json'}"


def write_parquet(
    path: Path, columns: Sequence[str], samples: Iterable[Mapping[str, Any]], digest: str = ""
) -> None:
    """Write rows with these COLUMNS, one group at a time. digest: stored in the metadata under `vokens`."""
    arrow, parquet = import_pyarrow()
    kinds = {name: getattr(arrow, COLUMNS[name].replace("double", "float64"))() for name in columns}
    kinds |= {name: arrow.list_(kinds[name]) for name in _LISTED if name in kinds}
    schema = arrow.schema(list(kinds.items()), metadata={"vokens": digest})
    with parquet.ParquetWriter(path, schema, use_dictionary=False, write_statistics=False) as file:
        group: list[Mapping[str, Any]] = []
        for sample in samples:
            group.append(sample)
            if len(group) == _ROWS:
                file.write_table(arrow.Table.from_pylist(group, schema))
                group = []
        if group:
            file.write_table(arrow.Table.from_pylist(group, schema))


def write_json(
    scratch: Path, folder: Path | str, number: int, keys: Iterable[str], speakers: Iterable[str]
) -> list[str]:
    """Write the maps from utterance and speaker to parquet file of `folder`; return their names."""
    where = f"{folder}/{file_name('parquet', number)}"
    names = [file_name(kind, number) for kind in ("utt2parquet", "spk2parquet")]
    for name, members in zip(names, (keys, speakers), strict=True):
        content = json.dumps(dict.fromkeys(members, where), ensure_ascii=False, indent=2)
        (scratch / name).write_text(content, encoding="utf-8")
    return names


def write_lists(scratch: Path, folder: Path | str, numbers: Sequence[int]) -> list[str]:
    """Write data.list, utt2data.list, spk2data.list of the files of `folder`; return their names, data.list last."""
    for kind, name in LISTS.items():
        lines = "".join(f"{folder}/{file_name(kind, number)}\n" for number in numbers)
        (scratch / name).write_text(lines, encoding="utf-8")
    return list(LISTS.values())[::-1]
