"""Training tokens -> mel by flow matching: S3Gen's first half (CosyVoice 2, arXiv 2412.10117 §2.3), its distillation
to one or two steps (IntMeanFlow, arXiv 2510.07979), and average velocities from scratch. Latents: `learnable_flow`.

Random draws of a row are a function of (seed, number of the row), so n processes equal one, except that noise
assignment and contrastive negatives stay among the rows of a process.
"""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from vokens import checkpoint
from vokens.audio import LogMel
from vokens.audio.mel import MEL_24K_80
from vokens.config import build_config
from vokens.errors import ConfigError
from vokens.evaluator_files import find_model
from vokens.flow import objective
from vokens.flow.regression import FLOORS, OBJECTIVES, alpha_at, regression_loss
from vokens.models.codec import Codec
from vokens.models.s3gen.config import S3GenConfig
from vokens.models.s3gen.flow import TokenToMel, Voice
from vokens.nn.campplus_onnx import open_campplus
from vokens.nn.masks import padding_mask
from vokens.train import losses as L
from vokens.train.config import CropConfig, RunConfig, among
from vokens.train.data import Clip, read_clips
from vokens.train.flow_data import FlowBatch, FlowCrops, frame_rows, token_rows
from vokens.train.flow_learner import (
    Draw,
    FlowLearner,
    distillation_times,
    frame_statistics,
    start_as_identity,
)
from vokens.train.log import Board
from vokens.train.loop import Trainer
from vokens.train.rows import Rows

VALID_CLIPS = 24
VOICE_SECONDS = 5.0  # of a recording for its speaker embedding: a second costs 45 ms on a CPU core
TIMESTEPS = {
    "uniform": lambda t: t,
    "cosine": objective.cosine_time,
    "logit_normal": objective.logit_normal_time,
    "first_step": objective.first_step_time,
}
# Network settings for average velocities: two timesteps, and, where they are differentiated by time, slow features of
# it. At the published scale of 1000 the derivative by time is some 240 times that by the point.
TWO_TIMES: dict[str, Any] = {
    "meanflow": True,
    "cfm_steps": 2,
    "cfm_t_scheduler": "linear",
    "cfm_inference_cfg_rate": 0.0,
}
TIME_SCALE = 16.0


@dataclass(frozen=True)
class FlowDataConfig(CropConfig):
    """Recordings whose tokens, frames and voices are cached."""

    tokenizer: str = ""  # name or folder of the S3Tokenizer (25 Hz) whose tokens are the input
    # Folder or file of CAM++'s weights, or "campplus-zh-en", which is looked for in VOKENS_EVAL_MODELS.
    speaker: str = ""
    seconds: float = 4.0  # of a crop, whole recordings where they are shorter
    batch_size: int = 16


@dataclass(frozen=True)
class TeacherFlow:
    """Teacher model for flow distillation."""

    source: str = ""  # folder of a trained flow
    steps: int = 5  # of its ODE between the two times, each two evaluations
    guidance: float = 0.7  # strength of the classifier-free guidance that is distilled into the student


@dataclass(frozen=True)
class FlowConfig(RunConfig):
    """One run. The shares are CosyVoice's.

    Attributes:
        objective: "flow", flow matching, which takes some ten steps; or what takes one or two: "intmeanflow", the
            distillation of `distil.source`, and from scratch "imf", "alpha" (a curriculum towards MeanFlow), or
            plain "meanflow".
        noise_pairing: "none"; "knn", the nearest of `candidates` noises for each row; or "assignment" of the batch's
            noises to its rows with the least total distance (immiscible diffusion).
        contrastive: weight of the contrastive loss (negatives: other rows' targets); 0.05 in the paper, 0 for none.
        guidance: strength of classifier-free guidance that is baked into meanflow, imf and alpha.
        instant: share of their rows with r = t, flow matching.
        time: timestep distribution, "uniform", "cosine" (denser near the noise), "logit_normal", or "first_step" (half
            at 0, where a sampler of one step evaluates).
        chunked: share of batches under the streaming mask. prompted: share of rows that are given their first
            frames, up to `longest_prompt` of them. unconditioned: share of rows without any condition, for guidance.
        distil: the teacher of intmeanflow.
    """

    task: str = "flow"
    system: str = "s3gen"
    out: str = "runs/flow"
    data: FlowDataConfig = field(default_factory=FlowDataConfig)
    objective: str = "flow"
    noise_pairing: str = "none"
    candidates: int = 8
    contrastive: float = 0.0
    guidance: float = 0.0
    instant: float = 0.5
    time: str = "uniform"
    chunked: float = 0.5
    prompted: float = 0.5
    longest_prompt: float = 0.3
    unconditioned: float = 0.2
    distil: TeacherFlow = field(default_factory=TeacherFlow)

    def __post_init__(self) -> None:
        super().__post_init__()
        among("objective", self.objective, OBJECTIVES)
        among("noise_pairing", self.noise_pairing, ("none", "knn", "assignment"))
        among("time", self.time, tuple(TIMESTEPS))
        self.check_sources()
        if bool(self.distil.source) != (self.objective == "intmeanflow"):
            raise ConfigError(
                'distil.source (a trained flow) and objective = "intmeanflow" belong together: give both or neither'
            )
        if self.guidance and self.objective not in FLOORS:
            raise ConfigError(
                f"guidance = {self.guidance} is learned by {', '.join(FLOORS)}: for a flow give it when generating, "
                "for a distillation as distil.guidance"
            )
        if self.candidates < 1 or self.contrastive < 0 or not 0 <= self.instant <= 1:
            raise ConfigError("candidates from 1, contrastive from 0, and instant from 0 to 1 are accepted")

    def check_sources(self) -> None:
        """Raise ConfigError unless the config names a tokenizer and a speaker encoder."""
        if not self.data.tokenizer or not self.data.speaker:
            raise ConfigError(
                "data.tokenizer and data.speaker are needed: an S3Tokenizer, and a speaker encoder's weights"
            )

    def network_settings(self) -> dict[str, Any]:
        """Settings of the network: the objective's, overridden by the recipe's."""
        if self.objective == "flow":
            return {"meanflow": False, **self.model}
        scale = {"time_scale": TIME_SCALE} if self.objective in FLOORS else {}
        return {**TWO_TIMES, **scale, **self.model}


