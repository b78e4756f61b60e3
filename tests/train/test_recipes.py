"""Recipes: found by name, listed, each of a task with every setting known, and clear about what a machine lacks."""

import dataclasses
import json
import tomllib
from pathlib import Path

import pytest
from training import write_speech

from vokens.cli import main
from vokens.config import build_config
from vokens.errors import ConfigError, VokensError
from vokens.train.config import find_recipe, read_recipe, recipes, trainer_of

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_valid(path: Path) -> None:
    config = read_recipe(path)
    again = build_config(
        trainer_of(config.task).Config, json.loads(json.dumps(dataclasses.asdict(config))), "again"
    )
    assert again == config
    assert f"vokens train {path.stem} " in path.read_text()
    assert "~" not in path.read_text()  # no folder of one machine


def test_each_recipe_has_a_folder_of_its_own() -> None:
    outs = [read_recipe(path).out for path in RECIPES]
    assert len(set(outs)) == len(outs)


def test_recipes_are_found_by_name_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert list(recipes()) == [path.stem for path in RECIPES]
    for source in ("mini", "mini.toml", "recipes/mini.toml", Path("recipes/mini.toml")):
        assert find_recipe(source).read_text() == (ROOT / "recipes/mini.toml").read_text()
    (tmp_path / "mini.toml").write_text("")
    assert find_recipe("mini.toml") == Path("mini.toml")  # a file of the user's goes first
    for source in ("minni", "elsewhere/mini.toml", ".", "mini.json"):
        with pytest.raises(ConfigError, match=r"there is no recipe .*one of dacvae, .*uslm_mini"):
            find_recipe(source)


def test_without_a_name_the_recipes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [path.stem for path in RECIPES]
    assert all(len(line) > 30 for line in lines)


def test_the_wheel_takes_the_recipes_along() -> None:
    """`recipes/*.toml` lie beside the package's modules; that the built wheel has them, `make release-check` says."""
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert "recipes/*.toml" in wheel["include"]
    assert wheel["sources"] == {"src/vokens": "vokens", "recipes": "vokens/recipes"}


@pytest.mark.parametrize(
    ("recipe", "changes", "said"),
    [
        ("mini", [], r"moonshine-tiny-en lacks .*docs/jobs/metrics.md.*VOKENS_EVAL_MODELS"),
        ("s3_mini", [], r"whisper-base lacks .*docs/jobs/metrics.md.*VOKENS_EVAL_MODELS"),
        ("socodec_mini", [], r"moonshine-tiny-en lacks .*docs/jobs/metrics.md.*VOKENS_EVAL_MODELS"),
        ("s3gen_mini", ["data.tokenizer=TOKENIZER"], r"campplus-zh-en lacks .*docs/jobs/metrics.md"),
        ("s3gen_mini", ["data.tokenizer=TOKENIZER", "data.speaker=nowhere"], r"nowhere does not exist: .*campplus"),
        ("mini", ["teacher.kind="], r"--set losses.distill=0 trains without"),
        ("s3_mini", ["trunk="], r"--set losses.trunk=0"),
        ("speechtokenizer", ["model.n_filters=2", "teacher.source=no/one"], r"no/one is no folder.*teacher.source="),
    ],
)  # fmt: skip
def test_what_a_machine_lacks_is_one_line(
    recipe: str, changes: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("transformers")
    monkeypatch.setenv("VOKENS_EVAL_MODELS", str(tmp_path / "evaluators"))
    monkeypatch.setattr(
        "huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9"
    )  # HF_ENDPOINT, read on import
    if any("TOKENIZER" in change for change in changes):
        from vokens.models.s3tokenizer import S3Tokenizer, S3TokenizerConfig

        small = S3TokenizerConfig(n_mels=80, width=16, heads=2, layers=1, quantizer="fsq", codebook_size=9)
        S3Tokenizer(small).save_pretrained(tmp_path / "s3")
    changes = [change.replace("TOKENIZER", str(tmp_path / "s3")) for change in changes]
    speech = write_speech(tmp_path, 16000)
    config = read_recipe(
        recipe, [f"data.train={speech}", f"out={tmp_path / 'run'}", "data.language=en", *changes]
    )
    with pytest.raises(VokensError, match=said) as caught:
        trainer_of(config.task)(config)
    assert "\n" not in str(caught.value)


def test_a_loss_of_0_is_none(tmp_path: Path) -> None:
    config = read_recipe("mini", ["teacher.kind=", "losses.distill=0"])
    assert "distill" not in config.losses


def test_deprecated_names_of_settings_are_read(tmp_path: Path) -> None:
    old, new = tmp_path / "old.toml", tmp_path / "new.toml"
    old.write_text('task = "vocoder"\ndata.train = "x"\n[judges]\nstart = 7\n')
    new.write_text('task = "vocoder"\ndata.train = "x"\n[discriminators]\nstart = 7\n')
    assert read_recipe(old) == read_recipe(new)
    assert read_recipe(new, ["judges.start=8"]).discriminators.start == 8
    old.write_text('task = "socodec"\ndata.train = "x"\n[mel_judge]\nstart = 7\n[wave_judge]\nstart = 9\n')
    config = read_recipe(old, ["wave_judge.start=10"])
    assert (config.mel_discriminator.start, config.wave_discriminator.start) == (7, 10)
