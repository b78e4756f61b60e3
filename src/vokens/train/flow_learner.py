"""Flow matching from tokens to frames (mels or latents): random draws of a batch, prediction and target,
initialisation, and validation metrics.

One forward pass makes all evaluations of an objective on one encoding of the tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from vokens.flow.guidance import guide
from vokens.flow.meanflow import distilled_target
from vokens.flow.regression import guided_velocity, regress
from vokens.models.s3gen.estimator import Conditions, Estimator, Stage
from vokens.models.s3gen.flow import TokenToMel
from vokens.nn.masks import padding_mask
from vokens.nn.streaming import Context
from vokens.train.flow_data import FlowBatch


@dataclass(frozen=True)
class Draw:
    """Random draws for a batch of B rows."""

    t: Tensor  # (B,) time, and r (B,) the end of the step: r = t without MeanFlow
    r: Tensor
    noise: Tensor  # (B, T, D)
    prompts: Tensor  # (B,) frames of the prompt
    conditioned: Tensor  # (B,) bool
    chunked: bool
    partner: Tensor | None = None  # (B,) index of each row's negative sample


# Conditions of a velocity: mu (B, T, D), speaker (B, D) and prompt (B, T, D).
Inputs = tuple[Tensor, Tensor, Tensor]


class FlowLearner(nn.Module):
    """A TokenToMel with a differentiable pass from tokens to prediction and target.

    objective: a name of `flow.regression`. guidance: baked into average velocities that are learned from scratch.
    """

    def __init__(self, flow: TokenToMel, objective: str = "flow", guidance: float = 0.0) -> None:
        super().__init__()
        self.flow, self.objective, self.guidance = flow, objective, guidance

    def forward(
        self, batch: FlowBatch, x: Tensor, v: Tensor, draw: Draw, alpha: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Predicted and target velocities (B, T, D) float32 at x (B, T, D) on a path of velocity v (B, T, D)."""
        inputs, context = self.conditioning(batch, draw)
        network = self._network(inputs, context, draw.conditioned)
        if self.guidance:
            with torch.no_grad():
                own = network(x, draw.t, draw.t)
                none = torch.zeros_like(draw.conditioned)
                free = self._network(inputs, context, none)(x, draw.t, draw.t)
            v = guided_velocity(v, own, free, self.guidance, self.flow.config.cfm_guidance_from)
        return regress(self.objective, network, x, draw.t, draw.r, v, alpha)

    def _network(
        self, inputs: Inputs, context: Context, keep: Tensor
    ) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """Average velocity of the flow, its conditions zero where keep (B,) is False."""
        mu, speaker, prompt = inputs
        kept = keep.to(mu.dtype)[:, None]
        of = self.flow.estimator.conditions(mu * kept[..., None], speaker * kept, prompt * kept[..., None])
        return lambda x, t, r: velocity(self.flow, of, context, x, t, r)

    def conditioning(self, batch: FlowBatch, draw: Draw) -> tuple[Inputs, Context]:
        """Conditions of a batch, encoded with gradients, and the attention context."""
        flow, ratio = self.flow, self.flow.config.token_mel_ratio
        chunks = flow.config.chunks() if draw.chunked else None
        ragged = None if bool((batch.lengths == batch.tokens.shape[1]).all()) else batch.lengths
        mu = flow.project(flow.encoder(flow.embedding(batch.tokens), ragged, chunks=chunks))
        prompt = batch.frames.transpose(1, 2) * padding_mask(draw.prompts, mu.shape[1])[..., None]
        context = Context.of(
            mu,
            lengths=None if ragged is None else ragged * ratio,
            chunks=None if chunks is None else chunks.scaled(ratio),
        )
        return (mu, flow.embed_speaker(batch.voices), prompt), context

    @torch.no_grad()
    def distilled(self, batch: FlowBatch, x: Tensor, draw: Draw, steps: int, guidance: float) -> Tensor:
        """Target of a student: this flow's mean velocity (B, T, D) from t to r in `steps`, with guidance."""
        inputs, context = self.conditioning(batch, draw)
        mu, speaker, prompt = (torch.cat([y, torch.zeros_like(y)]) for y in inputs)
        both = self.flow.estimator.conditions(mu, speaker, prompt)
        doubled = context.repeated(2)

        def guided(x: Tensor, t: Tensor) -> Tensor:
            t = torch.cat([t, t])
            velocities = velocity(self.flow, both, doubled, torch.cat([x, x]), t, t)
            return guide(velocities, guidance, self.flow.config.cfm_guidance_from)

        return distilled_target(guided, x, draw.t, draw.r, steps)


def velocity(
    flow: TokenToMel, conditions: Conditions, context: Context, x: Tensor, t: Tensor, r: Tensor
) -> Tensor:
    """(B, T, D) float32 at x (B, T, D) and times t (B,), for MeanFlow up to r (B,)."""
    shifts = flow.estimator.shifts(t, r if flow.config.meanflow else None)
    return flow.estimator(x, shifts, conditions, context).float()


@torch.no_grad()
def start_as_identity(flow: TokenToMel) -> None:
    """Initialise a fresh network's shortcuts as the identity on x and mu.

    Velocity is data less noise, so the noise must arrive at the end; torch's own start leaves 0.58 of it in each of
    nine layers. The small recipe's held-out loss after 250 steps was 2.06 without and 1.94 with this.
    """
    estimator = flow.estimator
    if estimator.time.mixer is not None:  # an average velocity starts by ignoring r
        nn.init.eye_(estimator.time.mixer.weight)
    if not isinstance(estimator, Estimator):
        return
    for stage in (estimator.first, *estimator.middle, estimator.last):
        shortcut = cast(Stage, stage).resnet.shortcut
        nn.init.dirac_(shortcut.weight)
        nn.init.zeros_(shortcut.get_parameter("bias"))
    for conv in (estimator.first_conv, estimator.last_conv):
        nn.init.zeros_(conv.weight)
        conv.weight[..., -1].fill_diagonal_(1)  # the newest frame of a causal kernel


def distillation_times(a: Tensor, b: Tensor, kind: Tensor) -> tuple[Tensor, Tensor]:
    """Times t <= r (B,) of a student, from uniform samples (B,).

    Half are the solver's steps, 0 -> 1, 0 -> 1/2 and 1/2 -> 1; 40 % are random; 10 % have r = t, the teacher's
    instantaneous velocity.
    """
    t, r = torch.minimum(a, b), torch.maximum(a, b)
    taken = kind < 0.5
    t = torch.where(taken, (a < 1 / 3) * 0.5, t)
    r = torch.where(taken, torch.where((a >= 1 / 3) & (a < 2 / 3), 0.5, 1.0), r)
    return t, torch.where(kind >= 0.9, t, r)


def frame_statistics(frames: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (D,) of frames (B, T, D) where the mask (B, T, 1) is 1."""
    mean = (frames * mask).sum((0, 1)) / mask.sum()
    return mean, (((frames - mean) * mask).square().sum((0, 1)) / mask.sum()).sqrt()
