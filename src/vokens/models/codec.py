"""What every codec offers: audio to `Tokens` and back, in batches that change nothing, saved as one folder.

A system subclasses `Codec` and implements the two batch functions; loading, resampling, batching by duration,
trimming and checks on tokens stand here once.
"""

import dataclasses
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from vokens import audio, checkpoint
from vokens.atomic import atomic_write
from vokens.errors import AudioError, CheckpointError, ConfigError, TokensError
from vokens.quantize import ResidualVectorQuantizer
from vokens.tokens import Tokens

Audio = str | Path | bytes | np.ndarray | Tensor


@dataclass(frozen=True)
class CodecOutput:
    """What a codec's training forward returns."""

    wave: Tensor  # (B, N) resynthesis
    codes: Tensor  # (B, K, T) int64
    commit: Tensor  # () commitment loss, mean over codebooks
    semantic: Tensor  # (B, T, S) projection of the first codebook, to be matched with a teacher's features


class Codec(nn.Module):
    """Speech to discrete tokens and back.

    Attributes:
        system: name of the implementation, e.g. "speechtokenizer".
        decodes: whether `decode` exists; semantic tokenizers only encode, another model speaks.
        name: model id written into tokens, e.g. "speechtokenizer_hubert_avg".
        sample_rate: Hz. hop_length: samples per frame. frame_rate: frames per second (Hz).
        codebook_sizes: entries of each codebook, K of them.
    """

    system: ClassVar[str]
    Config: ClassVar[type]
    decodes: ClassVar[bool] = True
    sample_rate: int
    hop_length: int
    codebook_sizes: tuple[int, ...]
    quantizer: ResidualVectorQuantizer
    semantic: nn.Module  # first codebook (B, T, D) -> teacher's features (B, T, S)

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.name = self.system
        self._fingerprint = ""

    # What a system implements ------------------------------------------------------------------------------

    def encode_batch(self, wave: Tensor, lengths: Tensor, num_codebooks: int) -> tuple[Tensor, Tensor]:
        """Codes (B, K, T) int64 and frame counts (B,) of wave (B, N), zero beyond lengths (B,) samples.

        Each row must equal the result of the row alone, whatever the others are.
        """
        raise NotImplementedError

    def decode_batch(self, codes: Tensor, lengths: Tensor, first_codebook: int) -> Tensor:
        """Wave (B, T * hop_length) of codes (B, K, T); each row as if alone up to its own lengths (B,) frames."""
        raise NotImplementedError

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

        keep, generator: as in ResidualVectorQuantizer. quantize: off, the latent passes as it is (a warm start).
        """
        latent = self.latent(wave)
        if not quantize:
            codes = torch.zeros(len(latent), self.num_codebooks, latent.shape[1], dtype=torch.int64)
            return CodecOutput(self.synthesis(latent), codes, latent.new_zeros(()), self.semantic(latent))
        found = self.quantizer(latent, keep=keep, generator=generator)
        return CodecOutput(
            self.synthesis(found.latent), found.codes, found.commit.mean(), self.semantic(found.first)
        )

    @classmethod
    def recognises(cls, keys: Collection[str]) -> bool:
        """Whether these state-dict keys are a published checkpoint of this system."""
        return False

    @classmethod
    def from_published(cls, state: dict[str, Tensor], config: Any) -> Self:
        """The codec with published weights; config is the content of a published config file, or None."""
        raise NotImplementedError

    def add_weight_norm(self) -> Self:
        """For training: weight norm on the convolutions of systems that are published so. Nothing changes else."""
        return self

    @classmethod
    def fold(cls, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A training state dict as the inference network has it (weight norm folded); the same where nothing folds."""
        return state

    # What users call ---------------------------------------------------------------------------------------

    @property
    def frame_rate(self) -> float:
        return self.sample_rate / self.hop_length

    @property
    def num_codebooks(self) -> int:
        return len(self.codebook_sizes)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def fingerprint(self) -> str:
        """16 hex digits that name these weights; tokens carry them."""
        if not self._fingerprint:
            self._fingerprint = checkpoint.fingerprint(self.state_dict(), dataclasses.asdict(self.config))
        return self._fingerprint

    def num_frames(self, num_samples: Tensor | int) -> Any:
        """Frames of num_samples samples: ceil(N / hop_length)."""
        return -(-num_samples // self.hop_length)

    def set_dtype(self, dtype: torch.dtype) -> Self:
        """Compute in this floating-point type. Tokens keep the name of the float32 weights and decode under any."""
        _ = self.fingerprint
        return self.to(dtype=dtype)

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
            source: path, encoded bytes, array or tensor (T,) or (C, T) in [-1, 1], or a list of those, of any
                lengths. Channels are averaged; other rates are resampled.
            sample_rate: rate of arrays and tensors in Hz; files know theirs.
            num_codebooks: how many codebooks to compute, all by default.
            batch_seconds: padded audio per forward pass, in seconds. It bounds memory and changes nothing else.

        Raises:
            AudioError: audio that is empty, not finite or not readable.
            ConfigError: num_codebooks outside 1..K.
        """
        wanted = self._wanted(num_codebooks)
        single = isinstance(source, (str, Path, bytes, np.ndarray, Tensor))
        sources: list[Any] = [source] if single else list(source)
        if not sources:
            raise AudioError("an empty list was given to encode: give at least one recording")
        waves = [torch.from_numpy(self._load(item, sample_rate)) for item in sources]
        num_samples = torch.tensor([len(wave) for wave in waves])
        lengths = self.num_frames(num_samples)
        codes = torch.zeros(len(waves), wanted, int(lengths.max()), dtype=torch.int64)
        for rows in batches(num_samples.tolist(), int(batch_seconds * self.sample_rate)):
            batch = nn.utils.rnn.pad_sequence([waves[row] for row in rows], batch_first=True)
            batch_lengths = num_samples[rows].to(self.device)
            with torch.inference_mode():
                found, _ = self.encode_batch(batch.to(self.device, self.dtype), batch_lengths, wanted)
            for row, item in zip(rows, found.cpu(), strict=True):
                codes[row, :, : lengths[row]] = item[:, : lengths[row]]
        return Tokens(
            codes=codes,
            lengths=lengths,
            num_samples=num_samples,
            model=self.name,
            fingerprint=self.fingerprint,
            sample_rate=self.sample_rate,
            frame_rate=self.frame_rate,
            codebook_sizes=self.codebook_sizes[:wanted],
        )

    @torch.inference_mode()
    def decode(self, tokens: Tokens, *, batch_seconds: float = 120.0) -> list[np.ndarray]:
        """Speech of tokens: a list of float32 (T,) at `sample_rate`, cut to the original lengths.

        Fewer codebooks give a coarser voice: `tokens.select(0, 1)` decodes the first (semantic) codebook alone,
        `tokens.select(1, 8)` the others alone, as SpeechTokenizer (arXiv 2308.16692 §4) does to convert voices.

        Raises:
            TokensError: tokens of another codec or of other weights.
        """
        self._check(tokens)
        frames = tokens.lengths.tolist()
        waves: list[np.ndarray] = [np.zeros(0, np.float32)] * len(tokens)
        for rows in batches(frames, int(batch_seconds * self.frame_rate)):
            longest = max(frames[row] for row in rows)
            codes = tokens.codes[rows, :, :longest].to(self.device)
            wave = self.decode_batch(codes, tokens.lengths[rows].to(self.device), tokens.first_codebook)
            for row, item in zip(rows, wave.float().cpu().numpy(), strict=True):
                waves[row] = item[: int(tokens.num_samples[row])].copy()
        return waves

    def save_pretrained(
        self, folder: str | Path, *, dtype: torch.dtype | None = None, card: str = ""
    ) -> Path:
        """Write config.json, model.safetensors and README.md, which `vokens.load` and `from_pretrained` open."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}
        if dtype is not None:
            state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
        config = {"system": self.system, "name": self.name, "config": dataclasses.asdict(self.config)}
        checkpoint.save_safetensors(folder / "model.safetensors", state)
        for name, text in (
            ("config.json", json.dumps(config, indent=2) + "\n"),
            ("README.md", card or self._card()),
        ):
            with atomic_write(folder / name) as partial:
                partial.write_text(text)
        return folder

    @classmethod
    def from_pretrained(cls, source: str | Path, **options: Any) -> Self:
        """As `vokens.load`, and an error where the source holds another system."""
        from vokens.models import load

        codec = load(source, **options)
        if not isinstance(codec, cls):
            raise CheckpointError(
                f"{source} holds the system {codec.system!r}, not {cls.system!r}: use vokens.load"
            )
        return codec

    def push_to_hub(self, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
        """Upload what `save_pretrained` writes to the Hugging Face hub; returns the commit's address."""
        import tempfile

        from huggingface_hub import HfApi

        api = HfApi(token=token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return str(api.upload_folder(repo_id=repo_id, folder_path=folder))

    # Checks ------------------------------------------------------------------------------------------------

    def _load(self, source: Audio, sample_rate: int | None) -> np.ndarray:
        if isinstance(source, (np.ndarray, Tensor)) and sample_rate is None:
            raise AudioError(
                f"an array was given without its rate: pass sample_rate= (this codec works at {self.sample_rate} Hz)"
            )
        return audio.load(source, self.sample_rate, source_rate=sample_rate)[0]

    def _wanted(self, num_codebooks: int | None) -> int:
        wanted = self.num_codebooks if num_codebooks is None else num_codebooks
        if not 1 <= wanted <= self.num_codebooks:
            raise ConfigError(
                f"num_codebooks={num_codebooks} was given: {self.name} has 1 to {self.num_codebooks}"
            )
        return wanted

    def _check(self, tokens: Tokens) -> None:
        if tokens.model != self.name:
            raise TokensError(
                f"these tokens were made by {tokens.model!r} and cannot be decoded by {self.name!r}: "
                f"load that model, vokens.load({tokens.model!r})"
            )
        if tokens.fingerprint and tokens.fingerprint != self.fingerprint:
            raise TokensError(
                f"these tokens were made by other weights of {self.name!r} (fingerprint {tokens.fingerprint}, "
                f"loaded {self.fingerprint}): decode with the weights that encoded, or encode again"
            )
        last = tokens.first_codebook + tokens.codes.shape[1]
        expected = self.codebook_sizes[tokens.first_codebook : last]
        if tuple(tokens.codebook_sizes) != expected:
            raise TokensError(
                f"codebooks {tokens.first_codebook + 1} to {last} of sizes {tuple(tokens.codebook_sizes)} were given, "
                f"{self.name} has {self.num_codebooks} of sizes {self.codebook_sizes}"
            )

    def _card(self) -> str:
        kbps = self.frame_rate * sum(np.log2(self.codebook_sizes)) / 1000
        return (
            f"---\nlibrary_name: vokens\ntags: [audio, codec, {self.system}]\n---\n# {self.name}\n\n"
            f"A `{self.system}` codec: {self.sample_rate} Hz, {self.frame_rate:g} frames per second, "
            f"{self.num_codebooks} codebooks, {kbps:.2f} kbit/s.\n\n"
            '```python\nimport vokens\ncodec = vokens.load("THIS_FOLDER")\n```\n'
        )


def batches(lengths: Sequence[int], budget: int, padding: float = 1.0) -> Iterator[list[int]]:
    """Row numbers in groups of similar length whose padded total stays within budget (one row may exceed it).

    padding: the largest share of a group's padded total that may be padding.
    """
    group: list[int] = []
    filled = 0
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        padded = (len(group) + 1) * lengths[group[0] if group else row]
        if group and (padded > budget or filled + lengths[row] < (1 - padding) * padded):
            yield group
            group, filled = [], 0
        group.append(row)
        filled += lengths[row]
    if group:
        yield group


def build_config(config_type: type, values: dict[str, Any], where: str) -> Any:
    """A frozen config dataclass from plain values (lists become tuples); unknown names are an error."""
    known = {field.name for field in dataclasses.fields(config_type)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ConfigError(f"{where}: unknown settings {unknown}; {config_type.__name__} has {sorted(known)}")
    return config_type(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def mask_of(lengths: Tensor, longest: int) -> Tensor:
    """(B, T) bool: True inside each row's length."""
    return torch.arange(longest, device=lengths.device) < lengths.unsqueeze(1)


__all__ = ["Audio", "Codec", "CodecOutput", "batches", "build_config", "mask_of"]
