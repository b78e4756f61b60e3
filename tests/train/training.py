"""What tests of all trainings share: a little speech, a recipe on it, and what every training must hold."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile
from accelerate.state import AcceleratorState
from conftest import speechlike

from vokens.train.loop import Trainer


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


def bfloat16_follows_float32(trainer: Callable[..., Trainer[Any, Any]], *changes: str) -> None:
    """Two steps under bfloat16 autocast report the values of float32, within 10 % and 0.02; the rate is tiny, so that
    Adam, which makes a whole step of any gradient, does not part the two."""
    found, expected = (_two_steps(trainer, precision, *changes) for precision in ("bf16", "no"))
    for ours, theirs in zip(found, expected, strict=True):
        far = {k: (ours[k], v) for k, v in theirs.items() if ours[k] != pytest.approx(v, rel=0.1, abs=0.02)}
        assert not far, far  # name: (bfloat16, float32)
        assert ours.keys() == theirs.keys()


def _two_steps(
    trainer: Callable[..., Trainer[Any, Any]], precision: str, *changes: str
) -> list[dict[str, float]]:
    AcceleratorState._reset_state()  # accelerate keeps one precision per process
    try:
        run = trainer(f"precision={precision}", "optim.learning_rate=1e-6", *changes)
        return [run.train_step() for _ in range(2)]
    finally:
        AcceleratorState._reset_state()
