"""Speech recognition with Whisper (Radford et al. 2022, arXiv 2212.04356): greedy, in many languages.

From a folder with model.safetensors under OpenAI's names, tokenizer.json and CTranslate2's config.json, which lists
suppressed tokens. Recordings are transcribed in windows of 30 s, as published; there is no temperature fallback.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vokens.audio.mel import WHISPER_80, LogMel
from vokens.checkpoint import load_strict, read_state_dict
from vokens.errors import AudioError, CheckpointError
from vokens.evaluator_files import check_files, open_tokenizer
from vokens.models.s3tokenizer.config import S3TokenizerConfig
from vokens.models.s3tokenizer.encoder import S3Encoder
from vokens.nn.attention import SelfAttention, attention
from vokens.nn.product import Linear
from vokens.text.files import read_json

RATE = 16000
WINDOW = 30 * RATE  # samples
HEAD_WIDTH = 64  # in all sizes of Whisper
Cached = dict[str, Tensor]  # keys and values of a layer


class DecoderBlock(nn.Module):
    """Causal self-attention, cross-attention to the encoder states, feed-forward; pre-norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        heads = width // HEAD_WIDTH
        self.attn, self.cross_attn = SelfAttention(width, heads), SelfAttention(width, heads)
        self.attn_ln, self.cross_attn_ln, self.mlp_ln = (nn.LayerNorm(width) for _ in range(3))
        self.mlp = nn.Sequential(Linear(width, 4 * width), nn.GELU(), Linear(4 * width, width))

    def forward(self, x: Tensor, states: Tensor, cached: Cached) -> Tensor:
        """x (1, n, D) after the cached positions, encoder states (1, T, D) -> (1, n, D)."""
        y = self.attn_ln(x)
        keys, values = self.attn.key(y), self.attn.value(y)
        if "k" in cached:
            keys, values = torch.cat([cached["k"], keys], 1), torch.cat([cached["v"], values], 1)
        cached["k"], cached["v"] = keys, values
        x = x + _attend(self.attn, y, keys, values)
        if "states_k" not in cached:
            part = self.cross_attn
            cached["states_k"], cached["states_v"] = part.key(states), part.value(states)
        y = self.cross_attn_ln(x)
        x = x + _attend(self.cross_attn, y, cached["states_k"], cached["states_v"], causal=False)
        return x + self.mlp(self.mlp_ln(x))


def _attend(part: SelfAttention, x: Tensor, keys: Tensor, values: Tensor, causal: bool = True) -> Tensor:
    """Attention of x (1, n, D); if causal, x is at the last positions of keys and values (1, T, D)."""
    q, k, v = (y.unflatten(-1, (part.heads, -1)).transpose(1, 2) for y in (part.query(x), keys, values))
    n, total = x.shape[1], keys.shape[1]
    mask = (
        torch.ones(n, total, dtype=torch.bool, device=x.device).tril(total - n) if causal and n > 1 else None
    )
    return part.out(attention(q, k, v, mask).transpose(1, 2).flatten(2))


