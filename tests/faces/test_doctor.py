"""The doctor names every extra and every model with its licence, and what is broken decides its exit code."""

import json
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from vokens import registry
from vokens.cli import doctor, main
from vokens.install import install_line
from vokens.nn import product

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]


def findings(capsys: pytest.CaptureFixture[str], code: int = 0) -> dict[str, dict[str, str]]:
    assert main(["doctor", "--json"]) == code
    return {item["name"]: item for item in json.loads(capsys.readouterr().out)}


def test_everything_is_named(capsys):
    assert set(doctor.EXTRAS) == set(PROJECT["optional-dependencies"]) - {"dev"}
    actual = findings(capsys)
    assert {"torch", "numpy", "cpu", "mini", *doctor.EXTRAS, *registry.MODELS} <= actual.keys()
    assert all(actual[entry.name]["detail"].startswith(f"{entry.size}, ") for entry in registry.entries())
    assert actual["mini"]["state"] == "ok"
    by = {"torch": "torch (MKL)" if torch.backends.mkl.is_available() else "torch", "onednn": "oneDNN"}
    products = f"; {', '.join(product.features())}; float32 products by {by[product.backend()]}"
    assert actual["cpu"]["detail"].endswith(products)


def test_a_missing_package_has_its_remedy(capsys, monkeypatch):
    present, gone = doctor._version, ["gradio"]
    monkeypatch.setattr(doctor, "_version", lambda name: None if name in gone else present(name))
    assert findings(capsys)["web"]["remedy"] == install_line("web")
    gone.append("soxr")  # of the core
    actual = findings(capsys, code=1)
    assert actual["soxr"] | {"state": "broken", "remedy": "pip install soxr"} == actual["soxr"]


def test_the_table_is_for_people(capsys):
    assert main(["doctor"]) == 0
    page = capsys.readouterr().out
    assert "devices\n" in page
    assert "! broken" in page


def test_what_is_installed_but_does_not_load_is_broken(capsys, monkeypatch, tmp_path):
    """A + is tried: these packages have their metadata, but their code is damaged."""
    for name in ("gradio", "soxr"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('half a package')")
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    actual = findings(capsys, code=1)
    assert actual["web"]["state"] == actual["soxr"]["state"] == "broken"
    assert "half a package" in actual["web"]["detail"]


def test_a_program_that_does_not_run_is_broken(capsys, monkeypatch, tmp_path):
    (tmp_path / "c2enc").write_bytes(b"\x7fELF and nothing more")
    (tmp_path / "c2enc").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    actual = findings(capsys, code=1)
    assert actual["c2enc"]["state"] == "broken"
    assert actual["espeak-ng"]["state"] == "missing"


def test_a_cache_that_cannot_be_written_is_broken(capsys, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    cache = tmp_path / "file" / "cache"  # a folder below a file: refused to root, too
    monkeypatch.setenv("VOKENS_CACHE", str(cache))
    actual = findings(capsys, code=1)
    assert actual[str(cache)]["state"] == "broken"
    assert "VOKENS_CACHE" in actual[str(cache)]["remedy"]
