"""Recipes: found by name, listed, each of a task with every setting known, and clear about what a machine lacks."""

import dataclasses
import json
import tomllib
from pathlib import Path

import pytest
from conftest import refused
from training import write_speech

from vokens import registry
from vokens.cli import main
from vokens.config import build_config
from vokens.errors import ConfigError, VokensError
from vokens.train.config import find_recipe, read_recipe, recipes, trainer_of

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "recipes").rglob("*.toml"))
NAMES = [path.stem for path in FILES]
TASKS = {  # task -> its recipes
    "codec": ["mini", "mini_second", "mini_decoder", "mini_third", "speechtokenizer"],
    "recogniser": ["s3_mini", "s3_scratch"],
    "flow": ["s3gen_mini", "s3gen_distill"],
    "vocoder": ["hift_mini"],
    "socodec": ["socodec", "socodec_mini", "socodec_vocoder"],
    "token_lm": ["socodec_lm_mini"],
    "uslm": ["uslm_mini"],
    "learnable_lm": ["learnable_lm", "learnable_lm_mini", "say_lm"],
    "learnable_flow": ["learnable_flow", "learnable_flow_mini", "learnable_flow_distill", "say_flow"],
    "dacvae": ["dacvae", "dacvae_mini", "say_autoencoder"],
    "flow_autoencoder": ["flowae_mini"],
}


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_recipes_are_valid(path: Path) -> None:
    config = read_recipe(path.stem, ["data.train=somewhere"])
    assert path.stem in TASKS[config.task]
    assert config.system == path.parent.name or config.task not in ("codec", "recogniser")
    values = json.loads(json.dumps(dataclasses.asdict(config)))  # as a checkpoint keeps it
    assert build_config(trainer_of(config.task).Config, values, "again") == config
    assert f"vokens train {path.stem} " in path.read_text()
    assert "~" not in path.read_text()  # no folder of one machine


def test_each_recipe_has_a_name_of_its_own_and_lies_with_its_system() -> None:
    assert sorted(NAMES) == sorted(recipes())
    systems = {path.name for path in (ROOT / "src/vokens/models").iterdir() if path.is_dir()}
    outside = [path for path in FILES if path.parent.name not in systems | {registry.VOICE}]
    assert not outside
    assert {path.parents[1] for path in FILES} == {ROOT / "recipes"}
    page = (ROOT / "recipes/README.md").read_text()
    missing = [path for path in FILES if f"({path.relative_to(ROOT / 'recipes')})" not in page]
    assert not missing


def test_each_recipe_has_a_folder_of_its_own() -> None:
    outs = [read_recipe(name).out for name in NAMES]
    assert len(set(outs)) == len(outs)


def test_recipes_are_found_by_name_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert list(recipes()) == NAMES
    for source in ("mini", "mini.toml", "recipes/mini.toml", Path("recipes/mini/mini.toml")):
        assert find_recipe(source).read_text() == (ROOT / "recipes/mini/mini.toml").read_text()
    assert find_recipe("say_flow").parent.name == "say"
    (tmp_path / "mini.toml").write_text("")
    assert find_recipe("mini.toml") == Path("mini.toml")  # a file of the user's goes first
    for source in ("minni", "elsewhere/mini.toml", "recipes/uslm/mini.toml", ".", "mini.json"):
        refused(ConfigError, r"there is no recipe .*one of dacvae, .*uslm_mini", find_recipe, source)


def test_without_a_name_the_recipes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == NAMES
    assert all(len(line) > 30 for line in lines)


def test_the_wheel_takes_the_recipes_along() -> None:
    """Recipes lie beside the package's modules; that the built wheel has them, `make release-check` says."""
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert "recipes/*/*.toml" in wheel["include"]
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
        ("speechtokenizer", ["model.n_filters=2", "teacher.source=no/one"], r"source\) no/one does not open.*hub"),
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
    refused(VokensError, said, lambda: trainer_of(config.task)(config))


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
