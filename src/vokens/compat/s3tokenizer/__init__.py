"""Drop-in interface of the package `s3tokenizer` 0.3.0.

    import vokens.compat.s3tokenizer as s3tokenizer
    tokenizer = s3tokenizer.load_model("speech_tokenizer_v2_25hz")
    mels, lens = s3tokenizer.padding([s3tokenizer.log_mel_spectrogram(s3tokenizer.load_audio("hello.wav"))])
    codes, codes_lens = tokenizer.quantize(mels, lens)

Differences: ids are int64 and zero beyond each row's end (undefined there), recordings over 30 s keep all their tokens
unless long_audio="published", and autocast has no effect.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import soundfile
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vokens import audio, checkpoint
from vokens.atomic import atomic_write
from vokens.audio import LogMel
from vokens.audio.mel import WHISPER_80, WHISPER_128
from vokens.errors import ConfigError
from vokens.models.pretrained import load
from vokens.models.s3tokenizer import RELEASES, S3TokenizerConfig
from vokens.models.s3tokenizer import S3Tokenizer as Codec
from vokens.models.s3tokenizer import checkpoint as layout
from vokens.nn.masks import padding_mask
from vokens.onnx_file import read_onnx

LongAudio = Literal["complete", "published"]


class S3Tokenizer(nn.Module):
    """Published calling convention of a codec, which is `tokenizer.codec`.

    Args:
        model: a codec of `vokens.load`, or the name of a release for random weights, which `init_from_onnx` and
            `init_from_pt` replace.
    """

    def __init__(self, model: Codec | str) -> None:
        super().__init__()
        if isinstance(model, str):
            if model not in RELEASES:
                raise ConfigError(f"no release is called {model!r}: give {', '.join(RELEASES)}")
            name, model = model, Codec(RELEASES[model])
            model.name = name
        self.codec = model.eval()

    @property
    def name(self) -> str:
        return self.codec.name

    @property
    def config(self) -> S3TokenizerConfig:
        return self.codec.config

    @property
    def device(self) -> torch.device:
        return self.codec.device

    def forward(self, mel: Tensor, mel_len: Tensor) -> tuple[Tensor, Tensor]:
        return self.quantize(mel, mel_len)

    def quantize(self, mel: Tensor, mel_len: Tensor) -> tuple[Tensor, Tensor]:
        """Ids (B, T) int64 and their counts (B,) of log-mels (B, n_mels, F), with mel_len (B,) valid frames."""
        with torch.autocast(mel.device.type, enabled=False):  # bfloat16 changes about 7 % of ids
            return self.codec.quantize(mel, mel_len)

    def encoder(self, x: Tensor, x_len: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states (B, T, D) and their counts (B,) of log-mels (B, n_mels, F), at most 30 s."""
        return self.codec.encoder(x, x_len), -(-x_len // self.config.hop)

    @property
    def quantizer(self) -> "Quantizer":
        return Quantizer(self.codec)

    def freeze(self) -> None:
        """Disable gradients. Models of `load_model` are frozen."""
        self.requires_grad_(False)

    def init_from_onnx(self, onnx_path: str) -> None:
        """Load the weights of a released graph."""
        self._take(Codec.from_onnx(read_onnx(onnx_path), self._release()))

    def init_from_pt(self, ckpt_path: str) -> None:
        """Load a state dict that `onnx2torch` saved."""
        self._take(Codec.from_published(checkpoint.read_state_dict(ckpt_path), self._release()))

    def _release(self) -> str | S3TokenizerConfig:
        return self.name if self.name in RELEASES else self.config

    def _take(self, codec: Codec) -> None:
        codec.name = self.name
        self.codec = codec.to(self.device)


# One network with different settings; published as three classes.
S3TokenizerV2 = S3TokenizerV3 = S3Tokenizer


class Quantizer:
    """Quantizer of hidden states to ids, and for v1 to codewords."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Ids (B, T) of hidden states (B, T, D)."""
        return self._codec.codebook.encode(x)[0]

    @torch.no_grad()
    def decode(self, embed_ind: Tensor) -> Tensor:
        """Codewords (B, D, T) of v1's ids (B, T). NotImplementedError for v2 and v3, which have none."""
        codebook: Any = self._codec.codebook
        if self._codec.config.quantizer == "fsq":
            raise NotImplementedError("v2 and v3 (FSQ) have no codewords: decode is for v1")
        return codebook.decode(embed_ind).transpose(1, 2)


def available_models() -> list[str]:
    """The names that `load_model` downloads."""
    return list(RELEASES)


def load_model(
    name: str,
    download_root: str | None = None,
    *,
    config: str | dict[str, Any] | None = None,
    device: str = "cpu",
    long_audio: LongAudio = "complete",
) -> S3Tokenizer:
    """A release by its name, or a file: a released graph or a state dict. In evaluation mode, without gradients.

    config: the release's name, or settings, where the weights do not determine it (v1). device: as in `vokens.load`.
    download_root: download folder. Files of the published package, there or in its default
    ~/.cache/s3tokenizer, are used; others go to vokens' own cache, or below download_root.
    long_audio: "published" merges recordings over 30 s like s3tokenizer 0.3.0, which loses tokens of some over 52 s.
    """
    kept = _published_cache(download_root) / f"{name}.onnx"
    source = kept if name in RELEASES and kept.exists() else name
    codec = load(source, config=config, device=device, cache_dir=download_root)
    if not isinstance(codec, Codec):
        raise ConfigError(f"{name} is a {codec.system}, not an S3Tokenizer: give {', '.join(RELEASES)}")
    codec.config = replace(codec.config, long_audio=long_audio)
    return S3Tokenizer(codec)


def _published_cache(download_root: str | None) -> Path:
    if download_root is not None:
        return Path(download_root).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "s3tokenizer"


def onnx2torch(
    onnx_path: str, torch_path: str | None = None, verbose: bool = False
) -> dict[str, Tensor] | None:
    """The weights of a released graph, of any version, under the published names.

    Saved as torch_path if given, else returned. verbose: print their names, shapes and types.
    """
    state, _ = layout.from_graph(read_onnx(onnx_path))
    if verbose:
        for name, tensor in state.items():
            print(f"{name}: {tuple(tensor.shape)} {tensor.dtype}")
    if not torch_path:
        return state
    with atomic_write(torch_path) as partial:
        torch.save(state, partial)
    return None


onnx2torch_v3 = onnx2torch


def load_audio(file: str, sr: int = 16000) -> Tensor:
    """The first channel (N,) float32 of an audio file, resampled like torchaudio. Raises AudioError."""
    wave, rate = audio.load(file)
    # PyAV's containers, which libsndfile does not read, give the mean.
    with suppress(soundfile.LibsndfileError), soundfile.SoundFile(file) as sound:
        if sound.channels > 1:
            wave = sound.read(dtype="float32", always_2d=True)[:, 0].copy()
    return audio.sinc_resample(torch.from_numpy(wave), rate, sr)


def log_mel_spectrogram(
    audio: str | np.ndarray | Tensor,
    n_mels: int = 128,
    padding: int = 0,
    device: str | torch.device | None = None,
) -> Tensor:
    """Whisper's log-mel (n_mels, N // 160) of a wave (N,) at 16 kHz, N at least 201, or of a file.

    A batch (B, N) gives (B, n_mels, F), batch-invariant. n_mels: 128 or 80. padding: zeros to append.
    """
    if n_mels not in (80, 128):
        raise ConfigError(f"n_mels={n_mels} was given: 80 and 128 are accepted")
    wave = torch.as_tensor(load_audio(audio) if isinstance(audio, str) else audio, device=device)
    rows = F.pad(torch.atleast_2d(wave), (0, padding))
    mel = LogMel(WHISPER_128 if n_mels == 128 else WHISPER_80).to(wave.device)
    return mel(rows).reshape(*wave.shape[:-1], n_mels, -1)


def padding(data: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Log-mels (n_mels, F) as one zero-padded batch (B, n_mels, F), and their frames (B,) int32."""
    lengths = torch.tensor([mel.shape[1] for mel in data], dtype=torch.int32)
    rows = nn.utils.rnn.pad_sequence([mel.T for mel in data], batch_first=True)
    return rows.transpose(1, 2), lengths


def make_non_pad_mask(lengths: Tensor, max_len: int = 0) -> Tensor:
    """(B, max_len) bool: True inside each row's length (B,). max_len: the longest by default."""
    return padding_mask(lengths, max_len if max_len > 0 else int(lengths.max()))


def mask_to_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Attention bias: -1e10 where the mask is False, else 0, in a floating-point type."""
    if mask.dtype != torch.bool or not dtype.is_floating_point:
        raise ConfigError(f"a {mask.dtype} mask and {dtype} were given: give bool and a floating-point type")
    return (1.0 - mask.to(dtype)) * -1e10


def merge_tokenized_segments(
    tokenized_segments: Sequence[Sequence[int]], overlap: int, token_rate: int
) -> list[int]:
    """Tokens of overlapping segments as one list, without half the overlap on either side of each seam.

    overlap: in seconds. token_rate: tokens per second.
    """
    cut = overlap // 2 * token_rate
    last = len(tokenized_segments) - 1
    merged: list[int] = []
    for i, tokens in enumerate(tokenized_segments):
        end = len(tokens) if i == last else max(0, len(tokens) - cut)
        merged.extend(tokens[0 if i == 0 else cut : end])
    return merged
