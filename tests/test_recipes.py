"""Every recipe is one of a task: each setting is known and of its type, and the commands in its head name it."""

import dataclasses
import json
from pathlib import Path

import pytest

from vokens.train.config import build, read_recipe, trainer_of

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_valid(path: Path) -> None:
    config = read_recipe(path)
    again = build(trainer_of(config.task).Config, json.loads(json.dumps(dataclasses.asdict(config))), "again")
    assert again == config
    assert f"vokens train recipes/{path.name}" in path.read_text()


def test_each_recipe_has_a_folder_of_its_own() -> None:
    outs = [read_recipe(path).out for path in RECIPES]
    assert len(set(outs)) == len(outs)
