"""A checked request to S3Gen for a batch of utterances: tokens of any form, and sampling parameters."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor

from vokens.errors import ConfigError, TokensError
from vokens.flow.noise import Generators, one_each
from vokens.models.s3gen.long import LONGEST
from vokens.nn.streaming import Chunks
from vokens.one_or_list import type_name
from vokens.tokens import Tokens

Ids = Tensor | np.ndarray | Sequence[Any]


class Sampling(TypedDict, total=False):
    """Sampling parameters of a batch of utterances.

    n_cfm_timesteps: steps of the ODE, the dialect's by default. guidance: strength of classifier-free guidance.
    chunks: the streaming mask in tokens (`S3GenModel.chunks`); full attention by default.
    generator: of all noise, drawn in the published order; one for each row makes rows independent of each other.
    seed: instead, noise that depends on the seed and the position only, the same in batches, streams and on all
        devices; one for all rows or one for each. noise: the flow's, (T, mel_bins) for each row, prompt included.
    """

    n_cfm_timesteps: int | None
    guidance: float | None
    chunks: Chunks | None
    generator: Generators
    seed: int | Sequence[int] | None
    noise: Sequence[Tensor] | None


@dataclass(frozen=True)
class Settings:
    """Checked `Sampling` of a batch; seeds are one for each row."""

    steps: int | None
    guidance: float | None
    chunks: Chunks | None
    generator: Generators
    seeds: list[int] | None
    noise: Sequence[Tensor] | None

    @classmethod
    def of(cls, given: Sampling, rows: int) -> "Settings":
        """Raises ConfigError for settings that do not exist, exclude each other, or do not fit the rows."""
        unknown = set(given) - set(Sampling.__annotations__)
        if unknown:
            raise ConfigError(
                f"{sorted(unknown)} were given: settings of sampling are {sorted(Sampling.__annotations__)}"
            )
        seed, generator, steps = given.get("seed"), given.get("generator"), given.get("n_cfm_timesteps")
        if seed is not None and generator is not None:
            raise ConfigError("both generator and seed were given: one of them says what the noise is")
        if steps is not None and steps < 1:
            raise ConfigError(f"n_cfm_timesteps={steps} was given: 1 or more are accepted")
        one_each(generator, rows)
        seeds = [seed] * rows if isinstance(seed, int) else None if seed is None else list(seed)
        if seeds is not None and len(seeds) != rows:
            raise ConfigError(f"{len(seeds)} seeds were given for {rows} utterances: one for all or one each")
        return cls(steps, given.get("guidance"), given.get("chunks"), generator, seeds, given.get("noise"))

    def row(self, number: int) -> "Settings":
        """Those of one row."""
        generator = self.generator[number] if isinstance(self.generator, Sequence) else self.generator
        return replace(self, generator=generator, seeds=self.seeds and [self.seeds[number]])

    def in_pieces(self, row: Tensor) -> bool:
        """True for a row that is long enough to be spoken in pieces, unless the settings exclude it."""
        return self.chunks is None and self.noise is None and len(row) > LONGEST


def rows_of(tokens: Ids, lengths: Tensor | None = None) -> list[Tensor]:
    """Rows of tokens (N,), (B, N), or a list of (N,), each cut to its length."""
    if isinstance(tokens, str | bytes | Mapping) or not isinstance(tokens, Iterable):
        raise TokensError(
            f"{type_name(tokens)} was given as tokens: Tokens, or integers (N,), (B, N) are accepted"
        )
    if isinstance(tokens, Tensor | np.ndarray):
        whole = torch.as_tensor(tokens)
        rows = list(whole) if whole.dim() > 1 else [whole]
    elif all(isinstance(item, int | np.integer) for item in tokens):
        rows = [torch.as_tensor(np.asarray(tokens, np.int64))]
    else:
        rows = [torch.as_tensor(item) for item in tokens]
    if lengths is None:
        return rows
    counts = [int(n) for n in lengths.flatten().tolist()]
    if len(counts) != len(rows) or any(n > len(row) for n, row in zip(counts, rows, strict=True)):
        raise TokensError(
            f"speech_token_lens {counts} were given for rows of {[len(row) for row in rows]} tokens: one for each "
            "row, at most its tokens"
        )
    return [row[:n] for row, n in zip(rows, counts, strict=True)]


def piece_of(piece: int | Ids) -> Tensor:
    """Ids (n,) of a single one or of several."""
    ids = torch.as_tensor(piece)
    return ids.reshape(1) if ids.dim() == 0 else ids


def ids_of(tokens: Tokens, speaker: str, name: str, fingerprint: str, size: int = 0) -> list[Tensor]:
    """Rows (N,) of the tokens that a model called `speaker` speaks, of codec `name` with `size` ids.

    Raises TokensError for tokens of another tokenizer, or of other weights than a trained model has learnt.
    """
    sizes = (size,) if size else tokens.codebook_sizes
    if (tokens.model, tokens.first_codebook, tokens.codebook_sizes) != (name, 0, sizes) or len(sizes) != 1:
        raise TokensError(
            f"{tokens!r} were given: {speaker} speaks the one codebook of {name!r}, so encode with that model"
        )
    if fingerprint and tokens.fingerprint and tokens.fingerprint != fingerprint:
        raise TokensError(
            f"these tokens were made by other weights of {name!r} (fingerprint {tokens.fingerprint}, "
            f"{speaker} has learnt {fingerprint}): encode again"
        )
    return [row[0, :n] for row, n in zip(tokens.codes, tokens.lengths.tolist(), strict=True)]
