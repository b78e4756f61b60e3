"""Layout of text and speech in a sequence, with the target of each place (CosyVoice 2, arXiv 2412.10117, §2.3).

Unistream: start, speaker, text, task, speech. Bistream: groups of 5 text and 15 speech tokens, then the rest as in
unistream. Layouts are made of places alone, so one gather fills in the embeddings of a whole batch.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

IGNORE = -1
START, SPEAKER, TASK, TEXT = 0, 1, 2, 3  # rows of a table: three single ones, then text, then speech


@dataclass(frozen=True)
class Layout:
    """Sequences of B utterances, padded with IGNORE to L.

    Attributes:
        rows: (B, L) int64, which row of the utterance's table [start, speaker, task, text ..., speech ...] stands here.
        target: (B, L) int64, the id to come next; IGNORE where there is none. lengths: (B,) int64.
        mixed: (B,) bool, which alternate. widest: T, text rows of the table.
    """

    rows: Tensor
    target: Tensor
    lengths: Tensor
    mixed: Tensor
    widest: int

    @classmethod
    def of(
        cls,
        text_lengths: list[int],
        speech: Tensor,
        speech_lengths: list[int],
        bistream: list[bool],
        *,
        mix: tuple[int, int],
        end: int,
        fill: int,
        speaker: bool,
        loss_mask: Tensor | None = None,
    ) -> Self:
        """Layouts of speech ids (B, S). The table's text part is as wide as the longest text.

        loss_mask: (B, S) bool, which speech tokens are targets; None for all.
        """
        widest = max(text_lengths)
        wanted_ids = speech if loss_mask is None else speech.masked_fill(~loss_mask, IGNORE)
        rows, targets, mixes = [], [], []
        for i, (text, count, mixed) in enumerate(zip(text_lengths, speech_lengths, bistream, strict=True)):
            ids = wanted_ids[i, :count].cpu()
            mixes.append(mixed and alternates(text, count, mix))
            places, wanted = _sequence(text, ids, mix if mixes[-1] else None, end, fill)
            if speaker:
                places, wanted = [START, SPEAKER, *places[1:]], [IGNORE, *wanted]
            # speech is counted from its own start, and marked by negative numbers, until the table's width is known
            rows.append(torch.tensor([p if p >= 0 else TEXT + widest - 1 - p for p in places]))
            targets.append(torch.tensor(wanted))
        lengths = torch.tensor([len(row) for row in rows])
        padded = [pad_sequence(part, batch_first=True, padding_value=IGNORE) for part in (rows, targets)]
        device = speech.device
        return cls(
            padded[0].to(device),
            padded[1].to(device),
            lengths.to(device),
            torch.tensor(mixes).to(device),
            widest,
        )

    def embed(self, table: Tensor) -> Tensor:
        """Embeddings (B, L, W) of tables (B, 3 + T + S, W), zeros in the padding."""
        found = table.gather(1, self.rows.clamp(min=0)[..., None].expand(-1, -1, table.shape[2]))
        return found * (self.rows >= 0)[..., None]

    def speech(self, values: Tensor) -> Tensor:
        """A mask (B, S) of speech tokens, at their places (B, L); False elsewhere."""
        place = self.rows - TEXT - self.widest
        return values.gather(1, place.clamp(min=0)) & (place >= 0)

    def progress(self, pace: Tensor) -> Tensor:
        """Positions (B, L) float32 of speech beside its text, for paces (B,): see `text_position`."""
        rows, pace = self.rows, pace[:, None]
        is_speech = rows >= TEXT + self.widest
        said = is_speech.cumsum(1)
        position = torch.where(rows < TEXT, rows.clamp(min=0), text_position(rows - TEXT)).float()
        position = torch.where(rows == TASK, speech_position(said, pace, 0.0), position)
        return torch.where(is_speech, speech_position(rows - TEXT - self.widest, pace), position)

    def aligned(self, frames: Tensor) -> Tensor:
        """Positions (B, L) float32 where an input stands beside the text of the speech token that it predicts.

        frames: (B, S + 1), places in the text of each speech token and of the end. Text is known from the start.
        """
        rows = self.rows
        position = torch.where(rows < TEXT, rows.clamp(min=0), text_position(rows - TEXT)).float()
        coming = torch.where(rows == TASK, 0, rows - TEXT - self.widest + 1)
        place = text_position(frames.gather(1, coming.clamp(0, frames.shape[1] - 1)))
        return torch.where((rows == TASK) | (coming > 0), place, position)


def text_position(n: Tensor) -> Tensor:
    """Rotary positions of text ids n, behind the start and the speaker."""
    return n + 2


def speech_position(s: Tensor, pace: Tensor | float, middle: float = 0.5) -> Tensor:
    """Rotary positions of speech tokens s, `pace` of which belong to a text id: where that text stands."""
    return text_position((s + middle) / pace)


@dataclass(frozen=True)
class Pace:
    """Positions of speech beside its text at an even pace, in speech tokens of a text id."""

    pace: float

    def task(self, said: int) -> Tensor:
        """Position (1,) of the task mark behind so many speech tokens."""
        return speech_position(torch.tensor([said]), self.pace, 0.0)

    def speech(self, said: Tensor) -> Tensor:
        """Positions (n,) of speech tokens of these numbers."""
        return speech_position(said, self.pace)


@dataclass(frozen=True)
class Alignment:
    """Positions of speech beside its text by the places (S + 1,) in the text of its tokens and its end."""

    frames: Tensor

    def task(self, said: int) -> Tensor:
        """Position (1,) of the task mark behind so many speech tokens."""
        return self.speech(torch.tensor([said - 1]))

    def speech(self, said: Tensor) -> Tensor:
        """Positions (n,) of speech tokens of these numbers: where the next ones stand."""
        return text_position(self.frames[(said + 1).clamp(max=len(self.frames) - 1)])


def alternates(text: int, speech: int, mix: tuple[int, int]) -> bool:
    """Whether an utterance can be said in groups: with more than mix[1] / mix[0] speech tokens for each of its text."""
    return speech * mix[0] > text * mix[1]


def _sequence(
    text: int, speech: Tensor, mix: tuple[int, int] | None, end: int, fill: int
) -> tuple[list[int], list[int]]:
    """Places and targets of one utterance without its speaker; speech token s is the place -1 - s.

    Groups alternate where `mix` is given; speech outlasts them.
    """
    places, wanted = [START], [IGNORE]
    ids, said, heard = speech.tolist(), 0, 0
    if mix is not None:
        while text - said >= mix[0]:
            places += range(TEXT + said, TEXT + said + mix[0])
            places += (-1 - s for s in range(heard, heard + mix[1]))
            wanted += [IGNORE] * (mix[0] - 1) + ids[heard : heard + mix[1]] + [fill]
            said, heard = said + mix[0], heard + mix[1]
    places += [*range(TEXT + said, TEXT + text), TASK, *(-1 - s for s in range(heard, len(ids)))]
    wanted += [IGNORE] * (text - said) + ids[heard:] + [end]
    return places, wanted
