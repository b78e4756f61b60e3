"""A language model over K streams of codes, with a delay between them (SoCodec, arXiv 2409.00933 §3.4).

Stream j is delayed by j * delay frames, so that a frame's later streams are conditioned on its earlier ones; delay 0
predicts all in parallel. A step sums the streams' embeddings, and each has a head. It models tokens of any codec.
"""

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vokens.errors import ConfigError, TokensError
from vokens.lm.cache import KVCache
from vokens.lm.sampling import SamplingParams
from vokens.lm.transformer import CausalTransformer
from vokens.models.pretrained import Pretrained
from vokens.nn.product import Linear
from vokens.tokens import Tokens

IGNORED = -100  # masked targets


@dataclass(frozen=True)
class TokenLMConfig:
    """Sizes of a token LM, and the codec of its tokens."""

    codebook_sizes: tuple[int, ...] = (16384,) * 4  # of the K streams
    delay: int = 1  # frames between one stream and the next, 0 for parallel prediction
    width: int = 1024
    layers: int = 12
    heads: int = 16
    dropout: float = 0.0
    vector_width: int = 0  # of the codec's global vector, a prefix of the sequence; 0 without
    model: str = ""  # name of the codec, for the `Tokens` that are sampled, as what follows
    fingerprint: str = ""
    sample_rate: int = 16000
    frame_rate: float = 25 / 3

    def __post_init__(self) -> None:
        if self.width % (2 * self.heads):
            raise ConfigError(f"width {self.width} must be a multiple of twice the {self.heads} heads")
        if self.delay < 0 or not self.codebook_sizes or min(self.codebook_sizes) < 1:
            raise ConfigError(
                f"delay {self.delay}, codebook_sizes {self.codebook_sizes}: at least 0, one of 1"
            )


PAPER = SamplingParams(temperature=0.8, top_k=10, top_p=0.8)


def Sampling(temperature: float = 0.8, top_k: int = 10, top_p: float = 0.8) -> SamplingParams:
    """Deprecated: `vokens.lm.SamplingParams`."""
    return SamplingParams(temperature, top_k, top_p)


def delayed(codes: Tensor, lengths: Tensor, sizes: tuple[int, ...], delay: int) -> Tensor:
    """Codes (B, K, T) with their ends and delays: (B, K, T + 2 + delay * (K - 1)).

    Stream j of a row of L frames is 1 + delay * j starts (`size + 1`), L codes, and ends (`size`) from there on.
    """
    streams, frames = codes.shape[1:]
    steps = torch.arange(frames + 2 + delay * (streams - 1), device=codes.device)
    place = steps - 1 - delay * torch.arange(streams, device=codes.device)[:, None]  # (K, S) in the codes
    ends = torch.tensor(sizes, device=codes.device)[:, None]
    moved = ends
    if frames:
        moved = codes.gather(2, place.clamp(0, frames - 1).expand(len(codes), -1, -1))
    moved = torch.where(place < lengths.to(codes.device)[:, None, None], moved, ends)
    return torch.where(place < 0, ends + 1, moved)


