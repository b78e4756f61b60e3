"""Losses of the language model: label-smoothed divergence, accuracy, and preferences (DPO, arXiv 2305.18290).

Logits (B, L, V) and targets (B, L) are those of `LearnableLM.forward`; IGNORE masks a position.
"""

import math

from torch import Tensor
from torch.nn import functional as F

from vokens.models.learnable.layout import IGNORE


def label_loss(logits: Tensor, target: Tensor, *, smoothing: float = 0.0, per_token: bool = True) -> Tensor:
    """KL divergence from the smoothed targets: 1 - smoothing on the target, the rest spread evenly.

    Cross entropy less the targets' own entropy, so 0 is reached. per_token: mean over the targets;
    else their sum over the batch's size.
    """
    loss_mask = target != IGNORE
    logp = logits[loss_mask].float().log_softmax(-1)
    right = logp.gather(1, target[loss_mask][:, None])[:, 0]
    total = -(1 - smoothing) * right.sum()
    if smoothing:
        other = smoothing / (logp.shape[1] - 1)
        entropy = (1 - smoothing) * math.log(1 - smoothing) + smoothing * math.log(other)
        total = total - other * (logp.sum() - right.sum()) + entropy * len(right)
    return total / (max(1, len(right)) if per_token else len(target))


def accuracy(logits: Tensor, target: Tensor) -> Tensor:
    """Share of targets that are the most likely id."""
    loss_mask = target != IGNORE
    return (logits[loss_mask].argmax(-1) == target[loss_mask]).float().mean()


def sum_log_probs(logits: Tensor, target: Tensor) -> Tensor:
    """Log-probability (B,) of each row's targets."""
    loss_mask = target != IGNORE
    logp = logits.float().log_softmax(-1).gather(2, target.clamp(min=0)[..., None])[..., 0]
    return (logp * loss_mask).sum(1)


def dpo_loss(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor | None = None,
    reference_rejected: Tensor | None = None,
    *,
    beta: float = 0.01,
) -> Tensor:
    """-log sigmoid of beta times the preference of the policy over that of the reference, mean over rows.

    All are (B,) from `sum_log_probs`. Without a reference, and with sums divided by their lengths, it is SimPO's.
    """
    margin = chosen - rejected
    if reference_chosen is not None and reference_rejected is not None:
        margin = margin - (reference_chosen - reference_rejected)
    return -F.logsigmoid(beta * margin).mean()
