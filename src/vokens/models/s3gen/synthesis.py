"""Checked tokens, voices and sampling parameters to mels and waves: what S3Gen's flow and vocoder do for a batch.

An utterance of any length takes bounded memory: the flow makes pieces that cross-fade, the vocoder runs as one stream.
Mels are faded, not waves: phases of two pieces do not agree, and the vocoder runs on through the joint.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vokens.errors import ConfigError, TokensError
from vokens.flow.noise import Generators, broadcast_generators
from vokens.models.s3gen.flow import Schedule, TokenToMel
from vokens.models.s3gen.hift import HiFTNetModel, trim_fade
from vokens.models.s3gen.voice import ReferenceVoice
from vokens.nn.streaming import Chunks
from vokens.one_or_list import type_name
from vokens.tokens import Tokens

LONGEST = 750  # tokens, 30 s: longer than utterances in training, and attention grows with the square
PIECE = 500  # tokens at most in a piece, 20 s
OVERLAP = 25  # tokens that two pieces share, 1 s

Ids = Tensor | np.ndarray | Sequence[Any]
Watermark = Callable[[np.ndarray, int], np.ndarray]


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters of a batch of utterances.

    n_cfm_timesteps: steps of the ODE, the release's by default. guidance: strength of classifier-free guidance.
    chunks: the streaming mask in tokens (`S3GenModel.chunks`); full attention by default.
    generator: of all noise, drawn in the published order; one for each row makes rows independent of each other.
    seed: instead, noise that depends on the seed and the position only, the same in batches, streams and on all
        devices; one for all rows or one for each. noise: the flow's, (T, mel_bins) for each row, prompt included.
    """

    n_cfm_timesteps: int | None = None
    guidance: float | None = None
    chunks: Chunks | None = None
    generator: Generators = None
    seed: Sequence[int] | None = None
    noise: Sequence[Tensor] | None = None

    @classmethod
    def of(cls, rows: int, given: Mapping[str, Any]) -> "Sampling":
        """Parameters by name, with one seed for each row.

        Raises ConfigError for names that do not exist, and values that exclude each other or do not fit the rows.
        """
        known = sorted(each.name for each in fields(cls))
        if unknown := sorted(set(given) - set(known)):
            raise ConfigError(f"{unknown} were given: settings of sampling are {known}")
        made = cls(**given)
        if made.seed is not None and made.generator is not None:
            raise ConfigError("both generator and seed were given: one of them says what the noise is")
        if made.n_cfm_timesteps is not None and made.n_cfm_timesteps < 1:
            raise ConfigError(f"n_cfm_timesteps={made.n_cfm_timesteps} was given: 1 or more are accepted")
        broadcast_generators(made.generator, rows)
        if isinstance(made.seed, int):
            return replace(made, seed=[made.seed] * rows)
        if made.seed is not None and len(made.seed) != rows:
            raise ConfigError(f"{len(made.seed)} seeds for {rows} utterances: one for all or one each")
        return made

    def rows(self, numbers: Sequence[int]) -> "Sampling":
        """Those of some rows."""
        own, seed = self.generator, self.seed
        return replace(
            self,
            generator=[own[row] for row in numbers] if isinstance(own, Sequence) else own,
            seed=None if seed is None else [seed[row] for row in numbers],
        )

    @property
    def of_flow(self) -> dict[str, Any]:
        """Arguments of `TokenToMel.generate`."""
        seeds = self.seed if self.noise is None else None
        return {"chunks": self.chunks, "generator": self.generator, "seeds": seeds, "noise": self.noise}

    def in_pieces(self, row: Tensor) -> bool:
        """True for a row that is long enough to be spoken in pieces, unless the parameters exclude it."""
        return self.chunks is None and self.noise is None and len(row) > LONGEST


