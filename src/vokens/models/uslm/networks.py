"""The two networks of USLM (VALL-E, arXiv 2301.02111 §4.2): an autoregressive one for the first codebook, and a
non-autoregressive one for the remaining codebooks, one stage each, from those before it.
"""

import torch
from torch import Tensor, nn

from vokens.lm.cache import KVCache, causal_mask
from vokens.models.uslm.config import USLMConfig
from vokens.models.uslm.transformer import Positions, Transformer
from vokens.nn.masks import padding_mask
from vokens.nn.product import Linear, linear


def beside(frames: Tensor, pace: Tensor | None) -> Tensor:
    """Positions (B, N) of frames (N,) or (B, N): their index, or that of the text that is due at paces (B,)."""
    frames = frames if frames.dim() == 2 else frames[None]
    return frames if pace is None else frames / pace[:, None]


def _padding_mask(text: Tensor, text_lengths: Tensor, speech: Tensor, lengths: Tensor) -> Tensor:
    """(B, L + N) bool of text (B, L) and speech (B, N), each padded on its right."""
    return torch.cat([padding_mask(text_lengths, text.shape[1]), padding_mask(lengths, speech.shape[1])], 1)


class Autoregressive(nn.Module):
    """Text and preceding codes of the first codebook to its next code, or the end."""

    def __init__(self, config: USLMConfig) -> None:
        super().__init__()
        self.text = nn.Embedding(config.text_symbols, config.width)
        self.text_positions = Positions(config.width, config.dropout, learned=True)
        self.speech = nn.Embedding(config.end + 1, config.width)
        self.speech_positions = Positions(config.width, config.dropout, learned=True)
        self.transformer = Transformer(config, staged=False)
        self.predict = Linear(config.width, config.end + 1, bias=False)

    def forward(
        self,
        text: Tensor,
        text_lengths: Tensor,
        codes: Tensor,
        lengths: Tensor,
        cache: KVCache | None = None,
        pace: Tensor | None = None,
        dropout_mask: Tensor | None = None,
    ) -> Tensor:
        """Hidden states (B, L + N, D) of text (B, L) and codes (B, N), padded beyond (B,) lengths.

        pace: codes (B,) per symbol of text, for positions of speech beside its text. dropout_mask: (B, N), True
            where codes are masked.

        `predict` of the row of a code is the next code's logits; of the last row of the text, the first code's.
        """
        speech = self.speech(codes)
        if dropout_mask is not None:
            speech = speech.masked_fill(dropout_mask[..., None], 0.0)
        places = beside(torch.arange(codes.shape[1], device=codes.device), pace)
        speech = self.speech_positions(speech, places)
        x = torch.cat([self.text_positions(self.text(text)), speech], 1)
        padding = _padding_mask(text, text_lengths, codes, lengths)
        if cache is not None:
            cache.padding_mask = padding
        mask = causal_mask(x.shape[1], x.shape[1], x.device, padding, prefix=text.shape[1])
        return self.transformer(x, mask, cache=cache)

    def step(self, codes: Tensor, frames: Tensor, cache: KVCache, pace: Tensor | None = None) -> Tensor:
        """Hidden states (B, D) of one more code (B,) each, the code number frames (B,) of its item."""
        x = self.speech_positions(self.speech(codes)[:, None], beside(frames[:, None], pace))
        return self.transformer(x, cache.mask(1, x.device), cache=cache)[:, 0]


class NonAutoregressive(nn.Module):
    """Text and preceding codebooks to the next codebook: K - 1 stages, of which stage s predicts codebook s.

    The output layer of stage s is tied to the embedding of codebook s + 1; the last stage's is `predict`.
    """

    def __init__(self, config: USLMConfig) -> None:
        super().__init__()
        rows = [config.codebook_size + (book == 0) for book in range(config.num_codebooks)]
        self.text = nn.Embedding(config.text_symbols, config.width)
        self.text_positions = Positions(config.width, config.dropout, learned=False)
        self.speech = nn.ModuleList([nn.Embedding(count, config.width) for count in rows])
        self.speech_positions = Positions(config.width, config.dropout, learned=False)
        self.stages = nn.ParameterList([torch.randn(1, config.width) for _ in rows[1:]])
        self.transformer = Transformer(config, staged=True)
        self.predict = Linear(config.width, config.codebook_size, bias=False)
        # Embeddings are tied output layers: with torch's std of 1 logits start at sqrt(width), and the small recipe's
        # losses rose from 7 to 12 and more in 60 steps; with this they fall.
        for table in self.speech:
            nn.init.normal_(table.get_parameter("weight"), std=config.width**-0.5)

    def forward(
        self, text: Tensor, text_lengths: Tensor, speech: Tensor, lengths: Tensor, stage: int
    ) -> Tensor:
        """Hidden states (B, L + N, D) of text (B, L) and embedded speech (B, N, D) in stage 1 ... K - 1."""
        x = torch.cat([self.text_positions(self.text(text)), self.speech_positions(speech)], 1)
        padding = _padding_mask(text, text_lengths, speech, lengths)
        return self.transformer(x, padding[:, None, None], self.stages[stage - 1][0])

    def embed(self, codes: Tensor, book: int) -> Tensor:
        """Embeddings (B, N, D) of codes (B, N) of a codebook."""
        return self.speech[book](codes)

    def logits(self, hidden: Tensor, stage: int) -> Tensor:
        """Logits (..., codebook_size) of hidden states (..., D) of a stage."""
        if stage == len(self.stages):
            return self.predict(hidden)
        weight = self.speech[stage + 1].get_parameter("weight")
        return linear(hidden, weight)
