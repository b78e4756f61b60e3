"""ASR probe trained from scratch on frozen tokens, for their text content (SLMTokBench, arXiv 2308.16692 §3.2).

Summed codebook embeddings; two bidirectional LSTM layers; CTC over characters. To be independent of the frame rate, all
tokenizers are read at about 25 steps a second, each step emitting so many CTC frames that there are 50 a second.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vokens.bench.options import SlmTok
from vokens.nn.masks import padding_mask
from vokens.text.transcripts import frames_needed, read
from vokens.tokens import Tokens

ALPHABET = " 'abcdefghijklmnopqrstuvwxyz"  # symbols 1 to 28, after CTC's blank
STEP_RATE, EMISSION_RATE = 25.0, 50.0  # Hz
DROPOUT, LARGEST_GRADIENT = 0.2, 1.0
LEARNING_RATE, WARMUP = 4e-3, 0.1  # maximum of AdamW, after a tenth of the steps; then cosine decay to 0


class Probe(nn.Module):
    """Tokens (B, K, T) to log-probabilities of CTC frames. stack, emissions: token and CTC frames per LSTM step."""

    def __init__(self, codebook_sizes: Sequence[int], frame_rate: float, width: int) -> None:
        super().__init__()
        self.stack, self.emissions = grid(frame_rate)
        self.embeddings = nn.ModuleList(nn.Embedding(size, width) for size in codebook_sizes)
        self.layers = nn.ModuleList(BiLSTM(size, width) for size in (self.stack * width, 2 * width))
        self.out = nn.Linear(2 * width, self.emissions * (1 + len(ALPHABET)))

    def frames(self, lengths: Tensor) -> Tensor:
        """Number of CTC frames of rows with `lengths` token frames."""
        return -(-lengths // self.stack) * self.emissions

    def forward(self, codes: Tensor, lengths: Tensor) -> Tensor:
        """ln p (B, F, 1 + len(ALPHABET)), the blank first, of codes (B, K, T) with lengths (B,) frames.

        Each row, up to its frames(lengths), is independent of the other rows.
        """
        device = self.out.weight.device
        codes, lengths = codes.to(device), lengths.to(device)
        x = torch.stack([embed(book) for embed, book in zip(self.embeddings, codes.unbind(1), strict=True)])
        x = x.sum(0) * padding_mask(lengths, codes.shape[2])[..., None]  # (B, T, D)
        x = F.pad(x, (0, 0, 0, -x.shape[1] % self.stack)).unflatten(1, (-1, self.stack)).flatten(2)
        steps = -(-lengths // self.stack)
        for layer in self.layers:
            x = layer(F.dropout(x, DROPOUT, self.training), steps)
        return self.out(x).unflatten(-1, (self.emissions, -1)).flatten(1, 2).log_softmax(-1)


def grid(frame_rate: float) -> tuple[int, int]:
    """Token frames and CTC frames per LSTM step."""
    stack = max(1, round(frame_rate / STEP_RATE))
    return stack, math.ceil(EMISSION_RATE * stack / frame_rate)


class BiLSTM(nn.Module):
    """One layer in both directions: x (B, T, in), lengths (B,) -> (B, T, 2 * width).

    The backward direction reads each row from its own end, so that padding always comes last. Packed sequences would do
    the same at a fifth of the speed on a CPU (1.24 s against 0.21 s for 8 rows of 300 steps, width 128).
    """

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.ahead = nn.LSTM(size, width, batch_first=True)
        self.back = nn.LSTM(size, width, batch_first=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return torch.cat([self.ahead(x)[0], turned(self.back(turned(x, lengths))[0], lengths)], -1)


def turned(x: Tensor, lengths: Tensor) -> Tensor:
    """x (B, T, D) with the first lengths (B,) frames of each row reversed, the others in place."""
    place = torch.arange(x.shape[1], device=x.device).expand(len(x), -1)
    opposite = torch.where(place < lengths[:, None], lengths[:, None] - 1 - place, place)
    return x.gather(1, opposite[..., None].expand_as(x))


def train_probe(
    tokens: Tokens,
    texts: Sequence[list[int]],
    options: SlmTok,
    report: Callable[[int, float], None] = lambda step, loss: None,
) -> Probe:
    """Train a probe on `tokens` (B items) with texts, B lists of symbols; returned in evaluation mode.

    options: probe_steps, probe_seconds, probe_width, seed (of weights, order and dropout) and device.
    report: called with the number of the step and its loss, -ln q(text | tokens) per character.
    Deterministic on one machine, independent of the global random state.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        probe = Probe(tokens.codebook_sizes, tokens.frame_rate, options.probe_width)
        probe.to(options.device).train()
        optimizer = torch.optim.AdamW(probe.parameters(), LEARNING_RATE, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, options.probe_steps))
        batches = _batches(tokens, options)
        for step in range(options.probe_steps):
            rows = next(batches)
            lengths, said = tokens.lengths[rows], [texts[row] for row in rows]
            codes = tokens.codes[rows, :, : int(lengths.max())]
            scores = ctc_scores(probe(codes, lengths), probe.frames(lengths), said)
            loss = -scores.sum() / sum(map(len, said))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(probe.parameters(), LARGEST_GRADIENT)
            optimizer.step()
            schedule.step()
            report(step, loss.item())
    return probe.eval()


