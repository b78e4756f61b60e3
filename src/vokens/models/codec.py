"""The base of every codec: audio to `Tokens` and back, in batches that change nothing, saved as one folder.

A system subclasses `Codec` and implements the two batch functions; loading, resampling, batching by duration,
trimming and checks on tokens stand here once.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from vokens import audio
from vokens.batching import batches
from vokens.errors import ConfigError, TokensError
from vokens.models.pretrained import Pretrained
from vokens.nn.windows import Window, window, windows
from vokens.one_or_list import type_name
from vokens.quantize import ResidualVectorQuantizer
from vokens.registry import other_weights
from vokens.tokens import Tokens, padded_ids

Audio = audio.Source
SPAN_FRAMES = 1000  # 20 s at 50 Hz: mini is as fast as with more, and its contexts add 3 and 5 % of work


@dataclass(frozen=True)
class CodecOutput:
    """Output of a codec's training forward."""

    wave: Tensor  # (B, N) resynthesis
    codes: Tensor  # (B, K, T) int64
    commit: Tensor  # () commitment loss, mean over codebooks
    semantic: Tensor  # (B, T, S) projection of the first codebook, to be matched with a teacher's features


@dataclass
class _Encoded:
    """State of one recording while its spans are encoded."""

    parts: list[Tensor] = field(default_factory=list)  # (K, t) int32
    num_samples: int = 0
    vector: Tensor | None = None  # (D,)


