"""The doctor names every extra and every model with its licence, and what is broken decides its exit code."""

import json
import tomllib
from pathlib import Path

import pytest

from vokens import registry
from vokens.cli import doctor, main
from vokens.install import install_line

PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]


def findings(capsys: pytest.CaptureFixture[str], code: int = 0) -> dict[str, dict[str, str]]:
    assert main(["doctor", "--json"]) == code
    return {item["name"]: item for item in json.loads(capsys.readouterr().out)}


def test_everything_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(doctor.EXTRAS) == set(PROJECT["optional-dependencies"]) - {"dev"}
    found = findings(capsys)
    assert {"torch", "numpy", "cpu", "mini", *doctor.EXTRAS, *registry.MODELS} <= found.keys()
    assert all(found[entry.name]["detail"].split(" MB, ")[1] for entry in registry.entries())
    assert found["mini"]["state"] == "ok"


def test_a_missing_extra_has_its_remedy(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    present = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "gradio" else present(name))
    assert findings(capsys)["web"]["remedy"] == install_line("web")


def test_a_missing_core_package_is_broken(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    present = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "soxr" else present(name))
    found = findings(capsys, code=1)
    assert found["soxr"] | {"state": "broken", "remedy": "pip install soxr"} == found["soxr"]


def test_the_table_is_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    page = capsys.readouterr().out
    assert "devices\n" in page
    assert "! broken" in page
