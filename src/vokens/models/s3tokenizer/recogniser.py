"""The recogniser that S3Tokenizer is trained in (arXiv 2407.05407 §2.1, 2412.10117 §2.1): the tokenizer's encoder, its
quantizer in the middle, and on the quantized states more transformer blocks with a recognition loss.

Each token emits several CTC frames, so that 25 tokens per second suffice for fast speech.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from vokens import checkpoint
from vokens.config import build_config
from vokens.errors import CheckpointError, ConfigError
from vokens.models.s3tokenizer.config import S3TokenizerConfig
from vokens.models.s3tokenizer.encoder import Block, Norm, S3Encoder
from vokens.nn.attention import rotation, sinusoids
from vokens.nn.masks import padding_mask
from vokens.nn.product import Linear
from vokens.quantize.fsq import FiniteScalarQuantizer
from vokens.quantize.vq import UnitVectorLearner

Mode = Literal["on", "soft", "off"]  # of the quantizer


@dataclass(frozen=True)
class HeadConfig:
    """ASR head configuration (training only)."""

    # Characters of the texts; the CTC blank comes before them as symbol 0.
    alphabet: str = " 'abcdefghijklmnopqrstuvwxyz"
    layers: int = 2  # blocks between quantizer and CTC
    emissions: int = 2  # CTC frames per token
    decoder_layers: int = 0  # of the attention decoder; 0 = none
    # Of features that states before and after the quantizer are projected to; 0 = none.
    teacher_width: int = 0

    def __post_init__(self) -> None:
        if self.layers < 1 or self.emissions < 1 or min(self.decoder_layers, self.teacher_width) < 0:
            raise ConfigError(f"layers and emissions must be at least 1, the others at least 0; got {self}")
        if len(set(self.alphabet)) < max(2, len(self.alphabet)):
            raise ConfigError(f"alphabet {self.alphabet!r}: two or more different characters are accepted")


@dataclass(frozen=True)
class Recognition:
    """Output of the ASR model in training; T tokens, E emissions per token."""

    ctc: Tensor  # (B, T * E, 1 + len(alphabet)) logits, the blank first
    frames: Tensor  # (B,) CTC frames of each row
    codes: Tensor  # (B, T) int64
    commit: Tensor  # () squared distance of the states to their codewords; 0 with FSQ
    # (B, T, S) predictions of the teacher's features, from the states before the quantizer and from the ASR head's.
    before: Tensor | None
    after: Tensor | None
    spelling: Tensor | None  # (B, L + 1, 1 + len(alphabet)) logits of the attention decoder; 0 ends the text


class Recogniser(nn.Module):
    """S3Tokenizer's network in training."""

    def __init__(self, config: S3TokenizerConfig, head: HeadConfig) -> None:
        super().__init__()
        self.config, self.head = config, head
        self.encoder = S3Encoder(config)
        self.quantizer: FiniteScalarQuantizer | UnitVectorLearner
        if config.quantizer == "fsq":
            self.quantizer = FiniteScalarQuantizer(config.width, config.fsq_dims, config.fsq_levels)
        else:
            self.quantizer = UnitVectorLearner(config.width, config.codebook_size)
        symbols, width = 1 + len(head.alphabet), config.width
        self.expand = Linear(config.fsq_dims if config.quantizer == "fsq" else width, width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(head.layers))
        self.norm = Norm(width)
        self.ctc = Linear(width, head.emissions * symbols)
        self.before = Linear(width, head.teacher_width) if head.teacher_width else None
        self.after = Linear(width, head.teacher_width) if head.teacher_width else None
        sizes = width, config.heads, head.decoder_layers, symbols
        self.speller = Speller(*sizes) if head.decoder_layers else None

    def forward(
        self,
        mel: Tensor,
        lengths: Tensor,
        texts: Tensor | None = None,
        *,
        quantizer: Mode = "on",
        generator: torch.Generator | None = None,
        trunk: Tensor | None = None,
    ) -> Recognition:
        """One pass over log-mels.

        Args:
            mel: (B, n_mels, F); lengths: (B,) frames of each row.
            texts: (B, L) symbols, 0 beyond each end; needed by the attention decoder alone.
            quantizer: "soft" passes the bottleneck unrounded, to measure what rounding costs; "off" bypasses it with
                the encoder's states, for a warm start.
            generator: for initialising and reviving codebook entries.
            trunk: (B, T', D) features of a frozen trunk, computed before; mel is then not used.
        """
        states = self.states(mel, lengths, trunk)
        mask = padding_mask(-(-lengths // self.config.hop), states.shape[1])
        values, codes, commit = self._quantize(states, mask, quantizer == "on", generator)
        x = self.expand(values)
        if quantizer == "off":
            x = F.layer_norm(states, states.shape[-1:]) + 0 * x  # keeps all weights in the graph for DDP
        x = self.recognise(x, mask)
        logits = self.ctc(x).unflatten(-1, (self.head.emissions, -1)).flatten(1, 2)
        return Recognition(
            ctc=logits,
            frames=mask.sum(1) * self.head.emissions,
            codes=codes,
            commit=commit,
            before=None if self.before is None else self.before(F.layer_norm(states, states.shape[-1:])),
            after=None if self.after is None else self.after(x),
            spelling=None if self.speller is None or texts is None else self.speller(x, mask, texts),
        )

    def states(self, mel: Tensor, lengths: Tensor, trunk: Tensor | None = None) -> Tensor:
        """Hidden states (B, T, D) of the encoder, from log-mels or from features of its trunk."""
        if trunk is None:
            return self.encoder(mel, lengths)
        return self.encoder.merged(trunk, -(-lengths // (2 * self.config.first_stride)))

    @torch.no_grad()
    def fit(self, states: Tensor, generator: torch.Generator | None = None) -> None:
        """Initialise the bottleneck from the encoder's states (N, D) after a warm start, by k-means or principal
        components, and the linear layer after it by ridge regression to the states.
        """
        if isinstance(self.quantizer, UnitVectorLearner):
            self.quantizer.fit(states, generator)
        else:
            self.quantizer.fit(states)
        mask = torch.ones(1, len(states), dtype=torch.bool, device=states.device)
        values = self.eval()._quantize(states[None], mask, True, None)[0][0]
        inputs = F.pad(values, (0, 1), value=1.0).double()
        targets = F.layer_norm(states, states.shape[-1:]).double()
        ridge = 1e-4 * len(states) * torch.eye(inputs.shape[1], dtype=inputs.dtype, device=inputs.device)
        solution = torch.linalg.solve(inputs.T @ inputs + ridge, inputs.T @ targets)
        self.expand.weight.copy_(solution[:-1].T)
        self.expand.bias.copy_(solution[-1])

    def recognise(self, x: Tensor, mask: Tensor) -> Tensor:
        """Hidden states (B, T, D) of the ASR head, from the bottleneck (B, T, D); mask (B, T) of padding."""
        turn = rotation(x.shape[1], self.config.width // self.config.heads, x.device)
        for block in self.blocks:
            x = block(x, mask, turn)
        return self.norm(x)

    def _quantize(
        self, states: Tensor, mask: Tensor, rounding: bool, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        if isinstance(self.quantizer, UnitVectorLearner):
            return self.quantizer(states, mask, generator, rounding)
        values, codes = self.quantizer(states, rounding)
        return values, codes, values.new_zeros(())

    @staticmethod
    def tokenizer_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of the S3Tokenizer in a recogniser's state dict."""
        names = {
            "quantizer.project.weight": "codebook.project.weight",
            "quantizer.project.bias": "codebook.project.bias",
            "quantizer.codebook.embed": "codebook.embedding",
        }
        kept = {name: value for name, value in state.items() if name.startswith("encoder.")}
        return kept | {ours: state[name] for name, ours in names.items() if name in state}

    def save(self, path: str | Path) -> None:
        """Weights and settings as one safetensors file, which `open` reads."""
        settings = {"config": dataclasses.asdict(self.config), "head": dataclasses.asdict(self.head)}
        checkpoint.save_safetensors(path, self.state_dict(), {"recogniser": json.dumps(settings)})

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """A saved recogniser, in evaluation mode. Raises CheckpointError for another file."""
        state = checkpoint.read_state_dict(path)
        with safe_open(path, "pt") as file:
            metadata = (file.metadata() or {}).get("recogniser")
        if metadata is None:
            raise CheckpointError(f"{path} holds no recogniser: give a file that Recogniser.save wrote")
        settings = json.loads(metadata)
        model = cls(
            build_config(S3TokenizerConfig, settings["config"], str(path)),
            build_config(HeadConfig, settings["head"], str(path)),
        )
        checkpoint.load_strict(model, state, path)
        return model.eval()


class Speller(nn.Module):
    """Attention decoder: the next character from those before it and the recogniser's states."""

    def __init__(self, width: int, heads: int, layers: int, symbols: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(symbols, width)
        shape: dict[str, Any] = {"batch_first": True, "norm_first": True}
        layer = nn.TransformerDecoderLayer(width, heads, 4 * width, 0.0, "gelu", **shape)
        self.layers = nn.TransformerDecoder(layer, layers, nn.LayerNorm(width))
        self.out = Linear(width, symbols)

    def forward(self, states: Tensor, mask: Tensor, texts: Tensor) -> Tensor:
        """states (B, T, D), mask (B, T), texts (B, L) -> logits (B, L + 1, symbols)."""
        x = self.embedding(F.pad(texts, (1, 0)))  # 0 begins the text, and ends it
        x = x + sinusoids(x.shape[1], x.shape[2]).to(x)
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        return self.out(self.layers(x, states, tgt_mask=later, memory_key_padding_mask=~mask))
