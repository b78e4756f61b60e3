"""Train a codec, or what its recipe names, from a recipe. Run the same command again to go on after a stop.

On several devices: torchrun --nproc-per-node 8 -m vokens train RECIPE, or accelerate launch.
"""

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, UseAppendAction, arg


@dataclass(frozen=True)
class Arguments:
    recipe: Annotated[Positional[str], arg(metavar="RECIPE.toml")]
    """The run: what differs from the defaults of `vokens.train.config.RunConfig` and of its task's config."""
    set: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="NAME=VALUE", help_behavior_hint="")] = ()
    """Change a setting: --set optim.learning_rate=3e-4. May be given many times."""
    fresh: bool = False
    """Start at step 0 although the run's folder has checkpoints; they are removed."""


def run(arguments: Arguments) -> int:
    from vokens.train.config import read_recipe, trainer_of

    config = read_recipe(arguments.recipe, arguments.set)
    trainer = trainer_of(config.task)(config)
    out = trainer.run(resume=not arguments.fresh)
    if trainer.accelerator.is_main_process:
        print(
            f"step {trainer.step} of {config.steps}; trained: {out / trainer.exported} (vokens.load opens a codec)"
        )
    return 0 if trainer.step >= config.steps else 130
