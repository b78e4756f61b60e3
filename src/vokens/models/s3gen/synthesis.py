"""Checked tokens and voices to mels and waves: what flow and vocoder of S3Gen do together for a batch or a long row."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

import vokens.models.s3gen.long as long
from vokens.errors import ConfigError
from vokens.flow.noise import PrefixNoise, one_each
from vokens.models.s3gen.flow import Schedule, TokenToMel
from vokens.models.s3gen.hift import HiFTNetModel, trim_fade
from vokens.models.s3gen.sampling import Settings
from vokens.models.s3gen.voice import ReferenceVoice

Watermark = Callable[[np.ndarray, int], np.ndarray]


@dataclass(frozen=True)
class Synthesis:
    """Flow and vocoder. Rows are ids (N,), each with its voice."""

    flow: TokenToMel
    mel2wav: HiFTNetModel

    def schedule(self, settings: Settings) -> Schedule:
        """The solver's plan."""
        return self.flow.schedule(settings.steps, guidance=settings.guidance)

    @torch.inference_mode()
    def mels(
        self, rows: list[Tensor], voices: list[ReferenceVoice], finalize: bool, settings: Settings
    ) -> tuple[Tensor, Tensor]:
        """Mels (B, 80, F) and their frames (B,)."""
        plan = self.schedule(settings)
        if any(settings.in_pieces(row) for row in rows) and finalize:
            mels = [
                torch.cat([*self._faded(row, voice, settings.row(number), plan)], 2)[0].T
                for number, (row, voice) in enumerate(zip(rows, voices, strict=True))
            ]
            counts = torch.tensor([len(mel) for mel in mels], device=self.flow.device)
            return pad_sequence(mels, batch_first=True).transpose(1, 2), counts
        return self.flow.generate(
            rows,
            [voice.voice for voice in voices],
            finalize=finalize,
            chunks=settings.chunks,
            schedule=plan,
            generator=settings.generator,
            noise=self._noise(rows, voices, finalize, settings),
        )

    def _noise(
        self, rows: list[Tensor], voices: list[ReferenceVoice], finalize: bool, settings: Settings
    ) -> Sequence[Tensor] | None:
        if settings.noise is not None or settings.seeds is None:
            return settings.noise
        flow = self.flow.config
        ahead = 0 if finalize else flow.pre_lookahead_len
        prompts = [len(self.flow.cut_prompt(voice.voice).tokens) for voice in voices]
        return [
            PrefixNoise(flow.mel_bins, seed).frames(0, flow.token_mel_ratio * (prompt + len(row) - ahead))
            for row, prompt, seed in zip(rows, prompts, settings.seeds, strict=True)
        ]

    def _faded(
        self, row: Tensor, voice: ReferenceVoice, settings: Settings, plan: Schedule
    ) -> Iterator[Tensor]:
        def speak(tokens: Tensor) -> Tensor:
            return self.flow.generate(
                [tokens],
                voice.voice,
                schedule=plan,
                generator=settings.generator,
                noise=self._noise([tokens], [voice], True, settings),
            )[0]

        return long.faded_mels(row, speak, self.flow.config.token_mel_ratio)

    def utterance(self, row: Tensor, voice: ReferenceVoice, settings: Settings) -> tuple[Tensor, Tensor]:
        """Wave (1, N) and source (1, 1, N) of one row, in pieces where it is long."""
        if not settings.in_pieces(row):
            mel, _ = self.mels([row], [voice], True, settings)
            return self.mel2wav.inference(mel, generator=settings.generator, seed=settings.seeds)
        plan = self.schedule(settings)
        mels = [*self._faded(row, voice, settings, plan)]
        (generator,) = one_each(settings.generator, 1)
        drawn = settings.seeds or [int(torch.randint(2**62, (), generator=generator))]
        waves = [*long.vocode(self.mel2wav, mels, drawn[0])]
        return torch.cat(waves, 1), torch.cat([*long.source_of(self.mel2wav, mels, drawn[0])], 2)

    def samples(self, row: Tensor, voice: ReferenceVoice) -> int:
        """Of a row's wave; an odd prompt may cost a frame."""
        prompt, ratio = self.flow.cut_prompt(voice.voice), self.flow.config.token_mel_ratio
        frames = ratio * (len(row) + len(prompt.tokens)) - len(prompt.mel)
        return frames * self.mel2wav.config.hop_length


def marked(watermark: Watermark | None, rate: int, waves: Tensor, counts: Sequence[int]) -> Tensor:
    """Waves (B, N) with their first `counts` samples as the watermark gives them."""
    if watermark is None:
        return waves
    waves = waves.clone()
    for row, count in zip(waves, counts, strict=True):
        wave = watermark(row[:count].cpu().numpy(), rate)
        if np.shape(wave) != (count,):
            raise ConfigError(
                f"the watermark made {np.shape(wave)} of {(count,)} samples: as many are accepted"
            )
        row[:count] = torch.as_tensor(np.asarray(wave, np.float32))
    return waves


def faded_in(waves: Iterable[Tensor], sample_rate: int, fade: bool) -> Iterator[np.ndarray]:
    """The first row of each piece (B, n) of a stream, float32 (n,), with Chatterbox's fade at the start."""
    ramp = trim_fade(torch.ones(1, sample_rate // 25), sample_rate)[0].numpy()
    done = 0
    for wave in waves:
        sound = wave[0].float().cpu().numpy()
        if fade and done < len(ramp):
            begin = ramp[done : done + len(sound)]
            sound[: len(begin)] *= begin
        done += len(sound)
        yield sound