@dataclass(frozen=True)
class Synthesis:
    """Flow and vocoder. Rows are ids (N,), each with its voice. fade: Chatterbox's start of each wave."""

    flow: TokenToMel
    mel2wav: HiFTNetModel
    fade: bool = False
    watermark: Watermark | None = None

    @torch.inference_mode()
    def mels(
        self, rows: list[Tensor], voices: list[ReferenceVoice], sampling: Sampling, finalize: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Mels (B, 80, F) and their frames (B,)."""
        plan = self.flow.schedule(sampling.n_cfm_timesteps, guidance=sampling.guidance)
        if not finalize or not any(map(sampling.in_pieces, rows)):
            owners = [voice.voice for voice in voices]
            return self.flow.generate(rows, owners, finalize=finalize, schedule=plan, **sampling.of_flow)
        mels = [
            self._faded(row, voice, sampling.rows([number]), plan)
            for number, (row, voice) in enumerate(zip(rows, voices, strict=True))
        ]
        counts = torch.tensor([len(mel) for mel in mels], device=self.flow.device)
        return pad_sequence(mels, batch_first=True).transpose(1, 2), counts

    @torch.inference_mode()
    def waves(
        self,
        mel: Tensor,
        frames: Tensor,
        rows: list[Tensor],
        sampling: Sampling,
        cache_source: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, list[int]]:
        """Waves (B, N), sources (B, 1, N) and the samples of each row of what `mels` has made of these rows."""
        counts = (frames * self.mel2wav.config.hop_length).tolist()
        if any(map(sampling.in_pieces, rows)):
            pairs = [
                self._vocoded(mel[number : number + 1, :, :count], row, sampling.rows([number]))
                for number, (row, count) in enumerate(zip(rows, frames.tolist(), strict=True))
            ]
            waves = pad_sequence([wave[0] for wave, _ in pairs], True)
            sources = pad_sequence([source[0, 0] for _, source in pairs], True)[:, None]
        else:
            lengths = None if int(frames.min()) == mel.shape[2] else frames
            draws = {"generator": sampling.generator, "seed": sampling.seed}
            waves, sources = self.mel2wav.inference(mel, cache_source, lengths, **draws)
        if self.fade:
            waves = trim_fade(waves, self.rate)
        if self.watermark is not None:
            waves = marked(self.watermark, self.rate, waves, counts)
        return waves, sources, counts

    def stream(self, mels: Iterable[Tensor], seed: int) -> Iterator[np.ndarray]:
        """The wave float32 (n,) of one utterance's mels (1, 80, F), as they come."""
        ramp = trim_fade(torch.ones(1, self.rate // 25), self.rate)[0].numpy()
        done = 0
        for wave, _ in self.mel2wav.stream(mels, seed):
            sound = wave[0].float().cpu().numpy()
            if self.fade and done < len(ramp):
                begin = ramp[done : done + len(sound)]
                sound[: len(begin)] *= begin
            done += len(sound)
            if len(sound):
                yield sound

    @property
    def rate(self) -> int:
        """Samples per second."""
        return self.mel2wav.config.sampling_rate

    def _vocoded(self, mel: Tensor, row: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
        """Wave (1, N) and source (1, 1, N) of one row, which does not depend on the lengths of the others."""
        if not sampling.in_pieces(row):
            return self.mel2wav.inference(mel, generator=sampling.generator, seed=sampling.seed)
        (generator,) = broadcast_generators(sampling.generator, 1)
        (seed,) = sampling.seed or [int(torch.randint(2**62, (), generator=generator))]
        pieces = mel.split(self.flow.config.token_mel_ratio * PIECE, 2)
        waves, sources = zip(*self.mel2wav.stream(pieces, seed), strict=True)
        return torch.cat(waves, 1), torch.cat(sources, 2)

    def _faded(self, row: Tensor, voice: ReferenceVoice, sampling: Sampling, plan: Schedule) -> Tensor:
        """The mel (F, bands) of one row, of pieces that cross-fade.

        A piece may lack a frame at its start (an odd prompt of Chatterbox): there the piece before goes on alone.
        """
        ratio = self.flow.config.token_mel_ratio
        parts: list[Tensor] = []
        for start, end in spans(len(row)):
            mel, _ = self.flow.generate([row[start:end]], voice.voice, schedule=plan, **sampling.of_flow)
            mel = mel[0].T
            if parts:
                shared, before = ratio * OVERLAP - (ratio * (end - start) - len(mel)), parts.pop()
                weight = ((torch.arange(shared, device=mel.device) + 0.5) / shared)[:, None]
                mixed = before[-shared:] * (1 - weight) + mel[:shared] * weight
                parts.append(before[:-shared])
                mel = torch.cat([mixed, mel[shared:]])
            parts.append(mel)
        return torch.cat(parts)


def spans(tokens: int) -> list[tuple[int, int]]:
    """Start and end of each piece, equally long to a token, each sharing OVERLAP with the next."""
    if tokens <= LONGEST:
        return [(0, tokens)]
    count = -(-(tokens - OVERLAP) // (PIECE - OVERLAP))
    borders = [round(number * (tokens - OVERLAP) / count) for number in range(count + 1)]
    return [(start, end + OVERLAP) for start, end in pairwise(borders)]


def marked(watermark: Watermark, rate: int, waves: Tensor, counts: Sequence[int]) -> Tensor:
    """Waves (B, N) with their first `counts` samples as the watermark gives them."""
    waves = waves.clone()
    for row, count in zip(waves, counts, strict=True):
        wave = watermark(row[:count].cpu().numpy(), rate)
        if np.shape(wave) != (count,):
            raise ConfigError(f"the watermark made {np.shape(wave)} of {(count,)} samples: give as many")
        row[:count] = torch.as_tensor(np.asarray(wave, np.float32))
    return waves


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