class FlowTrainer(Trainer[FlowConfig, FlowLearner]):
    """Trains S3Gen's flow on a corpus and its tokens."""

    Config = FlowConfig
    exported = inside = "flow"
    sample_rate = 24000
    frames_are: ClassVar[str] = "mel"
    frame_rate: float = MEL_24K_80.sample_rate / MEL_24K_80.hop_length
    token_rate: float  # set by build_sizes
    teacher: FlowLearner | None = None
    weights: Tensor | None = None  # (D,) loss weights of the frames' dimensions, mean 1; None for equal ones

    def build_model(self) -> FlowLearner:
        config = self.config
        sizes = self.build_sizes()
        if sizes.meanflow != (config.objective != "flow"):
            raise ConfigError(
                f'model.meanflow = {sizes.meanflow} and objective = "{config.objective}" do not go together: leave '
                "model.meanflow to the objective"
            )
        flow = TokenToMel(sizes)
        if config.init:
            self._start_from(flow, config.init)
        else:
            start_as_identity(flow)
        if config.distil.source:
            self.teacher = FlowLearner(self.open_flow(config.distil.source))
            self.teacher.to(self.device).eval().requires_grad_(False)
        return FlowLearner(flow, config.objective, config.guidance)

    def build_sizes(self) -> S3GenConfig:
        """Open the tokenizer and the speaker encoder, and return the network's config."""
        self.tokenizer = Codec.from_pretrained(self.config.data.tokenizer)
        self.token_rate = self.tokenizer.frame_rate
        self.open_speaker()
        return build_config(S3GenConfig, self.config.network_settings(), "model")

    def open_flow(self, source: str) -> TokenToMel:
        """Open a trained flow, to start from or as a teacher."""
        return TokenToMel.from_pretrained(source)

    def _start_from(self, flow: TokenToMel, source: str) -> None:
        """Load the weights of a trained flow. The mixer of two timesteps starts by ignoring r where it lacks one."""
        start = self.open_flow(source)
        if start.config.time_scale != flow.config.time_scale:
            raise ConfigError(
                f"{source} was trained with time_scale {start.config.time_scale:g} and this run has "
                f"{flow.config.time_scale:g}: set model.time_scale to the former, or start afresh"
            )
        state = start.state_dict()
        if flow.estimator.time.mixer is not None and "estimator.time.mixer.weight" not in state:
            hidden = flow.estimator.time.mixer.out_features
            state["estimator.time.mixer.weight"] = torch.eye(hidden, 2 * hidden)
        checkpoint.load_strict(flow, state, source)

    def load_data(self) -> None:
        self.check_tokenizer()
        super().load_data()
        if not self.config.init:
            self._start_at_the_mean()

    def check_tokenizer(self) -> None:
        """Raise ConfigError unless the tokenizer's rate and vocabulary fit the network."""
        data = self.config.data
        self.tokenizer.to(self.device)
        rate = self.frame_rate / self.model.flow.config.token_mel_ratio
        if self.tokenizer.decodes or abs(self.tokenizer.frame_rate - rate) > 1e-6:
            raise ConfigError(
                f"data.tokenizer {data.tokenizer!r} makes {self.tokenizer.frame_rate:g} tokens a second: an "
                f"S3Tokenizer of {rate:g} is accepted"
            )
        if self.tokenizer.codebook_sizes[0] > self.model.flow.config.vocab_size:
            raise ConfigError(
                f"the tokenizer has {self.tokenizer.codebook_sizes[0]} tokens: set model.vocab_size to that"
            )

    def open_speaker(self) -> None:
        """Open the speaker encoder."""
        self.speaker = open_campplus(find_model(self.config.data.speaker))

    def _start_at_the_mean(self) -> None:
        """Initialise the output bias at the mean frame: log-mels lie around -6, which takes long to learn."""
        mean, _ = frame_statistics(*self._targets(self.train.batch(0)))
        self.model.flow.estimator.out.get_parameter("bias").data.copy_(mean)

    def open_data(self, source: str, split: str | None, training: bool) -> FlowCrops:
        tokens, frames, voices = self.rows(source, split)
        mean, std = self.statistics(frames)
        return FlowCrops(
            tokens,
            frames,
            voices,
            ratio=self.model.flow.config.token_mel_ratio,
            crop=max(1, round(self.config.data.seconds * self.token_rate)),
            batch_size=self.config.data.batch_size,
            seed=self.config.seed,
            mean=mean,
            std=std,
        )

    def rows(self, source: str, split: str | None) -> tuple[Rows, Rows, Rows]:
        """Tokens (T, 1), frames (ratio * T, D) and a speaker vector (1, V) of each recording."""
        data = self.config.data
        clips = read_clips(source, split, data.language)
        return token_rows(data, clips, self.tokenizer), self.frames(clips), self.voices(clips)

    def statistics(self, frames: Rows) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Mean and standard deviation for normalising frames; None for log-mels, which are not normalised."""
        return None, None

    def frames(self, clips: list[Clip]) -> Rows:
        """The frames (T, D) of each recording."""
        highest = self.model.flow.config.mel_f_max
        mel = LogMel(replace(MEL_24K_80, f_max=highest))
        kept = "mel24k80" if highest == MEL_24K_80.f_max else f"mel24k80_{highest:g}"

        def frames(wave: np.ndarray) -> np.ndarray:
            return mel(torch.from_numpy(wave)[None])[0].T.half().numpy()

        return frame_rows(self.config.data, kept, clips, frames, 24000)

    def voices(self, clips: list[Clip]) -> Rows:
        """The speaker vector of each recording."""

        def voice(wave: np.ndarray) -> np.ndarray:
            return self.speaker.embed([torch.from_numpy(wave[: int(VOICE_SECONDS * 16000)])]).numpy()

        name = f"voice-campplus-{checkpoint.fingerprint(self.speaker.state_dict(), {})[:8]}"
        return frame_rows(self.config.data, name, clips, voice, 16000)

    def micro_step(self, part: int) -> tuple[Tensor, dict[str, Tensor]]:
        number = self.number(part)
        batch = self.batch(number).to(self.device)
        draw = self._draw(batch, number)
        x1, mask = self._targets(batch)
        x, velocity = objective.straight_path(x1, draw.noise, draw.t)
        if self.teacher is not None:
            velocity = self._distilled(batch, x, draw)
        with self.accelerator.autocast():
            prediction, target = self.module(
                batch, x, velocity, draw, alpha_at(self.step / self.config.steps)
            )
        settings = self.config
        if self.weights is not None:
            root = self.weights.to(prediction).sqrt()
            prediction, target = prediction * root, target * root
        loss = regression_loss(
            settings.objective, prediction, target, mask, draw.partner, settings.contrastive
        )
        return loss, {"flow": objective.squared_error(prediction, target, mask)}

    def _targets(self, batch: FlowBatch) -> tuple[Tensor, Tensor]:
        """Frames (B, T, D) and their mask (B, T, 1)."""
        x1 = batch.frames.transpose(1, 2)
        lengths = batch.lengths * self.model.flow.config.token_mel_ratio
        return x1, padding_mask(lengths, x1.shape[1])[..., None].to(x1.dtype)

    def _draw(self, batch: FlowBatch, number: int) -> Draw:
        """Random draws for this process's rows of micro-batch `number`."""
        config, size = self.config, len(batch.tokens)
        shared = self.generator(number)  # the same on every process
        numbers = self.own(torch.rand(self.world * size, 6, generator=shared))
        chunked = bool(torch.rand((), generator=shared) < config.chunked)
        t, r = self._times(*numbers[:, [0, 1, 5]].T)
        frames = batch.lengths.cpu() * self.model.flow.config.token_mel_ratio
        prompts = (numbers[:, 2] * config.longest_prompt * frames).long() * (numbers[:, 3] < config.prompted)
        dropped = 0.0 if self.teacher is not None else config.unconditioned
        contrasted = config.contrastive > 0 and size > 1
        partner = objective.derangement(size, shared).to(self.device) if contrasted else None
        return Draw(
            t.to(self.device),
            r.to(self.device),
            self._noise(batch, self.row_generators(number, size)),
            prompts.to(self.device),
            (numbers[:, 4] >= dropped).to(self.device),
            chunked,
            partner,
        )

    def _times(self, a: Tensor, b: Tensor, kind: Tensor) -> tuple[Tensor, Tensor]:
        """Timesteps t <= r (B,) from uniform samples (B,)."""
        if self.teacher is not None:
            return distillation_times(a, b, kind)
        timestep = TIMESTEPS[self.config.time]
        first, second = timestep(a), timestep(b)
        if self.config.objective == "flow":
            return first, first
        both = kind >= self.config.instant
        t, r = torch.minimum(first, second), torch.maximum(first, second)
        return torch.where(both, t, first), torch.where(both, r, first)

    def _noise(self, batch: FlowBatch, generators: list[torch.Generator]) -> Tensor:
        """Noise (B, T, D) from each row's generator, zero in padding; independent of the other rows, except that
        "assignment" permutes it among them."""
        x1, mask = self._targets(batch)
        pairing = self.config.noise_pairing
        drawn = torch.zeros_like(x1)
        for place, (own, length) in enumerate(zip(generators, mask.sum((1, 2)).long().tolist(), strict=True)):
            of_row = (slice(place, place + 1), slice(None if pairing == "assignment" else length))
            count = self.config.candidates if pairing == "knn" else 1
            drawn[of_row] = objective.nearest_noise(x1[of_row], mask[of_row], count, own)
        if pairing == "assignment":
            drawn = drawn[objective.assignment(x1, drawn, mask)] * mask
        return drawn

    def _distilled(self, batch: FlowBatch, x: Tensor, draw: Draw) -> Tensor:
        """The teacher's mean velocity from t to r, with guidance."""
        assert self.teacher is not None
        settings = self.config.distil
        return self.teacher.distilled(batch, x, draw, settings.steps, settings.guidance)

    def validate(self, board: Board | None = None) -> dict[str, float]:
        """Flow loss at fixed times and noises, and L1 distances of frames generated in 1, 2, ... steps to the target
        (nepers per bin for mels). mel_mean is the distance of the mean frame, a baseline. spread is the generated
        frames' standard deviation over the target's: too few steps give their mean, which varies too little.
        """
        usable = self.valid.usable
        chosen = usable[:: max(1, len(usable) // VALID_CLIPS)][:VALID_CLIPS]
        batch = self.valid.fixed(chosen).to(self.device)
        flow = self.final_flow()
        x1, mask = self._targets(batch)
        draw = self._draw(batch, 0)  # the same each time
        with torch.no_grad():
            x, velocity = objective.straight_path(x1, draw.noise, draw.t)
            if self.teacher is not None:
                velocity = self._distilled(batch, x, draw)
            learner = FlowLearner(flow, self.config.objective, self.config.guidance)
            prediction, target = learner(batch, x, velocity, draw)
            measured = {"valid/flow": float(objective.squared_error(prediction, target, mask))}
        mean, std = frame_statistics(x1, mask)
        measured[f"valid/{self.frames_are}_mean"] = float(L.masked_mean((mean - x1).abs(), mask))
        generated = x1
        for steps in self.validated_steps(flow):
            generated = self._generated(flow, batch, steps)
            measured[f"valid/{self.frames_are}_{steps}"] = float(L.masked_mean((generated - x1).abs(), mask))
            _, spread = frame_statistics(generated, mask)
            measured[f"valid/spread_{steps}"] = float(spread.mean() / std.mean())
        if board is not None:
            board.mel_picture(self.step, self.frames_are, x1[0].T)
            board.mel_picture(self.step, "generated", generated[0].T)
        return measured

    def validated_steps(self, flow: TokenToMel) -> tuple[int, ...]:
        return (1, 2) if flow.config.meanflow else (1, flow.config.cfm_steps)

    def _generated(self, flow: TokenToMel, batch: FlowBatch, steps: int) -> Tensor:
        """Frames (B, T, D) from tokens and speaker vector alone, the same noise each time."""
        empty = batch.frames.new_zeros(0, flow.config.mel_bins)
        voices = [Voice(batch.tokens.new_zeros(0), empty, vector) for vector in batch.voices]
        rows = [row[:count] for row, count in zip(batch.tokens, batch.lengths.tolist(), strict=True)]
        generators = [torch.Generator().manual_seed(row) for row in range(len(rows))]
        frames, _ = flow.generate(rows, voices, schedule=flow.schedule(steps), generator=generators)
        return frames.transpose(1, 2)

    def final_flow(self) -> TokenToMel:
        """The network with the averaged (or present) weights."""
        return super().final_model()