class Decoder(nn.Module):
    """Decoder with a KV cache: ids to logits."""

    def __init__(self, width: int, layers: int, vocabulary: int, longest: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.positional_embedding = nn.Parameter(torch.zeros(longest, width))
        self.blocks = nn.ModuleList(DecoderBlock(width) for _ in range(layers))
        self.ln = nn.LayerNorm(width)

    def forward(self, ids: Tensor, states: Tensor, cached: list[Cached]) -> Tensor:
        """Next-token logits (V,) after ids (n,), which follow the cached ones; encoder states (1, T, D)."""
        start = cached[0]["k"].shape[1] if cached[0] else 0
        x = (self.token_embedding(ids) + self.positional_embedding[start : start + len(ids)])[None]
        for block, memory in zip(self.blocks, cached, strict=True):
            x = block(x, states, memory)
        return F.linear(self.ln(x)[0, -1], self.token_embedding.weight)


class WhisperNetwork(nn.Module):
    """Encoder and decoder; tensors are named as in OpenAI's release, but for the encoder's positions and last norm."""

    def __init__(self, n_mels: int, width: int, layers: int, vocabulary: int, longest: int) -> None:
        super().__init__()
        sizes = {"n_mels": n_mels, "width": width, "heads": width // HEAD_WIDTH, "layers": layers}
        plain: dict[str, Any] = {"first_stride": 1, "positions": "sinusoid", "memory_taps": 0}
        self.encoder = S3Encoder(S3TokenizerConfig(**sizes, **plain))
        self.ln_post = nn.LayerNorm(width)
        self.decoder = Decoder(width, layers, vocabulary, longest)

    @classmethod
    def of(cls, state: dict[str, Tensor], where: object) -> "WhisperNetwork":
        """The network of OpenAI's weights, with sizes from their shapes. Raises CheckpointError."""
        state = {name: value.float() for name, value in state.items()}
        try:
            state["encoder.positions"] = state.pop("encoder.positional_embedding")
            state |= {f"ln_post.{part}": state.pop(f"encoder.ln_post.{part}") for part in ("weight", "bias")}
            n_mels = state["encoder.conv1.weight"].shape[1]
            vocabulary, width = state["decoder.token_embedding.weight"].shape
            longest = len(state["decoder.positional_embedding"])
        except KeyError as error:
            raise CheckpointError(f"{where} lacks {error}: give weights under OpenAI's names") from error
        layers = len({name.split(".")[2] for name in state if name.startswith("decoder.blocks.")})
        network = cls(n_mels, width, layers, vocabulary, longest)
        load_strict(network, state, str(where))
        return network.eval().requires_grad_(False)

    def states(self, mel: Tensor) -> Tensor:
        """Encoder states (1, T, D) of a window's log-mel (1, n_mels, 2 T)."""
        return self.ln_post(self.encoder(mel))


class Whisper:
    """An ASR model from a folder; `language`: a code of Whisper's, such as en, de, zh."""

    def __init__(self, folder: str | Path, language: str = "en") -> None:
        home = check_files(folder, "whisper-base")
        self._tokenizer = open_tokenizer(home / "tokenizer.json", "Whisper speech recognition")
        self.network = WhisperNetwork.of(read_state_dict(home / "model.safetensors"), home)
        settings = read_json(home / "config.json")
        self._never, self._never_first = settings["suppress_ids"], settings["suppress_ids_begin"]
        marks = ("startoftranscript", language, "transcribe", "notimestamps", "endoftext")
        ids = [self._tokenizer.token_to_id(f"<|{mark}|>") for mark in marks]
        if None in ids:
            raise CheckpointError(f"{home} has no <|{marks[ids.index(None)]}|>: give a language of Whisper's")
        *self._start, self._end = ids
        self._mel = LogMel(WHISPER_80)

    @torch.inference_mode()
    def transcribe(self, wave: np.ndarray) -> str:
        """Transcript of a 16 kHz wave (T,), cased and punctuated; greedy, so deterministic."""
        wave = np.asarray(wave, np.float32)
        if wave.ndim != 1 or not len(wave):
            raise AudioError(f"Whisper needs a mono wave (T,) with samples in it, got {wave.shape}")
        texts = []
        for piece in torch.from_numpy(wave).split(WINDOW):
            mel = self._mel(F.pad(piece, (0, WINDOW - len(piece)))[None])
            texts.append(self._tokenizer.decode(self._ids(mel), skip_special_tokens=True).strip())
        return re.sub(r"\s+", " ", " ".join(texts)).strip()

    def _ids(self, mel: Tensor) -> list[int]:
        """Token ids of a window: at most half of the positions, as published, which ends loops."""
        decoder = self.network.decoder
        states, cached = self.network.states(mel), [Cached() for _ in decoder.blocks]
        longest = len(decoder.positional_embedding) // 2
        ids: list[int] = []
        new = self._start
        while len(ids) < longest:
            scores = decoder(torch.tensor(new), states, cached)
            scores[self._never if ids else [*self._never, *self._never_first]] = -torch.inf
            scores[self._start[-1] :] = -torch.inf  # times
            new = [int(scores.argmax())]
            if new[0] == self._end:
                break
            ids += new
        return ids
