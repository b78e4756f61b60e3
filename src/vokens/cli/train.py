"""Train a model from a recipe. Run the same command again to resume.

On several devices: torchrun --nproc-per-node 8 -m vokens train RECIPE, or accelerate launch.
"""

import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, UseAppendAction

from vokens.cli.options import unset

KINDS = {"lm": "language model", "model": "autoencoder"}  # others are called as their folders


@dataclass(frozen=True)
class Arguments:
    recipe: Annotated[Positional[str], unset("RECIPE")] = ""
    """The run: a name, such as mini, or a TOML file of changes to the defaults. Without one: list the names."""
    set: Annotated[UseAppendAction[tuple[str, ...]], unset("NAME=VALUE")] = ()
    """Change a setting: --set optim.learning_rate=3e-4. May be repeated."""
    fresh: bool = False
    """Start at step 0 although the run's folder has checkpoints; they are removed."""


def run(arguments: Arguments) -> int:
    from vokens.train.config import read_recipe, recipes, trainer_of

    if not arguments.recipe:
        for name, path in recipes().items():
            print(f"{name:24}{_first_sentence(path)}")
        return 0
    config = read_recipe(arguments.recipe, arguments.set)
    trainer = trainer_of(config.task)(config)
    out = trainer.run(resume=not arguments.fresh)
    if trainer.accelerator.is_main_process:
        kind, folder = KINDS.get(trainer.exported, trainer.exported), out / trainer.exported
        print(f'step {trainer.step} of {config.steps}; vokens.load("{folder}") opens the {kind}')
    return 0 if trainer.step >= config.steps else 130


def _first_sentence(recipe: Path) -> str:
    """Subject of a recipe, from its first comment."""
    head = itertools.takewhile(lambda line: line.startswith("# "), recipe.read_text().splitlines())
    text = " ".join(line[2:] for line in head)
    return re.split(r"(?<=[a-z\d)])[.:;] ", text)[0]
