"""SoCodec (arXiv 2409.00933): HuBERT's features to four ordered streams of tokens, and a speaker vector.

Audio at 16 kHz passes HuBERT and a causal encoder to 8.3 frames per second; a product quantizer gives each frame
four codes, of which the first carries most. Causal decoders make a mel of codes and voice, a vocoder the wave.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vokens.models.socodec.checkpoint as layout
import vokens.models.socodec.published as published
from vokens import checkpoint
from vokens.audio import LogMel
from vokens.audio.mel import SOCODEC_16K_80
from vokens.batching import batches
from vokens.config import build_config
from vokens.errors import CheckpointError, ConfigError, MissingExtra, TokensError
from vokens.models.codec import Codec
from vokens.models.socodec.causal import Down, MelFront, Stack, Up
from vokens.models.socodec.config import MEL_HOP, RATE, SSL_HOP, SoCodecConfig
from vokens.models.socodec.hubert import Hubert, Scaled, computable, hubert_features
from vokens.models.socodec.vocoder import Vocoder
from vokens.models.socodec.vocos import Vocos
from vokens.nn.ecapa import ECAPA, SHORTEST
from vokens.nn.streaming import StreamState
from vokens.nn.windows import Window, windows
from vokens.quantize.product import ProductQuantizer

# Work per step: exact, they bound memory.
MEL_FRAMES = 6000  # of the mel: 50 MB of windowed frames and their spectra
DECODER_TOKENS = 128  # of the causal decoders, over all rows
VOCODER_FRAMES = 1000  # of the mel: 10 MB in the vocoder's widest layer; 26 more are computed beside them
VOCODER_FRAMES_ON_DEVICE = 12_000
SSL_FRAMES = 24_000  # padded, of HuBERT; the CPU gains nothing by batches and takes window by window


@dataclass(frozen=True)
class DecoderState:
    """Streaming state of decoding: see `SoCodec.step`."""

    voice: Tensor  # (B, width)
    layers: StreamState  # of the causal convolutions
    mel: Tensor  # (B, n_mels, up to 26) the last frames
    pending: int  # how many of the last frames have no wave yet


class SoCodec(Codec):
    """Speech to 4 x 8.3 tokens per second and back. `vokens.load("socodec_16384x4_120ms_16khz_chinese")`."""

    system = "socodec"
    Config = SoCodecConfig

    def __init__(self, config: SoCodecConfig) -> None:
        super().__init__(config)
        self.sample_rate = RATE
        self.hop_length = config.hop_length
        self.codebook_sizes = (config.stream_size,) * config.num_streams
        width, groups = config.width, config.groups
        self.mel = LogMel(dataclasses.replace(SOCODEC_16K_80, n_mels=config.n_mels))
        self.speaker = ECAPA(
            config.n_mels, config.speaker_channels, config.speaker_attention, config.speaker_squeeze, width
        )
        self.encoder = Stack(
            config.hubert_width, width, width, [Down(width, stride, groups) for stride in config.strides]
        )
        self.codebooks = ProductQuantizer(
            width,
            config.num_streams,
            codebook_size=config.codebook_size,
            dim=config.codebook_dim,
            digits=config.digits,
        )
        self.semantic_decoder = Stack(
            width, width, config.hubert_width, [Up(width, stride, groups) for stride in config.strides[::-1]]
        )
        self.mel_decoder = Stack(width, width, config.n_mels, [Up(width, SSL_HOP // MEL_HOP, groups)])
        self.vocoder: Vocoder | Vocos
        if config.vocoder == "vocos":
            self.vocoder = Vocos(config.n_mels, config.vocoder_width, config.vocoder_layers)
        else:
            self.vocoder = Vocoder(
                config.n_mels, config.vocoder_width, config.vocoder_strides, config.vocoder_kernels
            )
        of_mel = config.features == "mel"
        self.front = MelFront(config.n_mels, config.hubert_width) if of_mel else None
        # Without transformers the codec still decodes; `_hubert` raises when encoding.
        self.hubert = Hubert(config) if config.hubert and not of_mel and computable() else None

    @property
    def dtype(self) -> torch.dtype:
        return next(self.encoder.parameters()).dtype  # the speaker encoder's stays float32

    @property
    def fingerprint(self) -> str:
        """16 hex digits that name the weights without HuBERT, which a codec that only decodes does not have."""
        if not self._fingerprint:
            weights, settings = self.state_dict(), dataclasses.asdict(self.config)
            encoding = ("hubert", "features", "window_", "context_")
            self._fingerprint = checkpoint.fingerprint(
                {name: value for name, value in weights.items() if not name.startswith("hubert.")},
                {name: value for name, value in settings.items() if not name.startswith(encoding)},
            )
        return self._fingerprint

    # Tokens ------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def encode_batch(self, wave: Tensor, lengths: Tensor, num_codebooks: int) -> tuple[Tensor, Tensor]:
        codes = self.tokenize(self._rows(wave, lengths), num_codebooks)
        padded = nn.utils.rnn.pad_sequence([row.T for row in codes], batch_first=True).transpose(1, 2)
        return padded, self.num_frames(lengths)

    @torch.inference_mode()
    def global_batch(self, wave: Tensor, lengths: Tensor) -> Tensor:
        """Vectors (B, width) of the voices in wave (B, N)."""
        return torch.cat([self.voice(row) for row in self._rows(wave, lengths)])

    def _rows(self, wave: Tensor, lengths: Tensor) -> list[Tensor]:
        """Rows (N,) without their padding, with zeros up to whole tokens."""
        return [
            F.pad(row[:size], (0, -size % self.hop_length))
            for row, size in zip(wave, lengths.tolist(), strict=True)
        ]

    def tokenize(self, waves: Sequence[Tensor], num_codebooks: int | None = None) -> list[Tensor]:
        """Codes (K, ceil(N / hop_length)) of each wave (N,) at 16 kHz, without padding.

        Raises ConfigError for a codec without HuBERT.
        """
        count = self._count_codebooks(num_codebooks)
        if self.front is not None:
            return [self._tokens_of_mel(wave, self.front, count) for wave in waves]
        hubert = self._hubert()
        scaled = [Scaled.of(wave) for wave in waves]
        ratio = self.hop_length // SSL_HOP
        frames = [-(-len(wave) // SSL_HOP) for wave in waves]
        codes = [
            torch.zeros(count, -(-size // ratio), dtype=torch.int64, device=wave.device)
            for size, wave in zip(frames, waves, strict=True)
        ]
        plan = [(row, w) for row, whole in enumerate(codes) for w in self._windows(whole.shape[1])]
        sizes = [min(w.right * ratio, frames[row]) - w.left * ratio for row, w in plan]
        for group in self._groups(sizes):
            spans = []
            for place in group:
                row, w = plan[place]
                spans.append(scaled[row].span(w.left * self.hop_length, SSL_HOP * sizes[place] + 80))
            features = hubert(spans, [sizes[place] for place in group]).to(self.dtype)
            latent = self.encoder(features.transpose(1, 2)).transpose(1, 2)
            for place, part in zip(group, self.codebooks.encode(latent, count), strict=True):
                row, w = plan[place]
                codes[row][:, w.start : w.end] = w.cut(part)
        return codes

    def _tokens_of_mel(self, wave: Tensor, front: MelFront, num_codebooks: int) -> Tensor:
        """Codes (K, T) of wave (N,), in chunks that equal the whole: the encoder of mels is causal."""
        ahead = self.hop_length - MEL_HOP  # a token sees the mel of its own span
        wave = F.pad(wave, (0, -len(wave) % self.hop_length + ahead))
        mel = self.log_mel(wave)[:, ahead // MEL_HOP :].to(self.dtype)
        state, codes = StreamState(), []
        for piece in mel.split(DECODER_TOKENS * self.hop_length // MEL_HOP, 1):
            latent = self.encoder(front(piece.unsqueeze(0), state), state).transpose(1, 2)
            codes.append(self.codebooks.encode(latent, num_codebooks)[0])
        return torch.cat(codes, 1)

    def _groups(self, frames: list[int]) -> Iterable[list[int]]:
        """Groups of windows that go through HuBERT together."""
        return [[i] for i in range(len(frames))] if self.device.type == "cpu" else batches(frames, SSL_FRAMES)

    def features(self, wave: Tensor) -> Tensor:
        """Training: the encoder's input (B, hubert_width, N / 320), of wave (B, N), N a multiple of hop_length."""
        if self.front is not None:
            ahead = self.hop_length - MEL_HOP
            return self.front(self.mel(F.pad(wave, (0, ahead)))[..., ahead // MEL_HOP :].to(self.dtype))
        return hubert_features(self._hubert(), wave).to(self.dtype)

    def latent(self, wave: Tensor) -> Tensor:
        """Training: the encoder's output (B, T, width) of wave (B, N), N a multiple of hop_length."""
        return self.encoder(self.features(wave)).transpose(1, 2)

    def _hubert(self) -> Hubert:
        if self.hubert is None and self.config.hubert:
            raise MissingExtra("transformers", "hf", "SoCodec's encoder (HuBERT)")
        if self.hubert is None:
            raise ConfigError(
                f"{self.name} was loaded without HuBERT and only decodes: put chinese-hubert-large-fairseq-ckpt.pt, "
                "or a transformers folder of HuBERT, into its folder and load it again"
            )
        return self.hubert

    def _windows(self, tokens: int) -> Iterator[Window]:
        """One window of tokens where it fits, else the fewest, each with context on the sides where there is more."""
        size, context = self.config.window_tokens, self.config.context_tokens
        if tokens <= size:
            yield Window(0, tokens, 0, tokens)
            return
        start = 0
        while start < tokens:
            left = max(0, start - context)
            right = min(tokens, left + size)
            end = right if right == tokens else right - context
            yield Window(start, end, left, right)
            start = end

    def voice(self, wave: Tensor) -> Tensor:
        """The global vector (1, width) of wave (N,) at 16 kHz."""
        return self.speaker(self.log_mel(wave).unsqueeze(0))

    def log_mel(self, wave: Tensor) -> Tensor:
        """Log-mel (n_mels, max(5, N // 160)) of wave (N,), in pieces that bound memory; short ones end in silence."""
        if len(wave) < SHORTEST * MEL_HOP:
            wave = F.pad(wave, (0, SHORTEST * MEL_HOP - len(wave)))
        # A spectrum sees 1.5 frames before and 2.5 after its hop.
        plan = windows(len(wave) // MEL_HOP, MEL_FRAMES, 3)
        return torch.cat([w.cut(self.mel(w.read(wave[None], MEL_HOP))[0]) for w in plan], 1)

    # Speech ------------------------------------------------------------------------------------------------

    def decode_batch(self, codes: Tensor, lengths: Tensor, first_codebook: int) -> Tensor:
        return self.decode_global_batch(codes, lengths, first_codebook, None)  # raises for the missing vector

    @torch.inference_mode()
    def decode_global_batch(
        self, codes: Tensor, lengths: Tensor, first_codebook: int, vector: Tensor | None
    ) -> Tensor:
        if vector is None:
            raise TokensError(
                "these tokens have no global_vector, and SoCodec's tokens do not hold the voice: take it from a "
                "recording, dataclasses.replace(tokens, global_vector=codec.encode(recording).global_vector)"
            )
        wave = torch.zeros(len(codes), codes.shape[2] * self.hop_length, device=codes.device)
        mels = self.decode_mel(codes, vector, first_codebook)
        ratio = self.hop_length // MEL_HOP
        for row, (mel, tokens) in enumerate(zip(mels, lengths.tolist(), strict=True)):
            wave[row, : tokens * self.hop_length] = self.vocode(mel[:, : tokens * ratio])
        return wave

    def decode_mel(self, codes: Tensor, voice: Tensor, first_codebook: int = 0) -> Tensor:
        """Log-mel (B, n_mels, hop_length / 160 * T) of codes (B, k, T) and voice (B, width)."""
        state, pieces = StreamState(), codes.split(max(1, DECODER_TOKENS // len(codes)), 2)
        return torch.cat([self._mel_step(piece, voice, state, first_codebook) for piece in pieces], 2)

    def _mel_step(self, codes: Tensor, voice: Tensor, state: StreamState, first_codebook: int) -> Tensor:
        """Mel of the next codes; updates the state."""
        g = voice.to(self.dtype).unsqueeze(2)
        latent = self.codebooks.decode(codes, first_codebook).transpose(1, 2)
        return self.mel_decoder(self.semantic_decoder.hidden(latent + g, state) + g, state)

    def vocode(self, mel: Tensor) -> Tensor:
        """Wave (160 * F,) of a log-mel (n_mels, F), in pieces that bound memory."""
        size = VOCODER_FRAMES if mel.device.type == "cpu" else VOCODER_FRAMES_ON_DEVICE
        plan = windows(mel.shape[1], size, self.vocoder.reach)
        return torch.cat([w.cut(self.vocoder(w.read(mel[None]))[0], MEL_HOP) for w in plan])

    # Streaming ---------------------------------------------------------------------------------------------

    def init_state(self, voice: Tensor) -> DecoderState:
        """State to decode B streams of voices (B, width), the `global_vector` of tokens."""
        voice = voice.to(self.device, self.dtype)
        return DecoderState(voice, StreamState(), voice.new_zeros(len(voice), self.config.n_mels, 0), 0)

    @torch.inference_mode()
    def step(
        self, codes: Tensor, state: DecoderState, first_codebook: int = 0
    ) -> tuple[Tensor, DecoderState]:
        """Decode the next codes (B, k, n), n >= 1: wave (B, m), and the state for the codes after them.

        All waves, with that of `finish`, are what `decode` gives for all codes at once. The wave of a token comes
        with it, but for its last 130 ms (with a Vocos, 290), the vocoder's look-ahead.
        """
        reach = self.vocoder.reach
        layers = StreamState(state.layers)
        mel = self._mel_step(codes.to(self.device), state.voice, layers, first_codebook)
        pending = state.pending + mel.shape[2]
        mel = torch.cat([state.mel, mel], 2)
        ready = max(0, pending - reach)
        wave = self._wave_of(mel, mel.shape[2] - pending, ready) if ready else mel.new_zeros(len(mel), 0)
        pending -= ready
        return wave, DecoderState(state.voice, layers, mel[..., -(pending + reach) :].clone(), pending)

    @torch.inference_mode()
    def finish(self, state: DecoderState) -> Tensor:
        """The last wave (B, m) of streams that have ended."""
        if not state.pending:
            return state.mel.new_zeros(len(state.mel), 0)
        return self._wave_of(state.mel, state.mel.shape[2] - state.pending, state.pending)

    def _wave_of(self, mel: Tensor, first: int, frames: int) -> Tensor:
        return self.vocoder(mel).narrow(1, first * MEL_HOP, frames * MEL_HOP)

    # Weights -----------------------------------------------------------------------------------------------

    @classmethod
    def remove_weight_norm(cls, state: dict[str, Tensor]) -> dict[str, Tensor]:
        kept = state if computable() else {k: v for k, v in state.items() if not k.startswith("hubert.")}
        return checkpoint.fold_weight_norm(kept)

    def save_pretrained(
        self, folder: str | Path, *, dtype: torch.dtype | None = None, card: str = ""
    ) -> Path:
        """As `Pretrained.save_pretrained`; MissingExtra where HuBERT was left out without transformers."""
        if self.config.hubert and self.config.features != "mel":
            self._hubert()
        return super().save_pretrained(folder, dtype=dtype, card=card)

    @classmethod
    def from_published(cls, state: dict[str, Tensor], config: Any) -> Self:
        kind, other = published.ANALYZER, published.VOCODER
        if not layout.is_analyzer(state):
            kind, other = other, kind
        raise CheckpointError(
            f"this file is SoCodec's {kind} alone: load a folder that holds it, the {other}, and to encode also "
            f"{published.HUBERT}"
        )

    @classmethod
    def from_folder(cls, folder: Path, config: Any) -> Self | None:
        """The codec of a folder with the published files, None where it holds none of them.

        config: a SoCodecConfig or a dict of its settings, for weights of other sizes than the release's.

        Raises CheckpointError for files that are missing, damaged or of other sizes.
        """
        found = published.read_folder(folder)
        if found is None:
            return None
        name, weights = found
        codec = cls.from_weights(*weights, config)
        codec.name = name
        return codec

    @classmethod
    def from_weights(
        cls,
        analyzer: dict[str, Tensor],
        vocoder: dict[str, Tensor],
        hubert: dict[str, Tensor] | None = None,
        config: Any = None,
    ) -> Self:
        """The codec with weights under their published names; HuBERT's under fairseq's or transformers'.

        hubert: None for a codec that only decodes. config: as in `from_folder`.
        """
        if not isinstance(config, SoCodecConfig):
            config = build_config(SoCodecConfig, config or {}, "SoCodec's config")
        config = dataclasses.replace(config, hubert=hubert is not None)
        state = layout.analyzer_table(len(config.strides)).to_ours(analyzer) | layout.vocoder_to_ours(vocoder)
        if hubert is not None and computable():
            state |= layout.hubert_to_ours(hubert)
        return cls.with_weights(config, state)

    def to_published(self) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor] | None]:
        """Published state dicts of analyzer, vocoder and HuBERT (fairseq's names, without its training heads)."""
        parts: dict[str, dict[str, Tensor]] = {"vocoder": {}, "hubert": {}, "analyzer": {}}
        for name, tensor in self.state_dict().items():
            part = name.split(".")[0]
            parts[part if part in parts else "analyzer"][name] = tensor
        return (
            layout.analyzer_table(len(self.config.strides)).to_published(parts["analyzer"]),
            layout.vocoder_to_published(parts["vocoder"]),
            layout.hubert_to_fairseq(parts["hubert"]) if self.hubert is not None else None,
        )
