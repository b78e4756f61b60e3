"""S3Tokenizer, the supervised semantic speech tokenizer of CosyVoice (arXiv 2407.05407, 2412.10117, 2505.17589).

Whisper's log-mel, a transformer, one codebook: 25 or 50 ids per second that carry content. It only encodes. Ids
with a margin below rounding errors are computed again, alone and in float32, so that they depend neither on the
batch nor on its precision.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import vokens.models.s3tokenizer.checkpoint as layout
from vokens import audio
from vokens.audio import LogMel
from vokens.audio.mel import WHISPER_128
from vokens.batching import batches
from vokens.errors import AudioError, CheckpointError, ConfigError, TokensError
from vokens.models.codec import Audio, Codec
from vokens.models.s3tokenizer.config import RELEASES, S3TokenizerConfig
from vokens.models.s3tokenizer.encoder import S3Encoder
from vokens.models.s3tokenizer.int8 import check_device, round_weights
from vokens.models.s3tokenizer.long import WINDOW, log_mel, windows
from vokens.nn.masks import padding_mask
from vokens.nn.product import warn_where_slow
from vokens.onnx_file import OnnxGraph
from vokens.quantize.fsq import FiniteScalarQuantizer
from vokens.quantize.vq import UnitVectorQuantizer

Exactness = Literal["guarded", "plain"]

SHORTEST = 201  # samples that one centred frame needs; shorter sounds are padded with zeros
# Mel frames per forward pass. 4 minutes are 6000 tokens, 120 MB in the widest layer; on the CPU 4 s already run at full
# speed (0.09 s per second of v2 on one Zen 3 core), and only shorter rows, 0.13 s for one of 1 s, gain by batching.
FRAMES_PER_FORWARD = 24_000
FRAMES_ON_CPU = 400
PADDING = 0.02  # share of a forward pass that may be padding
# Margins below which an id is computed again: FSQ in units of its rounded number, VQ in squared distance. Measured on
# speech with benchmarks/quality/s3_exactness.py: float32 in padded batches moved FSQ's by up to 4e-6 with random
# weights of the released sizes and 1.7e-5 with trained ones (s3_mini), float16 by 3.0e-2, bfloat16 by 2.5e-1; VQ's
# moved by 2.4e-7, 9e-5 and 8e-4 on synthetic sounds.
BOUNDS = {
    "fsq": {torch.float32: 1e-4, torch.bfloat16: 4e-1, torch.float16: 5e-2},
    "vq": {torch.float32: 2e-6, torch.bfloat16: 2e-3, torch.float16: 2e-4},
}


class S3Tokenizer(Codec):
    """Speech to 25 or 50 tokens per second. `vokens.load("speech_tokenizer_v2_25hz")`.

    Attributes:
        exactness: "guarded" makes ids independent of the batch and of compute_dtype, "plain" skips the recomputation.
        compute_dtype: of matrix products; sums stay float32, and weights but for int8.
        bound: margin below which an id is recomputed.
        frames_per_forward: padded mel frames per forward pass, at least one window; None for 400 on the CPU and
            24000 elsewhere.
        recomputed: number of windows recomputed so far.
    """

    system = "s3tokenizer"
    decodes = False
    Config = S3TokenizerConfig

    def __init__(self, config: S3TokenizerConfig) -> None:
        super().__init__(config)
        self.sample_rate = WHISPER_128.sample_rate
        self.hop_length = WHISPER_128.hop_length * config.hop
        self.codebook_sizes = (config.codebook_size,)
        self.mel = LogMel(dataclasses.replace(WHISPER_128, n_mels=config.n_mels, log="log10"))
        self.encoder = S3Encoder(config)
        self.codebook: FiniteScalarQuantizer | UnitVectorQuantizer
        if config.quantizer == "fsq":
            self.codebook = FiniteScalarQuantizer(config.width, config.fsq_dims, config.fsq_levels)
        else:
            self.codebook = UnitVectorQuantizer(config.width, config.codebook_size)
        self.exactness: Exactness = "guarded"
        self.compute_dtype = torch.float32
        self.bound = BOUNDS[config.quantizer][torch.float32]
        self.frames_per_forward: int | None = None
        self.recomputed = 0

    # Tokens ------------------------------------------------------------------------------------------------

    def num_frames(self, num_samples: Any) -> Any:
        """Tokens of num_samples samples: ceil(F / hop) of their F = max(1, N // 160) mel frames."""
        mel = num_samples // self.mel.config.hop_length
        mel = mel.clamp(min=1) if isinstance(mel, Tensor) else max(1, mel)
        return -(-mel // self.config.hop)

    @torch.inference_mode()
    def encode_batch(self, wave: Tensor, lengths: Tensor, num_codebooks: int) -> tuple[Tensor, Tensor]:
        samples = lengths.tolist()

        def alone(row: int) -> Tensor:
            return self.log_mel(wave[row, : samples[row]])

        if wave.device.type == "cpu":
            mels = [alone(row) for row in range(len(samples))]
        else:
            mels = self._log_mels(wave, lengths, alone)
        codes = self._tokenize(mels, alone)
        return nn.utils.rnn.pad_sequence(codes, batch_first=True).unsqueeze(1), self.num_frames(lengths)

    @torch.no_grad()
    def quantize(self, mel: Tensor, mel_lens: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Ids of log-mels, for the training loop of another model: no graph breaks up to 30 s.

        They are (B, T) int64, zero beyond each row's end, with their counts (B,) in the type of mel_lens. Surrounding
        autocast changes nothing: `set_dtype` decides what matrix products are computed in. On CUDA, convolutions
        follow torch.backends.cudnn.allow_tf32: False gives the ids of float32.

        mel: log-mels (B, n_mels, F) from `log_mel`. mel_lens: (B,) frames of each row, at least 1; None where
        all are F long, which is faster.
        """
        if mel.shape[2] == 0:
            raise AudioError(f"log-mels {tuple(mel.shape)} have no frames: give (B, n_mels, F >= 1)")
        lengths = mel_lens
        if lengths is None:
            lengths = torch.full((mel.shape[0],), mel.shape[2], device=mel.device)
        counts = -(-lengths // self.config.hop)
        if mel.shape[2] > WINDOW:
            rows = [row[:, :length] for row, length in zip(mel, lengths.tolist(), strict=True)]
            codes = self._tokenize(rows, rows.__getitem__)
            counts = torch.tensor([len(row) for row in codes], dtype=counts.dtype, device=counts.device)
            return nn.utils.rnn.pad_sequence(codes, batch_first=True), counts
        with self._products(mel.device):
            codes = self._encode(mel, mel_lens)[0]
        return codes if mel_lens is None else codes * padding_mask(counts, codes.shape[1]), counts

    def log_mel(self, wave: Tensor) -> Tensor:
        """Log-mel (n_mels, F) of one recording (N,) at 16 kHz, F = max(1, N // 160); any length, in bounded memory."""
        if len(wave) < SHORTEST:
            wave = F.pad(wave, (0, SHORTEST - len(wave)))
        return whisper_scale(log_mel(self.mel, wave))

    def latent(self, wave: Tensor) -> Tensor:
        """The encoder's hidden states (B, T, D) of wave (B, N), at most 30 s."""
        return self.encoder(whisper_scale(self.mel(wave)))

    def decode_batch(self, codes: Tensor, lengths: Tensor, first_codebook: int) -> Tensor:
        raise TokensError(
            f"{self.name} only encodes: its tokens become speech in a token-to-wave model such as S3Gen, which adds "
            "the voice that they do not hold"
        )

    # Exactness ---------------------------------------------------------------------------------------------

    def set_dtype(self, dtype: torch.dtype, exactness: Exactness = "plain") -> Self:
        """Compute matrix products in this type.

        float16 and bfloat16 are for GPUs and CPUs with instructions for them (`vokens doctor`; others take 4 to 100
        times as long as in float32). int8 is for CPUs, about twice as fast there, with as many bits as the processor
        supports (`int8.py`); the float32 weights are discarded, so no other type can follow. Tokens keep the name of
        the float32 weights.

        exactness: "guarded" gives float32's tokens: windows with an id below the bound are recomputed in float32. At
            their present bounds nearly every window has one, so this takes longer than float32 alone:
            see `recomputed`, and `calibrate` for other weights. int8 has no float32 weights left: "plain" only.

        Raises ConfigError for other types, int8 elsewhere than on the CPU or guarded, and any other type after int8.
        """
        bounds = BOUNDS[self.config.quantizer]
        if dtype not in bounds and dtype != torch.int8:
            accepted = ", ".join(str(known) for known in (*bounds, torch.int8))
            raise ConfigError(f"dtype {dtype} was given: {accepted} are accepted")
        if self.compute_dtype == torch.int8 and dtype != torch.int8:
            raise ConfigError(f"{dtype} was given, but weights were rounded to int8: load the codec again")
        if dtype == torch.int8 and exactness == "guarded":
            raise ConfigError("int8 discards the float32 weights, which guarded needs: use plain, or float32")
        if dtype == torch.int8 and self.compute_dtype != torch.int8:
            check_device(self.device)
            _ = self.fingerprint
            round_weights(self.encoder)
        warn_where_slow(dtype, self.device)
        self.compute_dtype, self.exactness = dtype, exactness
        self.bound = bounds.get(dtype, 0.0)
        return self

    @torch.inference_mode()
    def calibrate(self, source: Audio | Sequence[Audio], sample_rate: int | None = None) -> float:
        """Set `bound` to twice the largest change of a margin by the present precision on recordings, and return it.

        Raises ConfigError for int8, which has no float32 weights.
        """
        if self.compute_dtype == torch.int8:
            raise ConfigError("int8 has no float32 weights to compare with: calibrate is for half precision")
        moved = 0.0
        for wave in audio.load_all(source, self.sample_rate, sample_rate):
            mel = self.log_mel(torch.from_numpy(wave).to(self.device))
            for window in windows(mel.shape[1], self.config.hop):
                piece = window.read(mel[None], self.config.hop)
                exact, sure = self._exactly(piece)
                fast, margin = self._quickly(piece, None)
                moved = max(moved, float(torch.where(fast == exact, (margin - sure).abs(), margin).max()))
        self.bound = 2 * moved
        return self.bound

    def _tokenize(self, mels: Sequence[Tensor], alone: Callable[[int], Tensor]) -> list[Tensor]:
        """Ids (T,) of log-mels (n_mels, F) of any lengths; alone(row) computes one unbatched."""
        hop, published = self.config.hop, self.config.long_audio == "published"
        plans = [windows(mel.shape[1], hop, published) for mel in mels]
        jobs = [(row, window) for row, plan in enumerate(plans) for window in plan]
        pieces = [window.read(mels[row], hop) for row, window in jobs]
        parts: list[Tensor] = [torch.empty(0)] * len(jobs)
        for group in batches([piece.shape[1] for piece in pieces], self._budget(), PADDING):
            results = self._decide([pieces[job] for job in group])
            for job, (codes, sure) in zip(group, results, strict=True):
                row, window = jobs[job]
                if not sure:
                    self.recomputed += 1
                    codes = self._exactly(window.read(alone(row)[None], hop))[0][0]
                parts[job] = window.cut(codes)
        kept = iter(parts)
        return [torch.cat([next(kept) for _ in plan]) for plan in plans]

    def _budget(self) -> int:
        """Mel frames per forward pass, padding included."""
        if self.frames_per_forward is not None:
            return self.frames_per_forward
        if self.compute_dtype == torch.int8:
            return 1  # one by one: in a batch an input may round differently
        return FRAMES_ON_CPU if self.device.type == "cpu" else FRAMES_PER_FORWARD

    def _decide(self, mels: Sequence[Tensor]) -> list[tuple[Tensor, bool]]:
        """Ids (T,) of a batch of windows, and whether all margins of each are above the bound."""
        sizes = [mel.shape[1] for mel in mels]
        if len(mels) == 1 and not self._half:
            return [(self._exactly(mels[0][None])[0][0], True)]
        lengths = torch.tensor(sizes, device=mels[0].device)
        batch = nn.utils.rnn.pad_sequence([mel.T for mel in mels], batch_first=True).transpose(1, 2)
        codes, margin = self._quickly(batch, None if min(sizes) == max(sizes) else lengths)
        counts = -(-lengths // self.config.hop)
        least = margin.masked_fill(~padding_mask(counts, codes.shape[1]), torch.inf).amin(1)
        sure = (least > self.bound) | (self.exactness == "plain")
        rows = [row[:count] for row, count in zip(codes, counts.tolist(), strict=True)]
        return list(zip(rows, sure.tolist(), strict=True))

    def _exactly(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        """Ids and margins (1, T) of one window (1, n_mels, F), the reference: unbatched, unpadded, in float32."""
        with torch.autocast(mel.device.type, enabled=False), _full_float32(mel.device):
            return self._encode(mel, None)

    def _quickly(self, mel: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """Ids and margins (B, T) of windows (B, n_mels, F) in the chosen precision."""
        exact = contextlib.nullcontext() if self._half else _full_float32(mel.device)
        with self._products(mel.device), exact:
            return self._encode(mel, lengths)

    @property
    def _half(self) -> bool:
        return self.compute_dtype in (torch.bfloat16, torch.float16)

    def _products(self, device: torch.device) -> torch.autocast:
        """Context in which matrix products have the chosen precision."""
        return torch.autocast(device.type, self.compute_dtype if self._half else None, enabled=self._half)

    def _encode(self, mel: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.codebook.encode(self.encoder(mel, lengths))

    def _log_mels(self, wave: Tensor, lengths: Tensor, alone: Callable[[int], Tensor]) -> list[Tensor]:
        """Log-mels (n_mels, F) of rows: those up to 30 s together, longer ones in pieces."""
        hop = self.mel.config.hop_length
        short = lengths <= WINDOW * hop
        longest = max(SHORTEST, int(torch.where(short, lengths, 0).max()))
        rows = short.nonzero().flatten()
        mels: dict[int, Tensor] = {}
        if len(rows):
            some = F.pad(wave[rows], (0, max(0, longest - wave.shape[1])))[:, :longest]
            sizes = lengths[rows].clamp(min=SHORTEST)
            frames = (sizes // hop).tolist()
            mel_batch = whisper_scale(self.mel(some, sizes))
            mels = {row: mel[:, :n] for row, mel, n in zip(rows.tolist(), mel_batch, frames, strict=True)}
        return [mels[row] if row in mels else alone(row) for row in range(len(lengths))]

    # Weights -----------------------------------------------------------------------------------------------

    @classmethod
    def from_published(cls, state: dict[str, Tensor], config: Any = None) -> Self:
        """The codec with the weights of a state dict of the package s3tokenizer.

        config: name of a release, S3TokenizerConfig, or some of its settings as a dict. A v1 state dict fits 50
        and 25 Hz: "speech_tokenizer_v1" or "speech_tokenizer_v1_25hz" must say which.

        Raises CheckpointError for weights that do not fit the config, missing or unexpected tensors.
        """
        return cls._build(state, layout.configure(state, config))

    recognises_graph = staticmethod(layout.recognises_graph)

    @classmethod
    def from_onnx(cls, graph: OnnxGraph, config: Any = None) -> Self:
        """The codec of a released ONNX graph, which says all but the number of heads (the release's by default)."""
        state, facts = layout.from_graph(graph)
        return cls._build(state, layout.configure(state, config, facts))

    @classmethod
    def _build(cls, state: dict[str, Tensor], config: S3TokenizerConfig) -> Self:
        codec = cls.with_weights(config, layout.TABLE.to_ours(state))
        for name, release in RELEASES.items():
            if layout.same_network(config, release):
                codec.name = name
        return codec

    def save_pretrained(self, folder: str | Path, **options: Any) -> Path:
        self.check_whole()
        return super().save_pretrained(folder, **options)

    def to_published(self) -> dict[str, Tensor]:
        """The weights under the names of the package s3tokenizer 0.3.0."""
        self.check_whole()
        return layout.TABLE.to_published(self.state_dict())

    def check_whole(self) -> None:
        """Raises CheckpointError where the float32 weights are gone."""
        if self.compute_dtype == torch.int8:
            raise CheckpointError(
                'weights rounded to int8 cannot be saved: save the float32 codec, which dtype="int8" opens'
            )


def whisper_scale(log10: Tensor) -> Tensor:
    """Whisper's range: nothing more than 8 below the loudest of a recording, then (x + 4) / 4. (..., n_mels, F)."""
    # In place: of 3 hours each copy takes 550 MB.
    return log10.clamp_(min=log10.amax((-2, -1), keepdim=True) - 8.0).add_(4.0).div_(4.0)


@contextlib.contextmanager
def _full_float32(device: torch.device) -> Iterator[None]:
    """Float32 products as float32: cuDNN takes TF32 for convolutions by default, which flips ids."""
    if device.type != "cuda":
        yield
        return
    matmul = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = matmul
