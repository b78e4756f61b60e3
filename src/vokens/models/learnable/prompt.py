"""Builder of one utterance's input: embeddings and positions, in the order in which they are read."""

from typing import Self

import torch
from torch import Tensor, nn

from vokens.models.learnable.layout import Alignment, Pace, text_position


class PromptBuilder:
    """Builds the input of text and speech piece by piece.

    Args:
        marks: (2, W), start and task. words, tokens: tables of the text's and of the speech's ids. voice: the speaker
            token (1, W), or (0, W). clock: positions of speech.

    Attributes:
        texts, speeches: how many of each were appended.
    """

    def __init__(
        self, marks: Tensor, words: nn.Embedding, tokens: nn.Embedding, voice: Tensor, clock: Pace | Alignment
    ) -> None:
        self.words, self.tokens, self.clock, self.texts, self.speeches = words, tokens, clock, 0, 0
        start, self.task_mark = marks.split(1)
        self.pending = [torch.cat([start, voice])]
        self.places = [torch.arange(1.0 + len(voice))]

    def text(self, ids: Tensor) -> Self:
        self.places.append(text_position(torch.arange(self.texts, self.texts + len(ids))).float())
        self.pending.append(self.words(ids))
        self.texts += len(ids)
        return self

    def task(self) -> Self:
        self.places.append(self.clock.task(torch.tensor([self.speeches])))
        self.pending.append(self.task_mark)
        return self

    def speech(self, ids: Tensor) -> Self:
        places = torch.arange(self.speeches, self.speeches + len(ids))
        self.places.append(self.clock.speech(places))
        self.pending.append(self.tokens(ids))
        self.speeches += len(ids)
        return self

    def decoded(self, tokens: list[int]) -> None:
        """Append sampled tokens, all but the last of which are in the KV cache."""
        self.speeches += max(0, len(tokens) - 1)
        self.speech(torch.tensor(tokens[-1:], dtype=torch.long, device=self.task_mark.device))

    def take(self) -> tuple[Tensor, Tensor]:
        """Embeddings (n, W) of what was appended since the last call, and positions (n,)."""
        x, places = torch.cat(self.pending), torch.cat(self.places)
        self.pending, self.places = [], []
        return x, places.to(x.device)
