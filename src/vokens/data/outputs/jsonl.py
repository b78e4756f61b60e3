"""`shard-000012.jsonl`: a line {"key", "code"} per utterance, as the command of S3Tokenizer 0.3.0 writes it.

With one codebook, "code" is the flat list of ids; with K, it is K such lists. Codecs with a global vector add
"global_vector", and runs with a speaker encoder "embedding". Nothing else is stored: samples and
seconds are computed from the frames.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vokens.data.items import CodecInfo, Row
from vokens.data.outputs.output import AGAIN, Output, Shard, code_type, read_lines, vectors, write_lines
from vokens.errors import TokensError


class Jsonl(Output):
    """Lines of json, three times the size of packed codes, and readable by everything."""

    pattern = "shard-*.jsonl"

    def _write(self, folder: Path, name: str, rows: Sequence[Row], facts: CodecInfo) -> list[str]:
        return [write_lines(folder, name, map(_line, rows))]

    def open(self, folder: Path, file: Path, facts: CodecInfo) -> Shard:
        lines = read_lines(folder / file)
        books = len(facts.codebook_sizes)
        try:  # pack at once: Python's integers take 32 bytes each
            codes = [np.atleast_2d(np.array(line.pop("code"), dtype=code_type(facts))) for line in lines]
        except (KeyError, ValueError, OverflowError) as error:
            raise TokensError(f"{folder / file} has a line without whole codes ({error}): {AGAIN}") from error
        wrong = next((array.shape for array in codes if len(array) != books), None)
        if wrong:
            raise TokensError(f"{folder / file} has codes {wrong}, {facts.model} has {books} codebooks")
        records = [_estimated(line, row.shape[1], facts) for line, row in zip(lines, codes, strict=True)]
        return Shard(records, codes.__getitem__)


def _line(row: Row) -> dict[str, Any]:
    codes = row.codes.tolist()
    return {"key": row.key, "code": codes[0] if len(codes) == 1 else codes} | vectors(row)


def _estimated(line: dict[str, Any], frames: int, facts: CodecInfo) -> dict[str, Any]:
    samples = round(frames * facts.sample_rate / facts.frame_rate)
    return {**line, "frames": frames, "num_samples": samples, "duration": samples / facts.sample_rate}
