"""What earlier commits saved still opens: model folders, token files, extracted corpora, checkpoints of runs.

golden/saved/saved.tar.xz was written at commit ba1d416 (its made_by.py says how); weights follow a short pattern, so
that it packs well. Rename what you like, but not what is in files without reading the old name too.
"""

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import speechlike
from training import extract

import vokens
from vokens.data.dataset import TokenDataset
from vokens.train.config import read_recipe, trainer_of

ARCHIVE = Path(__file__).parents[1] / "golden/saved/saved.tar.xz"
MODELS = "mini speechtokenizer s3tokenizer socodec dacvae flowae uslm token_lm learnable learnable_lm learnable_flow"
RUNS = ("codec", "learnable_lm", "uslm", "socodec", "vocoder")


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="session")
def facts(saved: Path) -> dict[str, Any]:
    return json.loads((saved / "facts.json").read_text())


@pytest.mark.parametrize("name", MODELS.split())
def test_saved_models_open_with_their_fingerprint(name: str, saved: Path, facts: dict[str, Any]) -> None:
    if name == "socodec":
        pytest.importorskip("transformers")
    model = vokens.load(saved / "models" / name)
    if name != "learnable":  # of a voice, which no file names, and which has got settings since
        assert model.fingerprint == facts[name]["fingerprint"]
    assert model.name == facts[name]["name"]


@pytest.mark.parametrize("name", ["mini", "speechtokenizer", "socodec", "s3tokenizer"])
@pytest.mark.parametrize("suffix", ["vok", "json", "npz", "pt"])
def test_saved_tokens_open(name: str, suffix: str, saved: Path, facts: dict[str, Any]) -> None:
    tokens = vokens.Tokens.load(saved / f"tokens/{name}.{suffix}")
    assert tokens.codes.tolist() == facts[name]["codes"]
    assert tokens.fingerprint == facts[name]["fingerprint"]


@pytest.mark.parametrize("form", ["jsonl", "npy", "webdataset", "shar", "megatron"])
def test_extracted_corpora_are_read(form: str, saved: Path) -> None:
    rows = list(TokenDataset(saved / "corpora" / form))
    assert [row.codes.shape for row in rows] == [(4, 19), (4, 29), (4, 38)]


@pytest.mark.parametrize("task", RUNS)
def test_stopped_runs_go_on(
    task: str, saved: Path, facts: dict[str, Any], tmp_path: Path, monkeypatch
) -> None:
    pytest.importorskip("accelerate")
    if task in ("learnable_lm", "uslm"):
        sizes, rate = ((40,), 25.0) if task == "learnable_lm" else ((32, 32, 32), 50.0)
        data = extract(tmp_path / "tokens", sizes, rate)
    else:
        data = tmp_path / "speech"
        data.mkdir()
        for i in range(3):
            soundfile.write(data / f"{i}.wav", speechlike(6000 + 3000 * i, seed=i), 16000)
    places = [f"out={saved / 'runs' / task}", f"data.train={data}", f"data.valid={data}"]
    changes = [*places, f"data.cache={tmp_path / 'cache'}", "optim.schedule=constant", "steps=9"]
    run = trainer_of(task)(read_recipe(saved / f"runs/{task}.toml", changes))
    run._resume()
    assert run.step == 2
    expected = {
        name.replace("judges", "discriminator"): value for name, value in facts[f"{task}_step"].items()
    }
    if task == "socodec":  # its rows shared their draws when the archive was written
        shared = torch.Generator().manual_seed(run.config.seed * 1_000_003 + run.number(0) * 97)
        monkeypatch.setattr(run, "row_generators", lambda number, rows: [shared] * rows)
    values = run.train_step()
    assert values.keys() == expected.keys()
    for name, value in values.items():
        assert np.isclose(value, expected[name], rtol=0.02, atol=0.02), name
