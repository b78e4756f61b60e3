"""`shard-000012.parquet`: a row per utterance, zstd, one row group; `datasets.load_dataset("parquet", …)` reads it.

Columns: key, codes (list<uint16>, with K codebooks list<list<uint16>>; int32 where a codebook has more than 65536
entries), frames, num_samples, duration, text, speaker, language, audio; if present, instruct, global_vector (of the
codec) and embedding (of the speaker encoder). The file's metadata names the codec under `vokens`.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from vokens.data.items import CodecInfo, Row
from vokens.data.outputs.output import Output, Shard, code_type, to_record
from vokens.errors import TokensError, needs_extra


class Parquet(Output):
    """The format for data lakes: compressed, typed, with texts and codes."""

    pattern = "shard-*.parquet"

    def _write(self, folder: Path, name: str, rows: Sequence[Row], facts: CodecInfo) -> list[str]:
        arrow, parquet = import_pyarrow()
        # Threads and version-dependent defaults would change the bytes, so everything is explicit.
        parquet.write_table(
            _table(arrow, rows, facts),
            folder / f"{name}.parquet",
            version="2.6",
            compression="zstd",
            compression_level=3,
            use_dictionary=True,
            row_group_size=max(1, len(rows)),
            data_page_version="1.0",
        )
        return [f"{name}.parquet"]

    def open(self, folder: Path, file: Path, facts: CodecInfo) -> Shard:
        table = _read(folder / file)
        records = table.drop_columns("codes").to_pylist()
        codes = table.column("codes")
        books = len(facts.codebook_sizes)

        def codes_of(i: int) -> np.ndarray:
            values = codes[i].values if books == 1 else codes[i].values.flatten()
            return values.to_numpy().reshape(books, len(values) // books)

        return Shard(records, codes_of)

    def frames(self, folder: Path, file: Path, facts: CodecInfo) -> np.ndarray:
        return _read(folder / file, columns=["frames"]).column("frames").to_numpy().astype(np.int64)


def _read(path: Path, columns: list[str] | None = None) -> Any:
    arrow, parquet = import_pyarrow()
    try:
        table = parquet.read_table(path, columns=columns, memory_map=True, use_threads=False)
    except (OSError, arrow.ArrowException) as error:
        raise TokensError(f"{path} is missing or not a complete parquet file ({error})") from error
    return table.combine_chunks()


def _table(arrow: ModuleType, rows: Sequence[Row], facts: CodecInfo) -> Any:
    kind = arrow.uint16() if code_type(facts) == np.uint16 else arrow.int32()
    text = arrow.string()
    columns = [
        ("key", text),
        ("codes", arrow.list_(kind)),
        ("frames", arrow.int32()),
        ("num_samples", arrow.int64()),
    ]
    columns += [
        ("duration", arrow.float64()),
        *((name, text) for name in ("text", "speaker", "language", "audio")),
    ]
    records = [to_record(row) for row in rows]
    rare = {"instruct": text} | dict.fromkeys(("global_vector", "embedding"), arrow.list_(arrow.float32()))
    columns += [(name, kind) for name, kind in rare.items() if any(name in record for record in records)]
    arrays = [
        _codes(arrow, rows, facts) if name == "codes" else arrow.array([r.get(name) for r in records], form)
        for name, form in columns
    ]
    about = {"vokens": json.dumps(asdict(facts), sort_keys=True)}
    names = [name for name, _ in columns]
    return arrow.Table.from_arrays(arrays, names=names).replace_schema_metadata(about)


def _codes(arrow: ModuleType, rows: Sequence[Row], facts: CodecInfo) -> Any:
    """Arrow lists from one flat array and offsets, without Python integers."""
    books = len(facts.codebook_sizes)
    frames = np.array([row.codes.shape[1] for row in rows], dtype=np.int64)
    flat = np.concatenate([np.empty(0, np.int64), *[row.codes.reshape(-1) for row in rows]])
    values = arrow.array(flat.astype(code_type(facts)))

    def lists(counts: np.ndarray, content: Any) -> Any:
        borders = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        return arrow.ListArray.from_arrays(borders, content)

    if books == 1:
        return lists(frames, values)
    return lists(np.full(len(rows), books), lists(np.repeat(frames, books), values))


def import_pyarrow() -> tuple[ModuleType, ModuleType]:
    """pyarrow and pyarrow.parquet, or MissingExtra."""
    with needs_extra("pyarrow", "parquet", "the output parquet"):
        import pyarrow
        import pyarrow.parquet
    return pyarrow, pyarrow.parquet
