"""Training tokens -> mel by flow matching: S3Gen's first half (CosyVoice 2, arXiv 2412.10117 §2.3), and its
distillation to one or two steps (IntMeanFlow, arXiv 2510.07979).

What is random about a row is a function of (seed, number of the row), so n processes see what one would.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from vokens import checkpoint
from vokens.audio import LogMel
from vokens.audio.mel import MEL_24K_80
from vokens.errors import ConfigError
from vokens.flow import objective
from vokens.flow.guidance import guide
from vokens.flow.meanflow import distilled_target
from vokens.models import load
from vokens.models.codec import build_config, mask_of
from vokens.models.s3gen.campplus import open_campplus
from vokens.models.s3gen.config import S3GenConfig
from vokens.models.s3gen.estimator import Stage
from vokens.models.s3gen.flow import TokenToMel, Voice
from vokens.nn.chunks import Reach, reach
from vokens.train.config import DataConfig, RunConfig, among
from vokens.train.data import read_clips
from vokens.train.flow_data import FlowBatch, FlowCrops, frame_rows, token_rows, voice_rows
from vokens.train.log import Board
from vokens.train.loop import Trainer

VALID_CLIPS = 24
VOICE_SECONDS = (
    5.0  # of a recording that its speaker vector is computed from: a second costs 45 ms on a CPU core
)


@dataclass(frozen=True)
class FlowDataConfig(DataConfig):
    """Recordings whose tokens, mels and voices are cached.

    Attributes:
        tokenizer: name or folder of the S3Tokenizer (25 Hz) whose tokens are spoken.
        speaker: folder or file of CAM++'s weights.
        seconds: of a crop, whole recordings where they are shorter. batch_size: crops per process and forward pass.
    """

    tokenizer: str = ""
    speaker: str = ""
    seconds: float = 4.0
    batch_size: int = 16


@dataclass(frozen=True)
class TeacherFlow:
    """Whom to distil.

    Attributes:
        source: folder of a trained flow. steps: of its ODE between the two times, each two evaluations.
        guidance: strength of the classifier-free guidance that the student learns to do without.
    """

    source: str = ""
    steps: int = 5
    guidance: float = 0.7


@dataclass(frozen=True)
class FlowConfig(RunConfig):
    """One run. The shares are CosyVoice's.

    Attributes:
        time: of training, "uniform" or "cosine", denser at the noise (Chatterbox's older recipe).
        chunked: share of batches under the streaming mask. prompted: share of rows that are given their first
            frames, up to `longest_prompt` of them. unconditioned: share of rows without any condition, for guidance.
        candidates: noises drawn for each row, of which it gets the nearest (immiscible pairing); 1 is plain.
        distil: a teacher, whose jumps from t to r are learned; model.meanflow must be set.
    """

    task: str = "flow"
    system: str = "s3gen"
    out: str = "runs/flow"
    data: FlowDataConfig = field(default_factory=FlowDataConfig)
    time: str = "uniform"
    chunked: float = 0.5
    prompted: float = 0.5
    longest_prompt: float = 0.3
    unconditioned: float = 0.2
    candidates: int = 1
    distil: TeacherFlow = field(default_factory=TeacherFlow)

    def __post_init__(self) -> None:
        super().__post_init__()
        among("system", self.system, ("s3gen",))
        among("time", self.time, ("uniform", "cosine"))
        if not self.data.tokenizer or not self.data.speaker:
            raise ConfigError(
                "data.tokenizer and data.speaker are needed: an S3Tokenizer and CAM++'s weights"
            )
        if bool(self.distil.source) != bool(self.model.get("meanflow", False)):
            raise ConfigError(
                "distil.source (a trained flow) and model.meanflow = true belong together: give both or neither"
            )


@dataclass(frozen=True)
class Draw:
    """What is random about a batch of B rows."""

    t: Tensor  # (B,) time, and r (B,) the end of the step: r = t without MeanFlow
    r: Tensor
    noise: Tensor  # (B, T, D)
    prompts: Tensor  # (B,) frames that are given
    conditioned: Tensor  # (B,) bool
    chunked: bool


class FlowLearner(nn.Module):
    """A TokenToMel with a differentiable pass from tokens to velocity."""

    def __init__(self, flow: TokenToMel) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, batch: FlowBatch, x: Tensor, draw: Draw) -> Tensor:
        """Velocity (B, T, D) at x (B, T, D), whose times and conditions are drawn."""
        mu, speaker, prompt, seen = self.given(batch, draw)
        keep = draw.conditioned.to(mu.dtype)[:, None]
        conditions = self.flow.estimator.conditions(
            mu * keep[..., None], speaker * keep, prompt * keep[..., None]
        )
        ends = draw.r if self.flow.config.meanflow else None
        return self.flow.estimator(x, self.flow.estimator.shifts(draw.t, ends), conditions, seen)

    def given(self, batch: FlowBatch, draw: Draw) -> tuple[Tensor, Tensor, Tensor, Reach]:
        """mu and prompt (B, T, D), speaker (B, D), and what frames see."""
        flow, ratio = self.flow, self.flow.config.token_mel_ratio
        chunks = flow.config.chunks() if draw.chunked else None
        ragged = None if bool((batch.lengths == batch.tokens.shape[1]).all()) else batch.lengths
        mu = flow.project(flow.encoder(flow.embedding(batch.tokens), ragged, chunks=chunks))
        prompt = batch.frames.transpose(1, 2) * mask_of(draw.prompts, mu.shape[1])[..., None]
        seen = reach(
            mu.shape[1],
            mu.device,
            lengths=None if ragged is None else ragged * ratio,
            chunks=None if chunks is None else chunks.scaled(ratio),
        )
        return mu, flow.embed_speaker(batch.voices), prompt, seen


class FlowTrainer(Trainer[FlowConfig, FlowLearner]):
    """Trains S3Gen's flow on a corpus and its tokens."""

    Config = FlowConfig
    exported = "flow"
    sample_rate = 24000

    # Building ----------------------------------------------------------------------------------------------

    def build_model(self) -> FlowLearner:
        config = self.config
        sizes = build_config(S3GenConfig, config.model, "model")
        flow = TokenToMel(sizes)
        if config.init:
            self._start_from(flow, config.init)
        else:
            _pass_on(flow)
        self.teacher = None
        if config.distil.source:
            self.teacher = FlowLearner(_open_flow(config.distil.source))
            self.teacher.to(self.device).eval().requires_grad_(False)
        return FlowLearner(flow)

    def _start_from(self, flow: TokenToMel, folder: str) -> None:
        """Weights of a trained flow; what tells a MeanFlow both times starts by ignoring the second."""
        state = _open_flow(folder).state_dict()
        if flow.estimator.time.mixer is not None and "estimator.time.mixer.weight" not in state:
            hidden = flow.estimator.time.mixer.out_features
            state["estimator.time.mixer.weight"] = torch.eye(hidden, 2 * hidden)
        checkpoint.load_strict(flow, state, folder)

    def load_data(self) -> None:
        data = self.config.data
        self.tokenizer = load(data.tokenizer, device=self.device)
        rate = self.model.flow.config.sampling_rate / 480 / self.model.flow.config.token_mel_ratio
        if self.tokenizer.decodes or abs(self.tokenizer.frame_rate - rate) > 1e-6:
            raise ConfigError(
                f"data.tokenizer {data.tokenizer!r} makes {self.tokenizer.frame_rate:g} tokens a second: an "
                f"S3Tokenizer of {rate:g} is accepted"
            )
        if self.tokenizer.codebook_sizes[0] > self.model.flow.config.vocab_size:
            raise ConfigError(
                f"the tokenizer has {self.tokenizer.codebook_sizes[0]} tokens: set model.vocab_size to that"
            )
        self.speaker = open_campplus(data.speaker)
        self.train = self._crops(data.train, data.train_split)
        self.valid = self._crops(data.valid, data.valid_split) if data.valid else None
        if not self.config.init:
            self._start_at_the_mean()

    def _start_at_the_mean(self) -> None:
        """A fresh network's velocity is the mean mel: log-mels lie around -6, which it would take long to learn."""
        batch = self.train.batch(0)
        x1, mask = self._targets(batch)
        self.model.flow.estimator.out.get_parameter("bias").data.copy_((x1 * mask).sum((0, 1)) / mask.sum())

    def _crops(self, source: str, split: str | None) -> FlowCrops:
        data, cache = self.config.data, Path(self.config.data.cache)
        clips = read_clips(source, split, data.language)
        mel = LogMel(MEL_24K_80)

        def frames(wave: np.ndarray) -> np.ndarray:
            return mel(torch.from_numpy(wave)[None])[0].T.numpy()

        def voice(wave: np.ndarray) -> np.ndarray:
            return self.speaker.embed([torch.from_numpy(wave[: int(VOICE_SECONDS * 16000)])])[0].numpy()

        return FlowCrops(
            token_rows(cache, clips, self.tokenizer, data.workers),
            frame_rows(cache, "mel24k80", clips, frames, 24000, data.workers),
            voice_rows(cache, "campplus", clips, voice, data.workers),
            ratio=self.model.flow.config.token_mel_ratio,
            crop=max(1, round(data.seconds * self.tokenizer.frame_rate)),
            batch_size=data.batch_size,
            seed=self.config.seed,
        )

    # One step ----------------------------------------------------------------------------------------------

    def micro_step(self, part: int) -> tuple[Tensor, dict[str, Tensor]]:
        world, rank, number = (
            self.accelerator.num_processes,
            self.accelerator.process_index,
            self.number(part),
        )
        batch = self._moved(self.train.batch(number, rank, world))
        draw = self._draw(batch, number, rank, world)
        x1, mask = self._targets(batch)
        x, velocity = objective.straight_path(x1, draw.noise, draw.t)
        target = velocity if self.teacher is None else self._distilled(batch, x, draw)
        with self.accelerator.autocast():
            found = self.module(batch, x, draw).float()
        loss = objective.squared_error(found, target, mask)
        return loss, {"flow": loss}

    def _moved(self, batch: FlowBatch) -> FlowBatch:
        return FlowBatch(
            *(part.to(self.device) for part in (batch.tokens, batch.frames, batch.lengths, batch.voices))
        )

    def _targets(self, batch: FlowBatch) -> tuple[Tensor, Tensor]:
        """Mels (B, T, D) and their mask (B, T, 1)."""
        x1 = batch.frames.transpose(1, 2)
        lengths = batch.lengths * self.model.flow.config.token_mel_ratio
        return x1, mask_of(lengths, x1.shape[1])[..., None].to(x1.dtype)

    def _draw(self, batch: FlowBatch, number: int, rank: int, world: int) -> Draw:
        """What is random about this process's rows of micro-batch `number`."""
        config, size = self.config, len(batch.tokens)
        shared = self.generator(number)  # the same numbers on every process
        numbers = torch.rand(world * size, 6, generator=shared)[rank * size : (rank + 1) * size]
        chunked = bool(torch.rand((), generator=shared) < config.chunked)
        t = objective.cosine_time(numbers[:, 0]) if config.time == "cosine" else numbers[:, 0]
        t, r = (t, t) if self.teacher is None else _jumps(*numbers[:, [0, 1, 5]].T)
        frames = batch.lengths.cpu() * self.model.flow.config.token_mel_ratio
        prompts = (numbers[:, 2] * config.longest_prompt * frames).long() * (numbers[:, 3] < config.prompted)
        dropped = 0.0 if self.teacher is not None else config.unconditioned
        first = (number * world + rank) * size
        return Draw(
            t.to(self.device),
            r.to(self.device),
            self._noise(batch, range(first, first + size)),
            prompts.to(self.device),
            (numbers[:, 4] >= dropped).to(self.device),
            chunked,
        )

    def _noise(self, batch: FlowBatch, rows: range) -> Tensor:
        """Noise (B, T, D) of rows by their numbers, zero where they end: neither padding nor company changes it."""
        x1, mask = self._targets(batch)
        noise = torch.zeros_like(x1)
        for place, (row, length) in enumerate(zip(rows, mask.sum((1, 2)).long().tolist(), strict=True)):
            # 2 ** 40 keeps these seeds from those of `generator`.
            own = torch.Generator().manual_seed(self.config.seed * 1_000_003 + row + (1 << 40))
            of_row = (slice(place, place + 1), slice(length))
            noise[of_row] = objective.nearest_noise(x1[of_row], mask[of_row], self.config.candidates, own)
        return noise

    def _distilled(self, batch: FlowBatch, x: Tensor, draw: Draw) -> Tensor:
        """The teacher's mean velocity from t to r, its guidance baked in."""
        assert self.teacher is not None  # the caller asks
        teacher, settings = self.teacher.flow, self.config.distil
        with torch.no_grad():
            mu, speaker, prompt, seen = self.teacher.given(batch, draw)
            mu, speaker, prompt = (torch.cat([x, torch.zeros_like(x)]) for x in (mu, speaker, prompt))
            both = teacher.estimator.conditions(mu, speaker, prompt)
        doubled = seen.repeated(2)

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            shifts = teacher.estimator.shifts(torch.cat([t, t]))
            found = teacher.estimator(torch.cat([x, x]), shifts, both, doubled)
            return guide(found.float(), settings.guidance)

        return distilled_target(velocity, x, draw.t, draw.r, settings.steps)

    # Held-out data -----------------------------------------------------------------------------------------

    def validate(self, board: Board | None = None) -> dict[str, float]:
        """Flow loss at fixed times and noises, and distances of log-mels generated in 1, 2, ... steps to the true
        ones (nepers per bin, L1). mel_mean is the mean frame's distance: what knowing nothing would give.
        """
        if self.valid is None:
            return {}
        usable = self.valid.usable()
        chosen = usable[:: max(1, len(usable) // VALID_CLIPS)][:VALID_CLIPS]
        batch = self._moved(self.valid.fixed(chosen))
        flow = self.final_model()
        x1, mask = self._targets(batch)
        draw = self._draw(batch, 0, 0, 1)  # the same each time
        with torch.no_grad():
            x, velocity = objective.straight_path(x1, draw.noise, draw.t)
            learner = FlowLearner(flow)
            target = velocity if self.teacher is None else self._distilled(batch, x, draw)
            measured = {"valid/flow": float(objective.squared_error(learner(batch, x, draw), target, mask))}
        mean = (x1 * mask).sum((0, 1)) / mask.sum()
        measured["valid/mel_mean"] = float(_distance(mean.expand_as(x1), x1, mask))
        made = x1
        for steps in (1, 2) if flow.config.meanflow else (1, flow.config.cfm_steps):
            made = self._generated(flow, batch, steps)
            measured[f"valid/mel_{steps}"] = float(_distance(made, x1, mask))
        if board is not None:
            board.mel_picture(self.step, "mel", x1[0].T)
            board.mel_picture(self.step, "generated", made[0].T)
        return measured

    def _generated(self, flow: TokenToMel, batch: FlowBatch, steps: int) -> Tensor:
        """Mels (B, T, D) from tokens and speaker vector alone, the same noise each time."""
        empty = batch.frames.new_zeros(0, flow.config.mel_bins)
        voices = [Voice(batch.tokens.new_zeros(0), empty, vector) for vector in batch.voices]
        rows = [row[:count] for row, count in zip(batch.tokens, batch.lengths.tolist(), strict=True)]
        generators = [torch.Generator().manual_seed(row) for row in range(len(rows))]
        made, _ = flow.generate(rows, voices, schedule=flow.schedule(steps), generator=generators)
        return made.transpose(1, 2)

    def final_model(self) -> TokenToMel:
        state = {name.removeprefix("flow."): value for name, value in self.final_state().items()}
        flow = TokenToMel(self.model.flow.config)
        checkpoint.load_strict(flow, state, "training")
        flow.name = self.config.name or flow.system
        return flow.to(self.device).eval().requires_grad_(False)


@torch.no_grad()
def _pass_on(flow: TokenToMel) -> None:
    """Make a fresh network's shortcuts hand on what they get, x and mu first.

    Velocity is data less noise, so the noise must arrive at the end; torch's own start leaves 0.58 of it in each of
    nine layers. The small recipe's held-out loss after 250 steps was 2.06 without and 1.94 with this.
    """
    estimator = flow.estimator
    for stage in (estimator.first, *estimator.middle, estimator.last):
        shortcut = cast(Stage, stage).resnet.shortcut
        nn.init.dirac_(shortcut.weight)
        nn.init.zeros_(shortcut.get_parameter("bias"))
    for conv in (estimator.first_conv, estimator.last_conv):
        nn.init.zeros_(conv.weight)
        conv.weight[..., -1].fill_diagonal_(1)  # the newest frame of a causal kernel


def _jumps(a: Tensor, b: Tensor, kind: Tensor) -> tuple[Tensor, Tensor]:
    """Times t <= r (B,) that a student learns, of uniform numbers (B,).

    Half are the steps that will be taken, 0 -> 1, 0 -> 1/2 and 1/2 -> 1; 40 % lie anywhere; 10 % have r = t, the
    teacher's velocity itself.
    """
    t, r = torch.minimum(a, b), torch.maximum(a, b)
    taken = kind < 0.5
    t = torch.where(taken, (a < 1 / 3) * 0.5, t)
    r = torch.where(taken, torch.where((a >= 1 / 3) & (a < 2 / 3), 0.5, 1.0), r)
    return t, torch.where(kind >= 0.9, t, r)


def _distance(found: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    return ((found - target).abs() * mask).sum() / mask.expand_as(target).sum()


def _open_flow(folder: str) -> TokenToMel:
    flow = load(folder)
    if not isinstance(flow, TokenToMel):
        raise ConfigError(f"{folder} holds {flow.system!r}: a trained flow is needed")
    return flow
