"""Discriminator and generator losses of one GAN step: discriminators with their optimizer learn on detached outputs,
then give the generator its losses.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vokens.train import losses as L
from vokens.train.config import AdversarialConfig, DiscriminatorConfig
from vokens.train.loop import Trainer
from vokens.train.losses import Logits, Maps

Scores = tuple[Logits, Maps]  # of one kind of discriminators


class Discriminators(nn.ModuleDict):
    """Kinds of discriminators, called together: wave (B, 1, N) -> [(logits, feature maps)]."""

    def forward(self, wave: Tensor) -> list[Scores]:
        return [discriminator(wave) for discriminator in self.values()]


@dataclass(frozen=True)
class GANLoss:
    """Discriminator and generator losses; each is summed over the kinds of discriminators."""

    discriminator: Callable[[Logits, Logits], Tensor]  # of (logits of targets, logits of outputs)
    generator: dict[str, Callable[[Scores, Scores], Tensor]]  # by name; of targets and of outputs


def gan_loss(adversarial: str = "least_squares", feature: str = "published") -> GANLoss:
    """Adversarial and feature matching losses of these kinds."""
    kind, matching = L.ADVERSARIAL[adversarial], L.FEATURE_MATCHING[feature]
    generator: dict[str, Callable[[Scores, Scores], Tensor]] = {
        "adversarial": lambda _target, output: kind.generator(output[0]),
        "feature": lambda target, output: matching(target[1], output[1]),
    }
    return GANLoss(kind.discriminator, generator)


class GAN:
    """Discriminators of a run, with their optimizer; `step` is their part of a micro-step.

    Args:
        settings: `start`, the first step with them, and `learning_rate`, theirs; 0 means the generator's.
        loss: of its generator losses, those that the config gives a weight are taken.
        name: prefix of the losses' names, where a run has several.
        clip: largest norm of their gradient, 0 for none.
    """

    def __init__(
        self,
        trainer: Trainer[Any, Any],
        network: nn.Module,
        settings: AdversarialConfig | DiscriminatorConfig,
        loss: GANLoss | None = None,
        *,
        name: str = "",
        weight_decay: float = 0.0,
        clip: float = 0.0,
    ) -> None:
        self.trainer, self.network, self.name = trainer, network, name
        self.start, self.clip = settings.start, clip
        self.prefix = f"{name}_" if name else ""
        loss, weights = loss or gan_loss(), trainer.config.losses
        named = {f"{self.prefix}{kind}": each for kind, each in loss.generator.items()}
        self.discriminator_loss = loss.discriminator
        self.generator_losses = {kind: each for kind, each in named.items() if kind in weights}
        optim = trainer.config.optim
        self.rate = settings.learning_rate or optim.learning_rate
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=self.rate, betas=optim.betas, weight_decay=weight_decay, fused=True
        )
        self.module, self.optimizer = trainer.accelerator.prepare(network, optimizer)

    def parts(self) -> Iterator[tuple[str, Any]]:
        """State of a checkpoint, under the names that earlier runs wrote."""
        yield f"{self.prefix}judges", self.network
        yield f"{self.prefix}judge_optimizer", self.optimizer

    def step(self, target: Tensor, output: Tensor, part: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The generator's losses, and the discriminators', descended, by name; both empty before `start`.

        target, output: of one shape (B, ...), micro-batch `part`.
        """
        if self.trainer.step < self.start:
            return {}, {}
        loss = self._discriminators(target, output, part)
        with self.trainer.accelerator.autocast():
            with torch.no_grad():
                real = self.network(target)
            fake = self.network(output.float())
        losses = {
            name: torch.stack([each(r, f) for r, f in zip(real, fake, strict=True)]).sum()
            for name, each in self.generator_losses.items()
        }
        return losses, {f"{self.prefix}discriminator": loss}

    def _discriminators(self, target: Tensor, output: Tensor, part: int) -> Tensor:
        trainer = self.trainer
        if part == 0:
            trainer.set_rate(self.optimizer, self.rate)
            self.optimizer.zero_grad()
        self.module.requires_grad_(True)
        with trainer.synced(self.module, part):
            with trainer.accelerator.autocast():  # one pass for both: DDP expects a forward for each backward
                scores = self.module(torch.cat([target, output.detach()]))
            halves = [[logits.chunk(2) for logits in kind] for kind, _ in scores]
            total = torch.stack(
                [self.discriminator_loss([t for t, _ in kind], [o for _, o in kind]) for kind in halves]
            ).sum()
            trainer.accelerator.backward(total / trainer.config.accumulate)
        if part == trainer.config.accumulate - 1:
            if self.clip:
                trainer.accelerator.clip_grad_norm_(self.module.parameters(), self.clip)
            self.optimizer.step()
        self.module.requires_grad_(False)
        return total
