"""Report what is installed, what is missing for which verb, where models run and where files are kept, with remedies.

Lines with a + were tested: packages are imported, programs are run, folders are written to, mini encodes.
"""

import contextlib
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Literal

from vokens.errors import VokensError
from vokens.install import install_line

# Purpose of each extra of pyproject.toml, except `dev`.
EXTRAS = {
    "media": "reading m4a, aac, webm, wma",
    "plot": "pictures: demo, roundtrip, inspect --picture",
    "train": "train",
    "track": "train with tracker = wandb or comet_ml",
    "hf": "SoCodec's HuBERT, HuBERT-like teachers, tokenizers of transformers",
    "eval": "bench: STOI, PESQ, word error, speaker similarity, Lyra",
    "onnx": 'backend="onnxruntime", convert to ONNX',
    "parquet": "extract from and to parquet",
    "ray": "extract --engine ray",
    "web": "web",
    "serve": "serve",
    "espeak": "phonemes of texts: say",
}
# Programs that some verbs call, and the Debian package of each.
PROGRAMS = {
    "c2enc": ("codec2", "bench, encode: Codec 2"),
    "espeak-ng": ("espeak-ng", "phonemes of texts: say (or the extra espeak)"),
}
State = Literal["ok", "missing", "broken"]


@dataclass(frozen=True)
class Arguments:
    json: bool = False
    """One json list instead of the table."""


@dataclass(frozen=True)
class Finding:
    """One line of the report; remedy is "" where there is nothing to do."""

    topic: str
    name: str
    state: State
    detail: str
    remedy: str = ""


def run(arguments: Arguments) -> int:
    """Print the findings; 1 if something is broken."""
    findings = []
    for examine in (
        _core,
        _devices,
        _extras,
        _programs,
        _models,
        _folders,
    ):  # each is printed as soon as it is done
        findings += (part := examine())
        if not arguments.json:
            print(_page(part), end="\n\n", flush=True)
    if arguments.json:
        print(json.dumps([asdict(item) for item in findings], indent=2, ensure_ascii=False))
    else:
        print("+ works   - missing, needed for what its line says   ! broken")
    return 1 if any(item.state == "broken" for item in findings) else 0


def _page(findings: list[Finding]) -> str:
    from vokens.cli.report import table

    marks = {"ok": "+", "missing": "-", "broken": "!"}
    parts = []
    for topic in dict.fromkeys(item.topic for item in findings):
        rows = [
            (f"  {marks[item.state]}", item.name, item.detail, f"-> {item.remedy}" if item.remedy else "")
            for item in findings
            if item.topic == topic
        ]
        parts.append(f"{topic}\n{table(rows)}")
    return "\n\n".join(parts)


def _core() -> list[Finding]:
    findings = [Finding("vokens", "python", "ok", f"{platform.python_version()}, {sys.executable}")]
    for name in ("vokens", *_requirements().get("", [])):
        if _version(name) is None:
            remedy = install_line() if name == "vokens" else f"pip install {name}"
            findings.append(Finding("vokens", name, "broken", "every verb needs it", remedy))
        elif reason := _fails_to_import(name):
            remedy = f"pip install --force-reinstall {name}"
            findings.append(Finding("vokens", name, "broken", f"does not load: {reason}", remedy))
        else:
            findings.append(Finding("vokens", name, "ok", str(_version(name))))
    return findings


