"""The differentiable side of a flow from tokens to frames, mels or latents: what is drawn for a batch, and what the
network found beside what it should have.

One forward pass holds all evaluations that an objective needs, on one encoding of the tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vokens.flow.guidance import guide
from vokens.flow.meanflow import distilled_target
from vokens.flow.regression import guided_velocity, regress
from vokens.models.codec import mask_of
from vokens.models.s3gen.estimator import Conditions
from vokens.models.s3gen.flow import TokenToMel
from vokens.nn.chunks import Reach, reach
from vokens.train.flow_data import FlowBatch


@dataclass(frozen=True)
class Draw:
    """What is random about a batch of B rows."""

    t: Tensor  # (B,) time, and r (B,) the end of the step: r = t without MeanFlow
    r: Tensor
    noise: Tensor  # (B, T, D)
    prompts: Tensor  # (B,) frames that are given
    conditioned: Tensor  # (B,) bool
    chunked: bool
    partner: Tensor | None = None  # (B,) whose targets a row is kept away from


@dataclass(frozen=True)
class Given:
    """What a velocity depends on beside point and time: mu and prompt (B, T, D), speaker (B, D), and what is seen."""

    mu: Tensor
    speaker: Tensor
    prompt: Tensor
    seen: Reach

    def kept(self, keep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """mu, speaker and prompt of the rows where keep (B,) is 1, zeros where it is 0."""
        keep = keep.to(self.mu.dtype)[:, None]
        return self.mu * keep[..., None], self.speaker * keep, self.prompt * keep[..., None]


class FlowLearner(nn.Module):
    """A TokenToMel with a differentiable pass from tokens to what its objective compares.

    objective: a name of `flow.regression`. guidance: baked into average velocities that are learned from scratch.
    """

    def __init__(self, flow: TokenToMel, objective: str = "flow", guidance: float = 0.0) -> None:
        super().__init__()
        self.flow, self.objective, self.guidance = flow, objective, guidance

    def forward(
        self, batch: FlowBatch, x: Tensor, v: Tensor, draw: Draw, alpha: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Found and wanted velocities (B, T, D) float32 at x (B, T, D), whose path has the velocity v (B, T, D)."""
        given = self.given(batch, draw)
        network = self._network(given, draw.conditioned)
        if self.guidance:
            with torch.no_grad():
                own = network(x, draw.t, draw.t)
                free = self._network(given, torch.zeros_like(draw.conditioned))(x, draw.t, draw.t)
            v = guided_velocity(v, own, free, self.guidance)
        return regress(self.objective, network, x, draw.t, draw.r, v, alpha)

    def _network(self, given: Given, keep: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """The average velocity with the conditions of the rows that keep theirs."""
        conditions = self.flow.estimator.conditions(*given.kept(keep))

        def network(x: Tensor, t: Tensor, r: Tensor) -> Tensor:
            return velocity(self.flow, conditions, given.seen, x, t, r)

        return network

    def given(self, batch: FlowBatch, draw: Draw) -> Given:
        """Conditions of a batch, encoded with gradients."""
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
        return Given(mu, flow.embed_speaker(batch.voices), prompt, seen)

    @torch.no_grad()
    def distilled(self, batch: FlowBatch, x: Tensor, draw: Draw, steps: int, guidance: float) -> Tensor:
        """As a teacher: the mean velocity (B, T, D) of this flow from t to r in `steps`, its guidance baked in."""
        given = self.given(batch, draw)
        mu, speaker, prompt = (
            torch.cat([y, torch.zeros_like(y)]) for y in (given.mu, given.speaker, given.prompt)
        )
        both = self.flow.estimator.conditions(mu, speaker, prompt)
        doubled = given.seen.repeated(2)

        def guided(x: Tensor, t: Tensor) -> Tensor:
            t = torch.cat([t, t])
            return guide(velocity(self.flow, both, doubled, torch.cat([x, x]), t, t), guidance)

        return distilled_target(guided, x, draw.t, draw.r, steps)


def velocity(
    flow: TokenToMel, conditions: Conditions, seen: Reach, x: Tensor, t: Tensor, r: Tensor
) -> Tensor:
    """(B, T, D) float32 at x (B, T, D) and times t (B,), for MeanFlow up to r (B,)."""
    shifts = flow.estimator.shifts(t, r if flow.config.meanflow else None)
    return flow.estimator(x, shifts, conditions, seen).float()
