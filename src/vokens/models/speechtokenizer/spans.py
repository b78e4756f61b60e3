"""SpeechTokenizer's inference over spans of time, exact for every row of a ragged batch and for any length.

Convolutions see a span and a few frames of context on either side, so spans equal the whole; rows are mirrored at
their own ends and drop out when they are over. The LSTM hands its state from span to span, backwards through each
row from its own end. Memory per span is constant; what the LSTM needs of all frames at once (20 kB a frame) moves to
a temporary file when it grows large, so hours of audio fit.
"""

import tempfile
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vokens.models.speechtokenizer.network import SEANet
from vokens.nn.lstm import SkipLSTM, State
from vokens.nn.masks import padding_mask
from vokens.nn.threads import gather, workers
from vokens.nn.windows import window
from vokens.quantize import ResidualVectorQuantizer

# Frames of a span, counted over all rows.
CONV_FRAMES = 256  # 21 MB at 64 channels; the deepest layer lays out 58 MB of weights in every call
LSTM_FRAMES = 1000  # a call costs 10 ms to lay out weights, 1000 frames cost at least 250
LAYERED_FRAMES = 125  # where the next layer starts as soon as a span is done
DEVICE_FRAMES = 6000  # off the CPU, where launches cost more than memory: 0.5 GB at 64 channels
MEMORY_BYTES = 1 << 28  # larger tensors of all frames go to a file: 256 MB are 11 minutes at 2048 channels


@dataclass(frozen=True)
class Span:
    """Frames start..end of the first `rows` rows, those that last beyond start."""

    start: int
    end: int
    rows: int