def _devices() -> list[Finding]:
    try:
        import torch
    except Exception as error:  # a broken torch raises many types
        remedy = "pip install --force-reinstall torch"
        return [Finding("devices", "torch", "broken", f"does not load: {error}", remedy)]
    from vokens.nn import product

    by = {"torch": "torch (MKL)" if torch.backends.mkl.is_available() else "torch", "onednn": "oneDNN"}
    cores = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    detail = f"{cores}; {', '.join(product.features())}; float32 products by {by[product.backend()]}"
    findings = [Finding("devices", "cpu", "ok", detail)]
    for number in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(number)
        findings.append(
            Finding("devices", f"cuda:{number}", "ok", f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB")
        )
    if not torch.cuda.is_available():
        build = "torch is a CPU build" if torch.version.cuda is None else "torch finds no CUDA device"
        remedy = "https://pytorch.org/get-started has the CUDA builds" if torch.version.cuda is None else ""
        findings.append(Finding("devices", "cuda", "missing", build, remedy))
    if torch.backends.mps.is_available():
        findings.append(Finding("devices", "mps", "ok", "Apple's GPU"))
    return findings


def _extras() -> list[Finding]:
    findings = []
    requirements = _requirements()
    for extra, purpose in EXTRAS.items():
        names = requirements.get(extra, [])
        missing = [name for name in names if _version(name) is None]
        broken = [f"{name}: {reason}" for name in names if (reason := _fails_to_import(name))]
        if missing:
            detail = f"{purpose} (lacks {', '.join(missing)})"
            findings.append(Finding("extras", extra, "missing", detail, install_line(extra)))
        elif broken:
            remedy = install_line(extra, options="--force-reinstall")
            findings.append(Finding("extras", extra, "broken", f"{purpose} ({'; '.join(broken)})", remedy))
        else:
            findings.append(Finding("extras", extra, "ok", purpose))
    return findings


def _programs() -> list[Finding]:
    findings = []
    for program, (package, purpose) in PROGRAMS.items():
        path = shutil.which(program)
        if path is None:
            findings.append(Finding("programs", program, "missing", purpose, f"apt-get install {package}"))
            continue
        try:  # prints the usage of c2enc and the version of espeak-ng
            subprocess.run([path, "--version"], capture_output=True, timeout=10, check=False)
            findings.append(Finding("programs", program, "ok", f"{purpose}: {path}"))
        except (OSError, subprocess.TimeoutExpired) as error:
            remedy = f"apt-get install --reinstall {package}"
            findings.append(Finding("programs", program, "broken", f"{path} does not run: {error}", remedy))
    return findings


def _models() -> list[Finding]:
    from vokens import needs, registry

    findings = []
    for entry in registry.entries():
        detail = f"{entry.size}, {entry.licence}"
        if lack := needs.lacking(entry.system):
            what, _, remedy = lack.partition(": ")
            findings.append(Finding("models", entry.name, "missing", f"{detail}, {what}", remedy))
        elif entry.embedded:
            findings.append(_embedded(entry.name, detail))
        elif registry.is_cached(entry):
            findings.append(Finding("models", entry.name, "ok", detail))
        else:
            findings.append(Finding("models", entry.name, "missing", f"{detail}, fetched when first used"))
    return findings


def _embedded(name: str, detail: str) -> Finding:
    """Finding of a model that needs no download: open it, and encode and decode 0.1 s if possible."""
    import numpy as np

    from vokens import registry
    from vokens.models.codec import Codec
    from vokens.models.pretrained import load

    try:
        model = load(name)
        if isinstance(model, Codec):
            silence = np.zeros(model.sample_rate // 10, np.float32)
            tokens = model.encode(silence, sample_rate=model.sample_rate)
            _ = model.decode(tokens) if model.decodes else None
    except (VokensError, OSError) as error:
        ours = (registry.WEIGHTS / name).exists()
        remedy = install_line(options="--force-reinstall --no-deps") if ours else ""
        return Finding("models", name, "broken", f"needs no download, but fails: {error}", remedy)
    return Finding("models", name, "ok", detail)


def _folders() -> list[Finding]:
    from vokens import registry
    from vokens.evaluator_files import FILES, models_folder

    evaluators = models_folder()
    findings = []
    for name, files in FILES.items():
        if all((evaluators / name / file).is_file() for file in files):
            findings.append(Finding("evaluators", name, "ok", str(evaluators / name)))
        else:
            remedy = "docs/jobs/metrics.md has the commands that fetch it"
            findings.append(Finding("evaluators", name, "missing", "bench", remedy))
    return [*findings, _cache_finding(registry.cache_folder())]


def _cache_finding(cache: Path) -> Finding:
    """Finding of the download folder: its size, and whether it is writable."""
    place = _existing(cache)
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"vokens")
    except OSError as error:
        remedy = "name a folder that can be written: VOKENS_CACHE=FOLDER"
        return Finding("folders", str(cache), "broken", f"cannot be written: {error.strerror}", remedy)
    held = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()) if cache.is_dir() else 0
    free = shutil.disk_usage(place).free
    detail = f"{held / 1e6:.0f} MB used, {free / 1e9:.0f} GB free ($VOKENS_CACHE moves it)"
    return Finding("folders", str(cache), "ok", detail)


def _fails_to_import(name: str) -> str:
    """Import error of the package of a requirement; "" if it imports or is not installed."""
    if _version(name) is None:
        return ""
    module = "yaml" if name == "pyyaml" else name.replace("-", "_")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            import_module(module)
        except Exception as error:  # a broken installation may raise anything
            return " ".join(f"{type(error).__name__}: {error}".split())[:120]
    return ""


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    return path if path.exists() else _existing(path.parent)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _requirements() -> dict[str, list[str]]:
    """Names of packages by extra, "" for the core, as the installed vokens states them."""
    extras: dict[str, list[str]] = {}
    for line in metadata.requires("vokens") or []:
        extra = re.search(r"extra\s*==\s*[\"']([\w-]+)[\"']", line)
        name = re.match(r"[\w.-]+", line)
        if name:
            extras.setdefault(extra[1] if extra else "", []).append(name[0])
    return extras
