"""Files of a training run: checkpoints that resume exactly, and the best models.

A checkpoint is one file of tensors and plain values, written under a temporary name and renamed when whole, and
read back with weights_only.
"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vokens.atomic import atomic_write
from vokens.checkpoint import save_torch
from vokens.errors import CheckpointError, ConfigError


class Average:
    """Exponential moving average of a module's floating-point parameters; buffers are copied.

    The decay starts at (1 + n) / (10 + n), so that early averages forget the random start.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.values = {name: value.detach().clone() for name, value in module.state_dict().items()}
        self.averaged = {name for name, _ in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, value in module.state_dict().items():
            if name in self.averaged:
                self.values[name].lerp_(value, 1 - decay)
            else:
                self.values[name].copy_(value)

    @torch.no_grad()
    def restart(self, module: nn.Module) -> None:
        """Start again from the module's weights, after a step that replaced them (k-means)."""
        self.updates = 0
        for name, value in module.state_dict().items():
            self.values[name].copy_(value)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "values": self.values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = state["updates"]
        for name, value in state["values"].items():
            self.values[name].copy_(value)


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write folder/step_XXXXXXXX.pt and remove all but the newest `keep`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step_{step:08d}.pt"
    save_torch(path, state, {"config": state["config"]})
    for old in checkpoints(folder)[:-keep]:
        old.unlink(missing_ok=True)
    return path


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints of a folder, oldest first."""
    return sorted(path for path in folder.glob("step_*.pt") if re.fullmatch(r"step_\d{8}\.pt", path.name))


def load_checkpoint(path: Path) -> dict[str, Any]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"the checkpoint {path} cannot be read ({error}): remove it to resume before it"
        ) from error


class Best:
    """The best models by a validation metric: folder/step_XXXXXXXX, and their metrics in a json file.

    measure: its name; with "-" before it, larger is better. keep: how many models stay.
    """

    def __init__(self, folder: Path, measure: str, keep: int) -> None:
        self.folder, self.keep = folder, keep
        self.name, self.sign = measure.removeprefix("-"), -1 if measure.startswith("-") else 1

    def measures(self) -> dict[int, float]:
        """Metric of each kept step, best first."""
        try:
            values = json.loads((self.folder / "measures.json").read_text())[self.name]
        except (OSError, KeyError):
            return {}
        return {int(step): value for step, value in values.items()}

    def offer(self, step: int, measured: dict[str, float], save: Callable[[Path], Any]) -> None:
        """Keep this step's model, which `save` writes, if it is among the best.

        Raises ConfigError for an unknown metric.
        """
        if self.name not in measured:
            raise ConfigError(
                f"best = {self.name!r}: the validation measures {', '.join(measured) or 'nothing'}"
            )
        measures = self.measures() | {step: measured[self.name]}
        ranked = sorted(measures, key=lambda step: (self.sign * measures[step], step))
        if step in ranked[: self.keep]:
            save(self._of(step))
            with atomic_write(self.folder / "measures.json") as partial:
                best = {str(step): measures[step] for step in ranked[: self.keep]}
                partial.write_text(json.dumps({self.name: best}) + "\n")
            for dropped in ranked[self.keep :]:
                shutil.rmtree(self._of(dropped), ignore_errors=True)

    def clear(self) -> None:
        """Remove all kept models."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _of(self, step: int) -> Path:
        return self.folder / f"step_{step:08d}"