class RaggedBatch:
    """The frames (B,) of each row of a batch, longest first."""

    def __init__(self, frames: Tensor, device: torch.device) -> None:
        self.frames, self.device = frames, device
        self.total = int(frames[0])

    def spans(self, budget: int) -> list[Span]:
        """Consecutive spans of about `budget` frames over all their rows."""
        budget = budget if self.device.type == "cpu" else DEVICE_FRAMES
        spans, start = [], 0
        while start < self.total:
            rows = int((self.frames > start).sum())
            end = min(self.total, start + max(1, budget // rows))
            spans.append(Span(start, end, rows))
            start = end
        return spans

    def backward(self, span: Span) -> Tensor:
        """(T * rows,) where in (frames, rows) a span is that runs backwards from each row's own end."""
        time = torch.arange(span.start, span.end)[:, None]
        frames = self.frames[: span.rows]
        time = torch.where(time < frames, frames - 1 - time, time)
        return (time * len(self.frames) + torch.arange(span.rows)).flatten().to(self.device)

    def tensor(self, width: int, dtype: torch.dtype) -> Tensor:
        """Zeros (T, B, width), in a temporary file when large."""
        shape = (self.total, len(self.frames), width)
        size = self.total * len(self.frames) * width * dtype.itemsize
        if self.device.type != "cpu" or size <= MEMORY_BYTES:
            return torch.zeros(shape, dtype=dtype, device=self.device)
        with tempfile.TemporaryFile() as file:  # its space is freed with the tensor
            mapped = np.memmap(file, np.uint8, "w+", shape=(size,))
        return torch.from_numpy(mapped).view(dtype).view(shape)


def encode(
    encoder: SEANet,
    quantizer: ResidualVectorQuantizer,
    hop: int,
    wave: Tensor,
    lengths: Tensor,
    codebooks: range,
) -> Tensor:
    """Codes (B, K, T) of wave (B, N), rows of lengths (B,) samples, a frame each `hop` of them."""
    order = lengths.argsort(descending=True, stable=True)
    lengths = lengths[order]
    wave = wave[order.to(wave.device), : int(lengths[0])]
    rows, dtype = RaggedBatch(-(-lengths // hop), wave.device), next(encoder.parameters()).dtype
    # One frame more than the outputs' reach: a last frame that is only begun is filled with a mirrored frame.
    reach = -(-encoder.front_reach // hop) + 1
    codes = torch.zeros(len(wave), len(codebooks), rows.total, dtype=torch.int64, device=wave.device)

    def front(span: Span) -> Tensor:
        w = window(span.start, span.end, reach)
        part = w.read(wave[: span.rows, None], hop).to(dtype)
        return w.cut(encoder.front(part, w.lengths(lengths[: span.rows], part.shape[2], hop)))

    def head(span: Span, latent: Tensor) -> None:
        some = quantizer.encode(latent.transpose(1, 2), codebooks.stop, codebooks.start)
        codes[: span.rows, :, span.start : span.end] = some

    _run(encoder, rows, dtype, front, head)
    codes.mul_(padding_mask(rows.frames, rows.total)[:, None].to(wave.device))
    return codes[order.argsort().to(wave.device)]


def decode(
    decoder: SEANet,
    quantizer: ResidualVectorQuantizer,
    hop: int,
    codes: Tensor,
    lengths: Tensor,
    first_codebook: int,
) -> Tensor:
    """Wave (B, T * hop) float32 of codes (B, K, T), rows of lengths (B,) frames, zero beyond them."""
    order = lengths.argsort(descending=True, stable=True)
    codes, lengths = codes[order.to(codes.device)], lengths[order]
    rows, dtype = RaggedBatch(lengths, codes.device), next(decoder.parameters()).dtype
    wave = torch.zeros(len(codes), codes.shape[2] * hop, device=codes.device)

    def front(span: Span) -> Tensor:
        w = window(span.start, span.end, decoder.front_reach)
        latent = quantizer.decode(w.read(codes[: span.rows]), first_codebook).to(dtype)
        return w.cut(decoder.front(latent.mT, w.lengths(lengths[: span.rows], latent.shape[1])))

    def head(span: Span, sound: Tensor) -> None:
        wave[: span.rows, span.start * hop : span.end * hop] = sound[:, 0]

    _run(decoder, rows, dtype, front, head)
    wave.masked_fill_(~padding_mask(lengths * hop, wave.shape[1]).to(wave.device), 0.0)
    return wave[order.argsort().to(wave.device)]


def _run(
    net: SEANet,
    rows: RaggedBatch,
    dtype: torch.dtype,
    front: Callable[[Span], Tensor],
    head: Callable[[Span, Tensor], None],
) -> None:
    """front(span) -> (rows, width, T), the LSTM over all frames, head(span, output of net.head (rows, C, M))."""
    lstm, reach = net.lstm, net.head_reach
    x = rows.tensor(lstm.width, dtype)

    def before(span: Span) -> None:
        x[span.start : span.end, : span.rows] = front(span).permute(2, 0, 1)

    def after(span: Span) -> None:
        w = window(span.start, span.end, reach)
        skip = x[w.left : w.right, : span.rows].repeat(1, 1, lstm.num_directions)
        some = (y[w.left : w.right, : span.rows] + skip).permute(1, 2, 0)
        out = net.head(some.contiguous(), w.lengths(rows.frames[: span.rows], some.shape[2]))
        head(span, w.cut(out, out.shape[2] // some.shape[2]))

    with workers(rows.device) as pool:
        share = -(-int(rows.frames.sum()) // torch.get_num_threads())  # so that no thread is idle
        windows = rows.spans(min(CONV_FRAMES, share))
        gather([pool.submit(before, span) for span in windows])
        y = (_both_ways if lstm.num_directions == 2 else _layered)(lstm, x, rows, pool)
        gather([pool.submit(after, span) for span in windows])


def _both_ways(lstm: SkipLSTM, x: Tensor, rows: RaggedBatch, pool: Executor) -> Tensor:
    """The bidirectional LSTM of x (T, B, C): (T, B, 2C). The two directions of a layer run side by side."""

    def forward(source: Tensor, out: Tensor, layer: int) -> None:
        state: State | None = None
        for span in rows.spans(LSTM_FRAMES):
            part = source[span.start : span.end, : span.rows].contiguous()
            out[span.start : span.end, : span.rows, : lstm.width], state = lstm.step(part, state, layer)

    def backward(source: Tensor, out: Tensor, layer: int) -> None:
        state: State | None = None
        half = out.flatten(0, 1)[:, lstm.width :]
        for span in rows.spans(LSTM_FRAMES):
            where = rows.backward(span)
            part = source.flatten(0, 1).index_select(0, where).unflatten(0, (-1, span.rows))
            y, state = lstm.step(part, state, layer, backward=True)
            half.index_copy_(0, where, y.flatten(0, 1))

    for layer in range(lstm.num_layers):
        y = rows.tensor(2 * lstm.width, x.dtype)
        gather([pool.submit(direction, x, y, layer) for direction in (forward, backward)])
        x = y
    return x


def _layered(lstm: SkipLSTM, x: Tensor, rows: RaggedBatch, pool: Executor) -> Tensor:
    """The forward LSTM of x (T, B, C): (T, B, C). Each layer follows the one below, one span behind."""
    out = rows.tensor(lstm.width, x.dtype)
    Done = Future[tuple[Tensor, State]]

    def step(span: Span, layer: int, below: Done | None, earlier: Done | None) -> tuple[Tensor, State]:
        part = below.result()[0] if below else x[span.start : span.end, : span.rows].contiguous()
        y, state = lstm.step(part, earlier.result()[1] if earlier else None, layer)
        if layer == lstm.num_layers - 1:
            out[span.start : span.end, : span.rows] = y
        return y, state

    latest: list[Done | None] = [None] * lstm.num_layers
    for span in rows.spans(LAYERED_FRAMES):
        below = None
        for layer, earlier in enumerate(latest):
            below = latest[layer] = pool.submit(step, span, layer, below, earlier)
    gather([job for job in latest if job])
    return out