class Codec(Pretrained):
    """Speech to discrete tokens and back."""

    # Whether `decode` exists; semantic tokenizers only encode, another model speaks.
    decodes: ClassVar[bool] = True
    # Frames on either side of a frame that it depends on, as decode_context. Long audio is computed in spans of
    # `SPAN_FRAMES` with this context, which equal the whole; None where all depends on all, or where a system
    # bounds its own memory.
    encode_context: int | None = None
    decode_context: int | None = None
    sample_rate: int  # Hz
    hop_length: int  # samples per frame
    codebook_sizes: tuple[int, ...]  # entries of each codebook, K of them
    quantizer: ResidualVectorQuantizer
    decoder: Any  # a module, latents (B, T, D) -> wave, where it decodes
    semantic: nn.Module  # first codebook (B, T, D) -> teacher's features (B, T, S)

    # What a system implements ------------------------------------------------------------------------------

    def encode_batch(self, wave: Tensor, lengths: Tensor, num_codebooks: int) -> tuple[Tensor, Tensor]:
        """Codes (B, K, T) int64 and frame counts (B,) of wave (B, N), zero beyond lengths (B,) samples.

        Batch-invariant: each row must equal the result of the row alone.
        """
        raise NotImplementedError

    def decode_batch(self, codes: Tensor, lengths: Tensor, first_codebook: int) -> Tensor:
        """Wave (B, T * hop_length) of codes (B, K, T); batch-invariant up to lengths (B,) frames."""
        raise NotImplementedError

    def global_batch(self, wave: Tensor, lengths: Tensor) -> Tensor | None:
        """Global vectors (B, D) of wave (B, N) that decoding needs beside codes; None for codecs without."""
        return None

    def decode_global_batch(
        self, codes: Tensor, lengths: Tensor, first_codebook: int, vector: Tensor | None
    ) -> Tensor:
        """As `decode_batch`, with the rows' vectors (B, D) for codecs that have them."""
        return self.decode_batch(codes, lengths, first_codebook)

    def latent(self, wave: Tensor) -> Tensor:
        """Training: the encoder's output (B, T, D) of wave (B, N), N a multiple of hop_length."""
        raise NotImplementedError

    def synthesis(self, latent: Tensor) -> Tensor:
        """Training: the decoder's wave (B, N) of latent (B, T, D)."""
        raise NotImplementedError

    def forward(
        self,
        wave: Tensor,
        *,
        keep: Tensor | None = None,
        generator: torch.Generator | None = None,
        quantize: bool = True,
    ) -> CodecOutput:
        """Training pass over wave (B, N), N a multiple of hop_length.

        keep, generator: as in ResidualVectorQuantizer. quantize: False passes the latent unquantized (a warm start).
        """
        latent = self.latent(wave)
        if not quantize:
            codes = torch.zeros(len(latent), self.num_codebooks, latent.shape[1], dtype=torch.int64)
            return CodecOutput(self.synthesis(latent), codes, latent.new_zeros(()), self.semantic(latent))
        quantized = self.quantizer(latent, keep=keep, generator=generator)
        wave, semantic = self.synthesis(quantized.latent), self.semantic(quantized.first)
        return CodecOutput(wave, quantized.codes, quantized.commit.mean(), semantic)

    def add_weight_norm(self) -> Self:
        """Add weight norm for training to convolutions that are published with it; the function stays the same."""
        return self

    # What users call ---------------------------------------------------------------------------------------

    @property
    def frame_rate(self) -> float:
        return self.sample_rate / self.hop_length

    @property
    def num_codebooks(self) -> int:
        return len(self.codebook_sizes)

    def num_frames(self, num_samples: Tensor | int) -> Any:
        """Frames of num_samples samples: ceil(N / hop_length)."""
        return -(-num_samples // self.hop_length)

    @torch.no_grad()
    def encode(
        self,
        source: Audio | Sequence[Audio],
        sample_rate: int | None = None,
        *,
        num_codebooks: int | None = None,
        batch_seconds: float = 120.0,
    ) -> Tokens:
        """Tokens of one recording or a list of them.

        Args:
            source: path, file object, encoded bytes, array or tensor (T,) or (C, T) in [-1, 1], (array, rate), a
                row of datasets, or a list of those, of any lengths. Channels are averaged; other rates are resampled.
            sample_rate: rate of arrays and tensors in Hz; files know theirs.
            num_codebooks: how many codebooks to compute, all by default.
            batch_seconds: padded audio per forward pass, in seconds. It bounds memory and changes nothing else.

        Raises AudioError for audio that is empty, not finite or not readable; ConfigError for num_codebooks outside
        1..K.
        """
        count = self._count_codebooks(num_codebooks)
        items: dict[int, _Encoded] = {}
        waves: dict[int, np.ndarray] = {}
        for row, wave in enumerate(self._waves(source, sample_rate)):
            if isinstance(wave, audio.Recording):  # at once, so that one file is open at a time
                items[row] = self._encode_rows([wave], count)[0]
            else:
                waves[row] = wave
        order = list(waves)
        sizes = [len(waves[row]) for row in order]
        for places in batches(sizes, int(batch_seconds * self.sample_rate)):
            rows = [order[place] for place in places]
            items.update(zip(rows, self._encode_rows([waves[row] for row in rows], count), strict=True))
        encoded = [items[row] for row in range(len(items))]
        lengths = torch.tensor([sum(part.shape[1] for part in item.parts) for item in encoded])
        codes = torch.zeros(len(encoded), count, int(lengths.max()), dtype=torch.int32)
        for row, item in enumerate(encoded):
            torch.cat(item.parts, 1, out=codes[row, :, : lengths[row]])
        vectors = [item.vector for item in encoded if item.vector is not None]
        num_samples = torch.tensor([item.num_samples for item in encoded])
        return self._tokens(codes, lengths, num_samples, 0, torch.stack(vectors) if vectors else None)

    def _tokens(
        self, codes: Tensor, lengths: Tensor, num_samples: Tensor, first: int, vector: Tensor | None
    ) -> Tokens:
        """Codes (B, K, T) of codebooks from `first` on, with this codec's facts."""
        facts = self.name, self.fingerprint, self.sample_rate, self.frame_rate
        sizes = self.codebook_sizes[first : first + codes.shape[1]]
        return Tokens(codes, lengths, num_samples, *facts, sizes, first, vector)

    def _waves(self, source: Any, sample_rate: int | None) -> Iterable[np.ndarray | audio.Recording]:
        """Recordings (N,) at the codec's rate; long ones unread where they are encoded in spans."""
        if self.encode_context is None:
            return audio.load_all(source, self.sample_rate, sample_rate)
        recordings = audio.recordings(source, self.sample_rate, sample_rate)
        return (recording if recording.whole is None else recording.whole for recording in recordings)

    @torch.inference_mode()
    def _encode_rows(
        self, waves: Sequence[np.ndarray | audio.Recording], num_codebooks: int
    ) -> "list[_Encoded]":
        """Recordings of any lengths encoded together, span by span."""
        items = [_Encoded() for _ in waves]
        for w, some in self._encode_spans(waves):
            sizes = torch.tensor([len(wave) for wave in some])
            # One alone, which may be hours, is not copied.
            batch = some[0][None] if len(some) == 1 else nn.utils.rnn.pad_sequence(some, batch_first=True)
            # Each codec rounds the wave where half precision begins.
            batch, lengths = batch.to(self.device), sizes.to(self.device)
            codes = self.encode_batch(batch, lengths, num_codebooks)[0].to("cpu", torch.int32)
            frames = (self.num_frames(sizes) + w.left).clamp(w.start, w.end)
            for row, item in enumerate(items):
                item.parts.append(w._replace(end=int(frames[row])).cut(codes[row]))
                if sizes[row]:
                    item.num_samples = w.left * self.hop_length + int(sizes[row])
            vector = self.global_batch(batch, lengths) if self.encode_context is None else None
            if vector is not None:
                for item, one in zip(items, vector.float().cpu(), strict=True):
                    item.vector = one
        return items

    def _encode_spans(
        self, waves: Sequence[np.ndarray | audio.Recording]
    ) -> Iterator[tuple[Window, list[Tensor]]]:
        """Windows of frames, and the waves in each with its context."""
        hop, context = self.hop_length, self.encode_context
        if context is None:
            whole = [torch.from_numpy(wave[:]) for wave in waves]
            yield window(0, self.num_frames(max(map(len, whole))), 0), whole
            return
        for start in itertools.count(0, SPAN_FRAMES):
            w = window(start, start + SPAN_FRAMES, context)
            some = [torch.from_numpy(wave[w.left * hop : w.right * hop]) for wave in waves]
            yield w, some
            if w.left * hop + max(map(len, some)) <= w.end * hop:
                return

    @torch.inference_mode()
    def decode(self, tokens: Tokens, *, batch_seconds: float = 120.0) -> list[np.ndarray]:
        """Speech of tokens: a list of float32 (T,) at `sample_rate`, cut to the original lengths.

        Fewer codebooks give a coarser voice: `tokens.select(0, 1)` decodes the first (semantic) codebook alone,
        `tokens.select(1, 8)` the others alone, as SpeechTokenizer (arXiv 2308.16692 §4) does to convert voices.

        Raises TokensError for tokens of another codec or of other weights.
        """
        self._check(tokens)
        frames = tokens.lengths.tolist()
        waves: list[np.ndarray] = [np.zeros(0, np.float32)] * len(tokens)
        for rows in batches(frames, int(batch_seconds * self.frame_rate)):
            rows = [row for row in rows if frames[row]]  # empty items stay empty
            if not rows:
                continue
            spans = list(self._decode_rows(tokens, rows))
            for place, row in enumerate(rows):
                waves[row] = np.concatenate([span[place] for span in spans])[: int(tokens.num_samples[row])]
        return waves

    def decode_spans(self, tokens: Tokens) -> Iterator[np.ndarray]:
        """Speech of one item as `decode` gives it, in consecutive pieces (t,), each computed lazily.

        Hours take the memory of a minute where the codec has a `decode_context`; others give one piece.
        Raises TokensError as `decode` does, and for several items.
        """
        self._check(tokens)
        if len(tokens) != 1:
            raise TokensError(f"{len(tokens)} items were given to decode_spans: give one, such as tokens[0]")
        return self._cut(self._decode_rows(tokens, [0]), int(tokens.num_samples[0]))

    def _cut(self, spans: Iterable[np.ndarray], left: int) -> Iterator[np.ndarray]:
        for span in spans:
            piece = span[0, :left]
            left -= len(piece)
            if len(piece):
                yield piece

    @torch.inference_mode()
    def _decode_rows(self, tokens: Tokens, rows: list[int]) -> Iterator[np.ndarray]:
        """Waves (B, t) of some items, span by span."""
        lengths = tokens.lengths[rows].to(self.device)
        vector = None if tokens.global_vector is None else tokens.global_vector[rows].to(self.device)
        total, context = int(lengths.max()), self.decode_context
        size = max(1, total) if context is None else SPAN_FRAMES
        for w in windows(total, size, context or 0):
            codes = tokens.codes[rows, :, w.left : min(w.right, total)].to(self.device)
            some = (lengths - w.left).clamp(0, codes.shape[2])
            wave = self.decode_global_batch(codes, some, tokens.first_codebook, vector)
            yield w.cut(wave, self.hop_length).float().cpu().numpy()

    def tokens(
        self,
        ids: Any,
        lengths: Sequence[int] | Tensor | None = None,
        *,
        first_codebook: int = 0,
        global_vector: Tensor | None = None,
    ) -> Tokens:
        """Tokens of this codec from codebook indices, such as a language model's: `codec.decode(codec.tokens(ids))`.

        Args:
            ids: integers (B, K, T) or (K, T), as tensor, array or nested list, or a list of (K, T) of any T; K may
                be less than the codec's. With one codebook also (T,), or a list of (T,) of any T.
            lengths: (B,) frames of each item where rows are padded.
            first_codebook: the place of the first row among the codec's codebooks.
            global_vector: (B, D), the voice, for codecs that have one.

        Raises TokensError for ids of other shapes or types, or outside their codebooks.
        """
        codes, frames = padded_ids(ids, self.num_codebooks)
        counts = frames if lengths is None else torch.as_tensor(lengths)
        return self._tokens(codes, counts, counts.cpu() * self.hop_length, first_codebook, global_vector)

    # Checks ------------------------------------------------------------------------------------------------

    def _count_codebooks(self, num_codebooks: int | None) -> int:
        count = self.num_codebooks if num_codebooks is None else num_codebooks
        if not 1 <= count <= self.num_codebooks:
            raise ConfigError(f"num_codebooks={num_codebooks}: {self.name} has 1 to {self.num_codebooks}")
        return count

    def _check(self, tokens: Tokens) -> None:
        if not isinstance(tokens, Tokens):
            raise TokensError(
                f"{type_name(tokens)} was given to decode: Tokens are accepted; codec.tokens(ids) makes them of ids "
                f"(B, K, T) of a language model, K = {self.num_codebooks} here"
            )
        if tokens.model != self.name:
            raise TokensError(
                f"these tokens were made by {tokens.model!r} and cannot be decoded by {self.name!r}: "
                "load the model that made them, by its name or folder"
            )
        if tokens.fingerprint and tokens.fingerprint != self.fingerprint:
            raise TokensError(
                f"these tokens were made by {other_weights(self.name, tokens.fingerprint)} (fingerprint "
                f"{tokens.fingerprint}, loaded {self.fingerprint}): decode with the weights that encoded, "
                "or encode again"
            )
        last = tokens.first_codebook + tokens.codes.shape[1]
        expected = self.codebook_sizes[tokens.first_codebook : last]
        if tuple(tokens.codebook_sizes) != expected:
            raise TokensError(
                f"codebooks {tokens.first_codebook + 1} to {last} of sizes {tuple(tokens.codebook_sizes)} were given, "
                f"{self.name} has {self.num_codebooks} of sizes {self.codebook_sizes}"
            )

    def card(self) -> str:
        kbps = self.frame_rate * sum(np.log2(self.codebook_sizes)) / 1000
        return (
            f"---\nlibrary_name: vokens\ntags: [audio, codec, {self.system}]\n---\n# {self.name}\n\n"
            f"A `{self.system}` codec: {self.sample_rate} Hz, {self.frame_rate:g} frames per second, "
            f"{self.num_codebooks} codebooks, {kbps:.2f} kbit/s.\n\n"
            '```python\nimport vokens\ncodec = vokens.load("THIS_FOLDER")\n```\n'
        )