def _rate(step: int, steps: int) -> float:
    rise = WARMUP * steps
    return min((step + 1) / rise, 0.5 * (1 + math.cos(math.pi * step / steps)))


def _batches(tokens: Tokens, options: SlmTok) -> Iterator[list[int]]:
    """Endless batches of similar length, up to `probe_seconds` each or one recording, in random order."""
    draw = torch.Generator().manual_seed(options.seed)
    frames = options.probe_seconds * tokens.frame_rate
    order = tokens.lengths.argsort(stable=True).tolist()
    while True:
        start = int(torch.randint(len(order), (1,), generator=draw))  # other batches in each epoch
        cut, rows = [], []
        for row in order[start:] + order[:start]:
            longest = max(int(tokens.lengths[other]) for other in [*rows, row])
            if rows and longest * (len(rows) + 1) > frames:
                cut, rows = [*cut, rows], []
            rows.append(row)
        cut.append(rows)
        yield from (cut[place] for place in torch.randperm(len(cut), generator=draw).tolist())


def fits(text: Sequence[int], num_frames: int, frame_rate: float) -> bool:
    """True if CTC can align a text to so many token frames."""
    stack, emissions = grid(frame_rate)
    return frames_needed(text) <= -(-num_frames // stack) * emissions


@torch.inference_mode()
def transcribe(probe: Probe, tokens: Tokens, rows_at_once: int = 16) -> list[str]:
    """Greedy CTC transcript of each item."""
    texts = []
    for start in range(0, len(tokens), rows_at_once):
        part = tokens[start : start + rows_at_once]
        best = probe(part.codes, part.lengths).argmax(-1)
        for row, frames in zip(best, probe.frames(part.lengths).tolist(), strict=True):
            texts.append(read(row[:frames].tolist(), ALPHABET))
    return texts


@torch.inference_mode()
def log_likelihoods(
    probe: Probe, tokens: Tokens, texts: Sequence[list[int]], others: Tensor | None = None
) -> Tensor:
    """ln q(text | tokens) in nats, -inf where the text does not fit the item's frames.

    Of each item with its own text, (N,), or, if others (N, M) is given, with the texts of these indices, (N, M).
    """
    scores = []
    for number, item in enumerate(tokens):
        chosen = [number] if others is None else others[number].tolist()
        frames = probe(item.codes, item.lengths)
        lengths = probe.frames(item.lengths).expand(len(chosen))
        said = [texts[other] for other in chosen]
        scores.append(ctc_scores(frames.expand(len(chosen), -1, -1), lengths, said))
    bits = torch.stack(scores).cpu()
    return bits[:, 0] if others is None else bits


def ctc_scores(frames: Tensor, lengths: Tensor, texts: Sequence[list[int]]) -> Tensor:
    """CTC log-likelihoods (B,) of texts over frames (B, F, symbols) with lengths (B,)."""
    flat = torch.tensor([symbol for text in texts for symbol in text], device=frames.device)
    sizes = torch.tensor([len(text) for text in texts], device=frames.device)
    return -F.ctc_loss(frames.transpose(0, 1), flat, lengths.to(frames.device), sizes, reduction="none")
