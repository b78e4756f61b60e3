"""Loss balancer of EnCodec (2210.13438 section 3.4): the weight of a loss is its share of the gradient.

Each loss's gradient at the output wave is divided by a running mean of its norm, so that the scale of a loss
no longer matters. The trick: instead of running the backward pass itself, it returns a scalar whose gradient
at the wave is the balanced one; gradient accumulation, loss scaling and other losses then work as ever.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, distributed, nn

from vokens.errors import ConfigError


class Balancer(nn.Module):
    """Balances the losses that are functions of the output wave; keep commitment and distillation outside.

    weights: name -> positive weight. With 1 and 3 the losses get 1/4 and 3/4 of `total_norm`, the norm of one
    item's gradient times the batch size: averaged micro-batches then give what the whole batch gives.
    decay: of the running means, per call; as buffers they are resumed by `state_dict` and frozen by `eval()`.
    """

    norm_sums: Tensor
    norm_counts: Tensor

    def __init__(self, weights: Mapping[str, float], total_norm: float = 1.0, decay: float = 0.999) -> None:
        super().__init__()
        if not weights or min(weights.values()) <= 0 or not 0 <= decay < 1:
            raise ConfigError(f"weights must be positive and 0 <= decay < 1, got {dict(weights)} and {decay}")
        self.weights = dict(weights)
        self.total_norm = total_norm
        self.decay = decay
        # Decayed sums of norms and of ones: their quotient is a running mean without start-up bias.
        self.register_buffer("norm_sums", torch.zeros(len(weights)))
        self.register_buffer("norm_counts", torch.zeros(len(weights)))

    def forward(self, losses: Mapping[str, Tensor], output: Tensor) -> Tensor:
        """losses: all or some of the weighted names; output: the wave (B, ...) they were computed from.

        Returns a scalar for `backward` whose value has no meaning, without the graph of the losses.
        """
        unknown = sorted(losses.keys() - self.weights.keys())
        if unknown or not losses:
            raise ConfigError(f"losses {sorted(losses)} must be among the weights {sorted(self.weights)}")
        gradients = {
            name: torch.autograd.grad(loss, output, retain_graph=True)[0] for name, loss in losses.items()
        }
        norms = {name: g.float().flatten(1).norm(dim=1).sum() for name, g in gradients.items()}  # over items
        means = self.running_means(norms)
        scale = self.total_norm / sum(self.weights[name] for name in losses)
        balanced = sum(gradients[name] * (scale * self.weights[name] / means[name]) for name in losses)
        return (output * balanced).sum()

    @torch.no_grad()
    def running_means(self, norms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Update the running means with this call's norms (averaged over processes), in training, and return them."""
        names = [name for name in self.weights if name in norms]
        index = [i for i, name in enumerate(self.weights) if name in norms]
        new = torch.stack([norms[name] for name in names]).to(self.norm_sums)
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(new)
            new /= distributed.get_world_size()
        sums, counts = self.norm_sums[index], self.norm_counts[index]
        if self.training:
            finite = new.isfinite()  # one overflow must not spoil every step after it
            sums = torch.where(finite, sums * self.decay + new, sums)
            counts = torch.where(finite, counts * self.decay + 1, counts)
            self.norm_sums[index], self.norm_counts[index] = sums, counts
        means = torch.where(counts > 0, sums / counts, new).clamp(min=1e-12)
        return dict(zip(names, means, strict=True))
