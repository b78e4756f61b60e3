"""A folder of results, as the benchmark writes it, of a small random codec beside Opus: for the report's tests."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from conftest import speechlike

RATES = {"original": 256.0, "small 1-1": 1.0, "small 1-4": 4.0, "small 2-4": 3.0, "opus-6": 6.0}


def write_results(folder: Path, codec: Path) -> Path:
    """Two benches over three recordings in folder/audio; codec: a folder that vokens.load opens."""
    audio = folder / "audio"
    audio.mkdir(parents=True)
    for i in range(3):
        soundfile.write(audio / f"{i}.wav", speechlike(12000 + 4000 * i, seed=i), 16000)
    out = folder / "out"
    out.mkdir()
    facts = {"settings": {"vokens": "0", "data": str(audio), "device": "cpu", "seed": 0}}
    facts["selection"] = {"models": [str(codec)], "split": None, "limit": None}
    facts |= {"machine": {"cores": 2}, "notes": {"lyra-6": "it is <not> installed."}, "failed": 1}
    name = json.loads((codec / "config.json").read_text())["name"]
    rows = [row(label.replace("small", name), rate, i) for i, (label, rate) in enumerate(RATES.items())]
    (out / "reconstruct.json").write_text(json.dumps({"bench": "reconstruct", **facts, "rows": rows}))
    robust = {f"agreement/white/{level}dB": number(90 - level, "%") for level in (10, 20)}
    lines = [{**rows[1], "row": name, "metric": robust}]
    (out / "robust.json").write_text(json.dumps({"bench": "robust", **facts, "rows": lines}))
    (out / "speed.json").write_text(json.dumps({"bench": "speed", **facts, "rows": []}))  # not finished
    return out


def row(label: str, rate: float, place: int) -> dict[str, Any]:
    found = {"bitrate": number(rate, "kbit/s"), "stoi": number(0.5 + 0.1 * np.log(rate), "")}
    found["pesq-wb"] = (
        {**number(None, "MOS-LQO"), "value": None} if place == 3 else number(1.0 + place, "MOS-LQO")
    )
    model = label.split(" ")[0]
    return {"row": label, "model": model, "fingerprint": "", "files": 3, "seconds": 48.0, "metric": found}


def number(value: float | None, unit: str) -> dict[str, Any]:
    shown = None if value is None else round(float(value), 6)
    found: dict[str, Any] = {"value": shown, "unit": unit, "mode": "as <defined>", "n": 3}
    return found if shown is None else found | {"ci": [shown - 0.05, shown + 0.05]}
