"""Layout of text and speech in a sequence, with the target of each position (CosyVoice 2, arXiv 2412.10117, §2.3).

Unistream: start, speaker, text, task, speech. Bistream: groups of 5 text and 15 speech tokens, then the rest as in
unistream. Layouts are table indices alone, so one gather embeds a whole batch.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vokens.models.learnable.config import LearnableLMConfig

IGNORE = -1
START, SPEAKER, TASK, TEXT = 0, 1, 2, 3  # rows of a table: three single ones, then text, then speech


@dataclass(frozen=True)
class Layout:
    """Sequences of B utterances, padded with IGNORE to L."""

    # (B, L) int64 indices into the utterance's table [start, speaker, task, text ..., speech ...].
    rows: Tensor
    target: Tensor  # (B, L) int64, the next id; IGNORE where there is none
    mixed: Tensor  # (B,) bool, True for bistream rows
    widest: int  # T, text rows of the table

    @classmethod
    def of(
        cls,
        config: LearnableLMConfig,
        text_lengths: list[int],
        speech: Tensor,
        speech_lengths: list[int],
        bistream: list[bool],
        speaker: bool,
        loss_mask: Tensor | None = None,
    ) -> Self:
        """Layouts of speech ids (B, S). The table's text part is as wide as the longest text.

        speaker: whether the sequence has a speaker token. loss_mask: (B, S) bool, which speech tokens are targets;
        None for all.
        """
        widest = max(text_lengths)
        target_ids = speech if loss_mask is None else speech.masked_fill(~loss_mask, IGNORE)
        rows, targets, mixes = [], [], []
        for i, (text, count, mixed) in enumerate(zip(text_lengths, speech_lengths, bistream, strict=True)):
            ids = target_ids[i, :count].cpu()
            mixes.append(mixed and alternates(text, count, config.mix))
            inputs, target = _sequence(config, text, ids, mixes[-1])
            if speaker:
                inputs, target = [START, SPEAKER, *inputs[1:]], [IGNORE, *target]
            # negative numbers are speech, counted from its own start: they move behind the padded text
            rows.append(torch.tensor([p if p >= 0 else TEXT + widest - 1 - p for p in inputs]))
            targets.append(torch.tensor(target))
        padded = [pad_sequence(part, batch_first=True, padding_value=IGNORE) for part in (rows, targets)]
        return cls(*(part.to(speech.device) for part in (*padded, torch.tensor(mixes))), widest=widest)

    def embed(self, table: Tensor) -> Tensor:
        """Embeddings (B, L, W) of tables (B, 3 + T + S, W), zeros in the padding."""
        embeddings = table.gather(1, self.rows.clamp(min=0)[..., None].expand(-1, -1, table.shape[2]))
        return embeddings * (self.rows >= 0)[..., None]

    def speech(self, values: Tensor) -> Tensor:
        """Scatter a mask (B, S) of speech tokens to the sequence (B, L); False elsewhere."""
        place = self.rows - TEXT - self.widest
        return values.gather(1, place.clamp(min=0)) & (place >= 0)

    def positions(self, clock: "Pace | Alignment") -> Tensor:
        """Positions (B, L) float32 of speech beside its text."""
        rows = self.rows
        speech = rows - TEXT - self.widest
        position = torch.where(rows < TEXT, rows.clamp(min=0), text_position(rows - TEXT)).float()
        position = torch.where(rows == TASK, clock.task((speech >= 0).cumsum(1)), position)
        return torch.where(speech >= 0, clock.speech(speech), position)


def text_position(n: Tensor) -> Tensor:
    """Rotary positions of text ids n, after start and speaker."""
    return n + 2


@dataclass(frozen=True)
class Pace:
    """Rotary positions of speech beside its text at an even pace."""

    pace: Tensor | float  # speech tokens per text id: (B, 1) of a batch

    def task(self, count: Tensor) -> Tensor:
        """Positions (n,) or (B, n) of task marks after `count` speech tokens."""
        return text_position(count / self.pace)

    def speech(self, index: Tensor) -> Tensor:
        """Positions (n,) or (B, n) of speech tokens with these indices."""
        return text_position((index + 0.5) / self.pace)


@dataclass(frozen=True)
class Alignment:
    """Rotary positions by an alignment: each input has that of the text of the speech token that it predicts."""

    frames: Tensor  # (S + 1,) or (B, S + 1), positions in the text of the speech tokens and of the end

    def task(self, count: Tensor) -> Tensor:
        return self.speech(count - 1)

    def speech(self, index: Tensor) -> Tensor:
        return text_position(self.frames.gather(-1, (index + 1).clamp(0, self.frames.shape[-1] - 1)))


def alternates(text: int, speech: int, mix: tuple[int, int]) -> bool:
    """Whether an utterance can be bistream: it has more than mix[1] / mix[0] speech tokens per text token."""
    return speech * mix[0] > text * mix[1]


def _sequence(
    config: LearnableLMConfig, text: int, speech: Tensor, mixed: bool
) -> tuple[list[int], list[int]]:
    """Table indices and targets of one utterance without its speaker; speech token s is index -1 - s.

    mixed: groups of text and speech alternate until the text ends.
    """
    places, targets = [START], [IGNORE]
    ids, text_done, speech_done = speech.tolist(), 0, 0
    words, share = config.mix
    while mixed and text - text_done >= words:
        places += range(TEXT + text_done, TEXT + text_done + words)
        places += (-1 - s for s in range(speech_done, speech_done + share))
        targets += [IGNORE] * (words - 1) + ids[speech_done : speech_done + share] + [config.fill]
        text_done, speech_done = text_done + words, speech_done + share
    places += [*range(TEXT + text_done, TEXT + text), TASK, *(-1 - s for s in range(speech_done, len(ids)))]
    targets += [IGNORE] * (text - text_done) + ids[speech_done:] + [config.end]
    return places, targets
