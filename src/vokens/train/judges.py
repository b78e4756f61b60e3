"""Discriminators in training: with their optimizer, and the two turns of a step. First they learn to tell targets from
outputs that are cut off from the generator, then they judge the outputs, and the generator learns by it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vokens.train import losses as L
from vokens.train.loop import Trainer

Logits = Sequence[Tensor]
Judged = tuple[Logits, Sequence[Sequence[Tensor]]]  # of one kind of discriminators: logits, feature maps


class Discriminators(nn.ModuleDict):
    """Kinds of discriminators, called together: wave (B, 1, N) -> [(logits, feature maps)]."""

    def forward(self, wave: Tensor) -> list[Judged]:
        return [judge(wave) for judge in self.values()]


@dataclass(frozen=True)
class Contest:
    """What is asked of either side; each is summed over the kinds of discriminators.

    Attributes:
        discriminator: loss of (logits of targets, logits of outputs).
        generator: losses by name of what was judged, (targets, outputs).
    """

    discriminator: Callable[[Logits, Logits], Tensor] = L.least_squares_discriminator
    generator: dict[str, Callable[[Judged, Judged], Tensor]] = field(
        default_factory=lambda: generator_losses(L.least_squares_generator, L.feature_matching)
    )


def generator_losses(
    adversarial: Callable[[Logits], Tensor], feature: Callable[..., Tensor]
) -> dict[str, Callable[[Judged, Judged], Tensor]]:
    """The two usual losses of a generator."""
    return {
        "adversarial": lambda _target, output: adversarial(output[0]),
        "feature": lambda target, output: feature(target[1], output[1]),
    }


class Judges:
    """Discriminators of a training.

    Args:
        start: the first step with them. learning_rate: theirs; 0 means the generator's.
        clip: largest norm of their gradient, 0 for none.
    """

    def __init__(
        self,
        trainer: Trainer[Any, Any],
        network: nn.Module,
        contest: Contest,
        *,
        start: int,
        learning_rate: float,
        weight_decay: float = 0.0,
        clip: float = 0.0,
    ) -> None:
        self.trainer, self.network, self.contest, self.start, self.clip = (
            trainer,
            network,
            contest,
            start,
            clip,
        )
        optim = trainer.config.optim
        self.rate = learning_rate or optim.learning_rate
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=self.rate, betas=optim.betas, weight_decay=weight_decay
        )
        self.module, self.optimizer = trainer.accelerator.prepare(network, optimizer)

    def parts(self, prefix: str = "") -> Iterator[tuple[str, Any]]:
        """What a checkpoint keeps of them."""
        yield f"{prefix}judges", self.network
        yield f"{prefix}judge_optimizer", self.optimizer

    @property
    def active(self) -> bool:
        """Whether they take part in this step."""
        return self.trainer.step >= self.start

    def learn(self, target: Tensor, output: Tensor, part: int) -> Tensor:
        """Their own loss in micro-step `part`, descended, for targets and outputs of one shape (B, ...)."""
        trainer = self.trainer
        if part == 0:
            trainer.set_rate(self.optimizer, self.rate)
            self.optimizer.zero_grad()
        self.module.requires_grad_(True)
        with trainer.synced(self.module, part):
            with trainer.accelerator.autocast():  # one pass for both: DDP expects a forward for each backward
                judged = self.module(torch.cat([target, output.detach()]))
            halves = [[logits.chunk(2) for logits in kind] for kind, _ in judged]
            total = torch.stack(
                [self.contest.discriminator([t for t, _ in kind], [o for _, o in kind]) for kind in halves]
            ).sum()
            trainer.accelerator.backward(total / trainer.config.accumulate)
        if part == trainer.config.accumulate - 1:
            if self.clip:
                trainer.accelerator.clip_grad_norm_(self.module.parameters(), self.clip)
            self.optimizer.step()
        self.module.requires_grad_(False)
        return total

    def judge(self, target: Tensor, output: Tensor) -> dict[str, Tensor]:
        """The generator's losses by name, differentiable in the outputs."""
        with self.trainer.accelerator.autocast():
            with torch.no_grad():
                real = self.network(target)
            fake = self.network(output)
        return {
            name: torch.stack([loss(r, f) for r, f in zip(real, fake, strict=True)]).sum()
            for name, loss in self.contest.generator.items()
        }
