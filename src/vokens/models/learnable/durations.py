"""Durations of a text's symbols in speech tokens: their prediction (FastSpeech, arXiv 1905.09263 §3.3), and the
positions that follow from them."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vokens.errors import ConfigError
from vokens.nn.masks import padding_mask
from vokens.nn.product import Linear

WIDTH, LAYERS, KERNEL = 128, 3, 5  # 0.3 million weights; a symbol's duration depends on 6 at either side


class DurationPredictor(nn.Module):
    """Text ids and a speaker token to the expected number of speech tokens of each id.

    symbols: rows of the ids' table. speaker: width of the speaker token.
    """

    def __init__(self, symbols: int, speaker: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(symbols, WIDTH)
        self.speaker = Linear(speaker, WIDTH)
        self.layers = nn.ModuleList(nn.Conv1d(WIDTH, WIDTH, KERNEL, padding="same") for _ in range(LAYERS))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(LAYERS))
        self.out = Linear(WIDTH, 1)

    def forward(self, text: Tensor, lengths: Tensor, speaker: Tensor) -> Tensor:
        """Logarithms (B, L) of the expected durations of ids (B, L), lengths (B,), for speaker tokens (B, W)."""
        mask = padding_mask(lengths, text.shape[1])[..., None]
        x = self.embedding(text) + self.speaker(speaker)[:, None]
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = x + F.gelu(norm(layer((x * mask).transpose(1, 2)).transpose(1, 2)))
        return self.out(x)[..., 0]

    def expected(self, text: Tensor, speaker: Tensor) -> Tensor:
        """Expected durations (L,) of one text's ids (L,) for a speaker token (1, W)."""
        lengths = torch.tensor([len(text)], device=text.device)
        return self(text[None], lengths, speaker)[0].float().exp()


def duration_loss(prediction: Tensor, durations: Tensor, lengths: Tensor) -> Tensor:
    """Mean Poisson negative log-likelihood of durations (B, L) under logarithms of expected ones (B, L).

    It is least at the mean, so that expected durations add up to an utterance's length.
    """
    losses = F.poisson_nll_loss(prediction.float(), durations.float(), log_input=True, reduction="none")
    return losses[padding_mask(lengths, prediction.shape[1])].mean()


def frame_positions(durations: Tensor, text_lengths: Tensor, speech_lengths: Tensor) -> Tensor:
    """Positions (B, S + 1) in the text, in symbols from its start, of the middles of S speech tokens and of the end.

    durations (B, L), at least one above 0 a row, are stretched to the speech's length (B,). Within a symbol
    tokens are evenly spaced; after the last all are at the text's end.
    """
    mask = padding_mask(text_lengths, durations.shape[1])
    ends = (durations.double() * mask).cumsum(1)
    ends = ends * (speech_lengths / ends[:, -1])[:, None]
    middle = (torch.arange(int(speech_lengths.max()) + 1, device=durations.device) + 0.5).double()
    middle = middle.expand(len(ends), -1).contiguous()
    symbol = torch.searchsorted(ends, middle, right=True)
    last = text_lengths[:, None] - 1
    own = symbol.clamp(max=ends.shape[1] - 1)
    start = F.pad(ends, (1, 0)).gather(1, own)
    length = ends.diff(dim=1, prepend=ends.new_zeros(len(ends), 1)).gather(1, own)
    place = symbol + (middle - start) / length.clamp(min=1e-9)
    return torch.where(symbol > last, text_lengths[:, None].double(), place).float()


def expected_positions(durations: Tensor, prompt: int, prompt_speech: int, speed: float) -> Tensor:
    """Positions (S + 1,) in the text of all speech tokens and of the end, from expected durations (L,).

    prompt: ids that are the prompt's, which take its `prompt_speech` tokens and set the pace of the rest. Speech of a
    prompt without text stands at the start. Raises ConfigError for a speed that is not above 0.
    """
    if speed <= 0:
        raise ConfigError(f"speed = {speed}: numbers above 0 are accepted")
    own, pace = durations[prompt:], 1.0
    if prompt:
        stretch = prompt_speech / float(durations[:prompt].sum())
        pace = stretch or 1.0  # a prompt's text without its speech gives no pace
        durations = durations * stretch
    durations = torch.cat([durations[:prompt], own * (pace / speed)])
    total = (prompt_speech if prompt else 0) + max(1, round(float(durations[prompt:].sum())))
    lengths = (torch.tensor([n], device=durations.device) for n in (len(durations), total))
    frames = frame_positions(durations[None], *lengths)[0]
    return frames if prompt else torch.cat([frames.new_zeros(prompt_speech), frames])
