"""Preference pairs: two sets of tokens for the same text, one chosen over the other (DPO).

A file of pairs is jsonl: {"text": ..., "chosen": FILE, "rejected": FILE, "path": RECORDING, "speaker": ...} in a line,
where FILEs are of tokens, RECORDING is of the voice and may be left out, and paths start from the file's folder.
"""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from vokens.data.items import CodecInfo
from vokens.errors import ConfigError
from vokens.text.files import iter_lines
from vokens.tokens import Tokens
from vokens.train.data import Clip
from vokens.train.text_tokens import SpokenTexts, TextBatch


@dataclass(frozen=True)
class Pairs:
    """Preference pairs. chosen: corpus of the chosen answers; rejected: tokens (T, K) of the rejected ones."""

    chosen: SpokenTexts
    rejected: list[np.ndarray]

    def both(self, batch: TextBatch) -> TextBatch:
        """A batch of chosen answers (B rows), and after them the rejected ones: 2 B rows."""
        others = [torch.from_numpy(self.rejected[row]) for row in batch.rows]
        codes = [code[:n] for code, n in zip(batch.codes, batch.lengths.tolist(), strict=True)]
        return TextBatch(
            batch.rows * 2,
            batch.text.repeat(2, 1),
            batch.text_lengths.repeat(2),
            pad_sequence([*codes, *others], batch_first=True),
            torch.cat([batch.lengths, torch.tensor([len(code) for code in others])]),
        )


def read_pairs(source: str | Path) -> Pairs:
    """Read the pairs of a file. Raises ConfigError for lines without text or tokens, or tokens of different codecs."""
    source = Path(source)
    if not source.is_file():
        raise ConfigError(f"{source} is no file: pairs are jsonl, one object per line")
    clips, answers, facts = [], [], set()
    for number, line in enumerate(iter_lines(source), start=1):
        if line.strip():
            clip, pair = _pair(line, source, number)
            clips.append(clip)
            answers.append([tokens.codes[0].T.numpy().astype(np.int64) for tokens in pair])
            facts |= {CodecInfo(*(getattr(each, field.name) for field in fields(CodecInfo))) for each in pair}
    if len(facts) != 1:
        raise ConfigError(f"{source} holds tokens of {len(facts)} codecs: pairs of one are needed")
    chosen, rejected = [pair[0] for pair in answers], [pair[1] for pair in answers]
    frames = np.array([len(codes) for codes in chosen])
    return Pairs(SpokenTexts(clips, frames, facts.pop(), chosen.__getitem__), rejected)


def _pair(line: str, source: Path, number: int) -> tuple[Clip, list[Tokens]]:
    try:
        values: dict[str, Any] = json.loads(line)
        pair = [Tokens.load(source.parent / values[name]) for name in ("chosen", "rejected")]
        path = source.parent / values["path"] if values.get("path") else Path()
        return Clip(f"{number}", path, str(values["text"]), speaker=values.get("speaker")), pair
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{source}, line {number}: {error!r}; give text, chosen and rejected, the last two files of tokens"
        ) from error
