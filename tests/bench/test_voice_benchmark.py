"""benchmarks/voice.py: every stage is measured; a second run measures what another model or seed changed, no more."""

import json
import runpy
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from conftest import refused, speechlike
from speakers import tiny_speech

import vokens

pytest.importorskip("pystoi")
SCRIPT = Path(__file__).parents[2] / "benchmarks/voice.py"
WORDS = "five words are said here"


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Runs the script; what its recogniser, which hears one word too few, was asked for."""
    folder = tiny_speech().save_pretrained(tmp_path / "voice")
    lines = []
    for number in range(6):
        path = f"{number}.wav"
        soundfile.write(tmp_path / path, speechlike(9600, number), 16000)
        facts = {
            "split": "test",
            "speaker": f"s{number % 2}",
            "language": "en",
            "text": WORDS,
            "duration": 0.6,
        }
        lines.append(json.dumps({"id": str(number), "path": path, "speed": 1.1, **facts}) + "\n")
    (tmp_path / "manifest.jsonl").write_text("".join(lines) + '{"id": "half')  # one that grows
    asked: list[str] = []

    def transcribe(wave: np.ndarray) -> str:
        asked.append(f"{len(wave)}")
        return "5 words are said"

    def stand_ins(self, args) -> None:  # the evaluators' files are on few machines
        self.recognisers = {"ears": SimpleNamespace(transcribe=transcribe)}
        self.speakers = SimpleNamespace(embed=lambda wave: np.array([1.0, len(wave)]))
        self.dnsmos = SimpleNamespace(rate=lambda wave: {"dnsmos": 3.0})

    def call(*words: object) -> list[str]:
        asked.clear()
        monkeypatch.setattr(sys, "path", ["benchmarks", *sys.path])
        sets = ["--synthetic", tmp_path / "manifest.jsonl", "--real", tmp_path / "manifest.jsonl"]
        line = ["voice.py", *sets, "--voice", folder, "--steps", 1, 2, "--limit", 2, *words]
        monkeypatch.setattr(sys, "argv", list(map(str, line)))
        names = runpy.run_path(str(SCRIPT))
        monkeypatch.setattr(names["Evaluators"], "__init__", stand_ins)
        names["main"]()
        return list(asked)

    return call


def test_stages_are_measured_once_for_each_model(bench, tmp_path, capsys) -> None:
    results = tmp_path / "results.json"
    assert len(bench("--json", results, "--out", tmp_path / "waves")) == 2 * 2 * 6
    table = capsys.readouterr().out.strip().splitlines()
    stages = ["recording", "autoencoder"]
    stages += ["tokens, 1 step", "tokens, 2 steps", "text, 1 step", "text, 2 steps"]
    assert [row.split(" | ")[0][2:] for row in table[2:]] == [
        f"{name}: {stage}" for stage in stages for name in ("synthetic", "real")
    ]
    assert table[2].split(" | ")[1:3] == ["20.0", "1.000"]  # one of five words; 5 is five
    kept = json.loads(results.read_text())
    assert [pair[0] for pair in kept["items"]["real"][:4]] == ["0", "1", "2", "3"]  # speaker by speaker
    assert all(one != other and (int(one) - int(other)) % 2 == 0 for one, other in kept["items"]["real"])
    assert {"f0", "stoi"} <= kept["rows"]["real: tokens, 1 step"]["lines"]["0"].keys()
    assert {"bad", "first"} <= kept["rows"]["real: text, 2 steps"]["lines"]["0"].keys()
    assert len(list((tmp_path / "waves").iterdir())) == 12
    assert not bench("--json", results)
    assert len(bench("--json", results, "--seed", 1)) == 2 * 2 * 4  # recordings and autoencoder have no noise
    assert not bench("--json", results, "--seed", 1, "--only", "recording")
    assert len(bench("--items", results, "--only", "recording", "--limit", 1)) == 2


def test_parts_apart_and_trained_on_since(bench, tmp_path, capsys) -> None:
    """A flow may have learned the latents of an autoencoder whose decoder was trained on."""
    model = vokens.load(tmp_path / "voice")
    model.flow.config = replace(model.flow.config, latents_fingerprint="0" * 16)
    model.flow.save_pretrained(tmp_path / "flow")
    assert len(bench("--flow", tmp_path / "flow", "--only", "tokens", "--limit", 1)) == 2 * 2
    assert "trained with other latents_fingerprint" in capsys.readouterr().err


def test_a_sentence_that_is_gone_is_named(bench, tmp_path) -> None:
    (tmp_path / "items.json").write_text(json.dumps({"items": {"real": [["7", "8"]]}, "rows": {}}))
    refused(SystemExit, "lacks 7", bench, "--items", tmp_path / "items.json")