class TokenLM(Pretrained):
    """Autoregressive model of K streams of codes. `vokens.load(folder)` opens what training saved."""

    system = "token_lm"
    Config = TokenLMConfig

    def __init__(self, config: TokenLMConfig) -> None:
        super().__init__(config)
        width, sizes = config.width, config.codebook_sizes
        self.embeddings = nn.ModuleList(nn.Embedding(size + 2, width) for size in sizes)  # codes, end, start
        self.heads = nn.ModuleList(Linear(width, size + 1) for size in sizes)
        self.vector = Linear(config.vector_width, width) if config.vector_width else None
        self.transformer = CausalTransformer(width, config.layers, config.heads, config.dropout)
        for module in (*self.embeddings, *self.heads):
            nn.init.normal_(module.get_parameter("weight"), std=0.02)

    def forward(
        self, steps: Tensor, vector: Tensor | None = None, cache: KVCache | None = None
    ) -> list[Tensor]:
        """Logits, K of (B, S, size + 1), of the step after each of steps (B, K, S), which follow the cache.

        vector: (B, vector_width), at the beginning (no cache, or an empty one) of a model that has one.
        """
        x = torch.stack([embed(steps[:, j]) for j, embed in enumerate(self.embeddings)]).sum(0)
        prefix = self._prefix(vector, len(steps)) if cache is None or not cache.length else None
        if prefix is not None:
            x = torch.cat([prefix, x], 1)
        hidden = self.transformer(x, cache)
        return [head(hidden[:, -steps.shape[2] :]) for head in self.heads]

    def _prefix(self, vector: Tensor | None, rows: int) -> Tensor | None:
        if (vector is None) == (self.vector is not None) or (vector is not None and len(vector) != rows):
            shape = "none" if vector is None else tuple(vector.shape)
            raise TokensError(f"global vectors: {shape} given, ({rows}, {self.config.vector_width}) needed")
        return None if self.vector is None or vector is None else self.vector(vector).unsqueeze(1)

    def losses(self, codes: Tensor, lengths: Tensor, vector: Tensor | None = None) -> Tensor:
        """Mean cross entropy (K,) of each stream, its end included, of codes (B, K, T), lengths (B,)."""
        sizes, delay = self.config.codebook_sizes, self.config.delay
        steps = delayed(codes, lengths, sizes, delay)
        logits = self(steps[..., :-1], vector)
        places = torch.arange(steps.shape[2] - 1, device=codes.device)
        stream_losses = []
        for j, stream_logits in enumerate(logits):
            frame = places - delay * j  # of the targets; the end is frame L
            loss_mask = (frame >= 0) & (frame <= lengths.to(codes.device)[:, None])
            target = steps[:, j, 1:].masked_fill(~loss_mask, IGNORED)
            scores = stream_logits.float().flatten(0, 1)
            stream_losses.append(F.cross_entropy(scores, target.flatten(), ignore_index=IGNORED))
        return torch.stack(stream_losses)

    @torch.inference_mode()
    def generate(
        self,
        rows: int = 1,
        *,
        prompt: Tokens | None = None,
        vector: Tensor | None = None,
        max_frames: int = 500,
        sampling: SamplingParams | None = None,
        seed: int = 0,
    ) -> Tokens:
        """Sample tokens of `rows` utterances, or continue a prompt's rows, prompt included.

        Row i is a function of its prompt, vector and (seed, i) alone. The first stream's end token ends a row, after
        at most max_frames or its prompt's frames; the other streams end at the same frame.

        vector: (rows, vector_width) for a model with global vectors; a prompt brings its own.

        Raises TokensError for a prompt of other codebooks.
        """
        sampling, config = sampling or PAPER, self.config
        sizes, delay, streams = config.codebook_sizes, config.delay, len(config.codebook_sizes)
        if prompt is not None:
            if tuple(prompt.codebook_sizes) != tuple(sizes):
                raise TokensError(f"a prompt of codebooks {prompt.codebook_sizes}: {sizes} are accepted")
            rows, vector = len(prompt), prompt.global_vector if vector is None else vector
        vector = None if vector is None or self.vector is None else vector.to(self.device, self.dtype)
        prompt_lengths = torch.zeros(rows, dtype=torch.int64) if prompt is None else prompt.lengths.cpu()
        total = max(int(prompt_lengths.max()) if rows else 0, max_frames)
        codes = torch.zeros(rows, streams, total, dtype=torch.int64)
        if prompt is not None:
            codes[..., : prompt.codes.shape[2]] = prompt.codes.cpu()
        generators = [torch.Generator().manual_seed(seed * 1_000_003 + row) for row in range(rows)]
        lengths = prompt_lengths.clamp(min=max_frames)
        cache = KVCache(config.layers)
        for step in range(total + delay * (streams - 1)):
            if step - delay * (streams - 1) >= int(lengths.max()):
                break
            inputs = delayed(codes, lengths, sizes, delay)[..., step : step + 1]
            logits = [each[:, 0].float().cpu() for each in self(inputs.to(self.device), vector, cache)]
            for row, j in product(range(rows), range(streams)):
                frame = step - delay * j
                if not prompt_lengths[row] <= frame < lengths[row]:
                    continue
                may_end = j == 0 and frame > 0
                stream_logits = logits[j][row] if may_end else logits[j][row, :-1]
                code = sampling.draw(stream_logits, generator=generators[row])
                if code == sizes[j]:
                    lengths[row] = frame
                else:
                    codes[row, j, frame] = code
        longest = int(lengths.max()) if rows else 0
        num_samples = (lengths * (config.sample_rate / config.frame_rate)).round().long()
        facts = config.model, config.fingerprint, config.sample_rate, config.frame_rate
        vector = None if vector is None else vector.float().cpu()
        return Tokens(codes[..., :longest], lengths, num_samples, *facts, sizes, global_vector=vector)
