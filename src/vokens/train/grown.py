"""Networks that start from shallower ones."""

import torch
from torch import Tensor, nn

from vokens import checkpoint

ADDS = ("scale", "attn.out.", "mlp.2.")  # of a residual block: zeros there, and it adds nothing


def load_grown(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load weights strictly, but blocks that follow those of the checkpoint begin as the identity: a deeper network
    starts where a shallower one ended (Net2Net, arXiv 1511.05641 §2.3).
    """
    depths: dict[str, int] = {}  # of the checkpoint's stacks of blocks, by what stands before "blocks."
    for stack, number, _ in map(_block, state):
        depths[stack] = max(depths.get(stack, 0), number + 1)
    for name, weight in model.state_dict().items():
        stack, number, part = _block(name)
        if name not in state and 0 < depths.get(stack, 0) <= number:
            state[name] = torch.zeros_like(weight) if part.startswith(ADDS) else weight
    checkpoint.load_strict(model, state, source)


def _block(name: str) -> tuple[str, int, str]:
    """Stack, number in it, and the rest of a name such as "encoder.blocks.3.scale"; number -1 outside of blocks."""
    stack, _, rest = name.partition("blocks.")
    number, _, part = rest.partition(".")
    return (stack, int(number), part) if number.isdigit() else (stack, -1, rest)
