"""What tests of all trainings share: a little speech, a recipe on it, and what every training must hold."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import soundfile
from conftest import speechlike

from vokens.train.config import build, read_recipe, trainer_of
from vokens.train.loop import Trainer

RECIPES = Path(__file__).parent.parent / "recipes"


def write_speech(folder: Path, rate: int, seconds: tuple[float, ...] = (1.0, 0.6, 0.0625)) -> Path:
    """Recordings of these lengths; the last is shorter than any crop."""
    for i, length in enumerate(seconds):
        samples = speechlike(round(length * rate), seed=i, sample_rate=rate)
        soundfile.write(folder / f"{i}.wav", samples, rate)
    return folder


def write_recipe(folder: Path, text: str, speech: Path) -> Path:
    """A recipe whose run, cache and data are these; `text` has a table [data]."""
    data = f'[data]\ntrain = "{speech}"\nvalid = "{speech}"\ncache = "{folder / "cache"}"\n'
    path = folder / "recipe.toml"
    path.write_text(f'out = "{folder / "run"}"\n' + text.replace("[data]\n", data))
    return path


def next_step_after_resuming(trainer: Callable[[], Trainer[Any, Any]], steps: int) -> dict[str, float]:
    """A step's values, which a run that was stopped before it has too, to the last digit."""
    straight = trainer()
    for _ in range(steps):
        straight.train_step()
    straight.save()
    expected = straight.train_step()
    again = trainer()
    again._resume()
    assert again.step == steps
    assert again.train_step() == expected
    return expected


def check_recipe(name: str, trainer: type[Trainer[Any, Any]]) -> None:
    """A published recipe is of this task, and its config survives the way to a checkpoint and back."""
    config = read_recipe(RECIPES / name, ["data.train=somewhere"])
    assert trainer_of(config.task) is trainer
    assert build(trainer.Config, json.loads(json.dumps(asdict(config))), "again") == config
