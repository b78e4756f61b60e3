"""Fairseq checkpoints are read without fairseq, and nothing in them runs."""

import argparse
import enum
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Trap, refused

from vokens.errors import CheckpointError
from vokens.fairseq_file import read_fairseq_weights


class Dictionary:  # stands for fairseq.data.dictionary.Dictionary
    def __init__(self) -> None:
        self.symbols = ["<s>", "<pad>"]
        self.indices = {"<s>": 0}


class Config(dict):  # stands for an omegaconf container
    def __setstate__(self, state: dict) -> None:
        self.update(state)

    def __reduce__(self) -> tuple:
        return Config, (), {"normalize": True}


class Choice(enum.Enum):
    LAYER = "layer_norm"


@pytest.fixture
def content(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A checkpoint whose classes live in a module that is gone when it is read."""
    module = types.ModuleType("fairseq_of_somebody")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for cls in (Dictionary, Config, Choice):
        setattr(module, cls.__name__, cls)
        monkeypatch.setattr(cls, "__module__", module.__name__)
    return {
        "args": argparse.Namespace(normalize=True, other=None),
        "cfg": {"task": Config(), "extractor": Choice.LAYER},
        "task_state": {"dictionaries": [Dictionary()]},
        "model": {
            "a.weight": torch.arange(6.0).view(2, 3),
            "b": torch.ones(4).half(),
            "c": torch.nn.Parameter(torch.ones(2)),
        },
        "optimizer_history": [{"num_updates": 3, "lr": {1.5, 2.5}}],
    }


@pytest.mark.parametrize("zipped", [True, False])
def test_weights_among_foreign_objects(
    content: dict, tmp_path: Path, zipped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.pt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    monkeypatch.delitem(sys.modules, "fairseq_of_somebody")
    weights = read_fairseq_weights(path)
    assert {name: (tuple(value.shape), value.dtype) for name, value in weights.items()} == {
        "a.weight": ((2, 3), torch.float32),
        "b": ((4,), torch.float16),
        "c": ((2,), torch.float32),
    }
    assert weights["a.weight"].tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_runs(tmp_path: Path, zipped: bool) -> None:
    for depth, bait in enumerate((Trap(tmp_path / "trapped"), [Trap(tmp_path / "trapped")])):
        path = tmp_path / f"{depth}.pt"
        torch.save({"model": {"a": torch.ones(2)}, "cfg": bait}, path, _use_new_zipfile_serialization=zipped)
        assert read_fairseq_weights(path)["a"].tolist() == [1, 1]
        assert not (tmp_path / "trapped").exists()
    torch.load(tmp_path / "0.pt", weights_only=False)  # an ordinary reader falls into it
    assert (tmp_path / "trapped").exists()


@pytest.mark.parametrize(
    "call",
    [
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("os", "system"),
        ("torch", "load"),
        ("torch.storage", "_load_from_bytes"),
    ],
)
def test_callables_become_inert(tmp_path: Path, call: tuple[str, str]) -> None:
    module, name = call
    pickled = (
        b"\x80\x02}X\x05\x00\x00\x00modelc" + f"{module}\n{name}\n".encode() + b"X\x01\x00\x00\x001\x85Rs."
    )
    path = tmp_path / "a.pt"
    path.write_bytes(pickled)
    assert pickled.endswith(b"Rs.")
    refused(CheckpointError, ".", read_fairseq_weights, path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    refused(CheckpointError, "cannot read", read_fairseq_weights, path)
    for data in (b"", b"not a pickle at all", pickle.dumps([1, 2])):
        path.write_bytes(data)
        refused(CheckpointError, ".", read_fairseq_weights, path)
    torch.save({"model": {"a": torch.ones(1000)}}, path)
    path.write_bytes(path.read_bytes()[:-600])
    refused(CheckpointError, "damaged", read_fairseq_weights, path)
    torch.save([torch.ones(2)], path)
    refused(CheckpointError, "list", read_fairseq_weights, path)
    torch.save({"optimizer": 1}, path)
    refused(CheckpointError, "model", read_fairseq_weights, path)
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    refused(CheckpointError, "TorchScript", read_fairseq_weights, path)
