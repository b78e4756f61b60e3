"""LSTM with a skip connection, whose layers and directions can also be run one by one over spans of time.

The published key names are those of `nn.LSTM`, which holds the weights; inference takes them from there by layer
and direction, so that state can be carried from span to span and directions can run side by side.
"""

import torch
from torch import Tensor, nn

State = tuple[Tensor, Tensor]  # hidden and cell, each (1, B, C)


class SkipLSTM(nn.Module):
    """x (B, C, T) -> LSTM(x) + x (B, C, T); with two directions (B, 2C, T), where x is added to both."""

    def __init__(self, width: int, num_layers: int, *, bidirectional: bool) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, width, num_layers, bidirectional=bidirectional)
        self.width, self.num_layers, self.num_directions = width, num_layers, 1 + bidirectional

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.lstm(x.permute(2, 0, 1))
        return y.permute(1, 2, 0) + x.repeat(1, self.num_directions, 1)

    def step(
        self, x: Tensor, state: State | None, layer: int, backward: bool = False
    ) -> tuple[Tensor, State]:
        """One layer in one direction over x (T, B, in), for `backward` with time reversed: (T, B, C), state.

        Rows may end: x may have fewer rows than the state, whose further rows are dropped.
        """
        rows = x.shape[1]
        if state is None:
            zeros = x.new_zeros(1, rows, self.width)
            state = zeros, zeros
        hidden, cell = (part[:, :rows].contiguous() for part in state)
        end = f"_l{layer}" + "_reverse" * backward
        weights = [
            getattr(self.lstm, name + end) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        ]
        out, hidden, cell = torch.lstm(x, (hidden, cell), weights, True, 1, 0.0, False, False, False)
        return out, (hidden, cell)
