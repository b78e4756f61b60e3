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
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import import_module, metadata
from typing import Literal

from vokens.errors import VokensError
from vokens.install import install_line, requirements

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

    name: str
    state: State
    detail: str
    remedy: str = ""


def run(arguments: Arguments) -> int:
    """Print the findings; 1 if something is broken."""
    facts: list[dict[str, str]] = []
    for topic, examine in TOPICS.items():
        findings = list(examine())
        facts += [{"topic": topic, **asdict(item)} for item in findings]
        if not arguments.json:  # as soon as it is done
            print(_page(topic, findings), end="\n\n", flush=True)
    if arguments.json:
        print(json.dumps(facts, indent=2, ensure_ascii=False))
    else:
        print("+ works   - missing, needed for what its line says   ! broken")
    return 1 if any(item["state"] == "broken" for item in facts) else 0


def _page(topic: str, findings: list[Finding]) -> str:
    from vokens.cli.report import table

    marks = {"ok": "+", "missing": "-", "broken": "!"}
    rows = [
        (f"  {marks[item.state]}", item.name, item.detail, f"-> {item.remedy}" if item.remedy else "")
        for item in findings
    ]
    return f"{topic}\n{table(rows)}"


def _core() -> Iterator[Finding]:
    yield Finding("python", "ok", f"{platform.python_version()}, {sys.executable}")
    for name in ("vokens", *_packages("")):
        if (version := _version(name)) is None:
            remedy = install_line() if name == "vokens" else f"pip install {name}"
            yield Finding(name, "broken", "every verb needs it", remedy)
        elif reason := _fails_to_import(name):
            yield Finding(name, "broken", f"does not load: {reason}", f"pip install --force-reinstall {name}")
        else:
            yield Finding(name, "ok", version)


def _devices() -> Iterator[Finding]:
    try:
        import torch
    except Exception as error:  # a broken torch raises many types
        yield Finding("torch", "broken", f"does not load: {error}", "pip install --force-reinstall torch")
        return
    from vokens.nn import product

    by = {"torch": "torch (MKL)" if torch.backends.mkl.is_available() else "torch", "onednn": "oneDNN"}
    cores = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    products = f"{', '.join(product.features())}; float32 products by {by[product.backend()]}"
    yield Finding("cpu", "ok", f"{cores}; {products}")
    for number in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(number)
        yield Finding(f"cuda:{number}", "ok", f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB")
    if not torch.cuda.is_available():
        remedy = "https://pytorch.org/get-started has the CUDA builds"
        if torch.version.cuda is None:
            yield Finding("cuda", "missing", "torch is a CPU build", remedy)
        else:
            yield Finding("cuda", "missing", "torch finds no CUDA device")
    if torch.backends.mps.is_available():
        yield Finding("mps", "ok", "Apple's GPU")


def _extras() -> Iterator[Finding]:
    for extra, purpose in EXTRAS.items():
        names = _packages(extra)
        missing = [name for name in names if _version(name) is None]
        broken = [f"{name}: {reason}" for name in names if (reason := _fails_to_import(name))]
        if missing:
            yield Finding(extra, "missing", f"{purpose} (lacks {', '.join(missing)})", install_line(extra))
        elif broken:
            remedy = install_line(extra, options="--force-reinstall")
            yield Finding(extra, "broken", f"{purpose} ({'; '.join(broken)})", remedy)
        else:
            yield Finding(extra, "ok", purpose)


def _programs() -> Iterator[Finding]:
    for program, (package, purpose) in PROGRAMS.items():
        path = shutil.which(program)
        if path is None:
            yield Finding(program, "missing", purpose, f"apt-get install {package}")
            continue
        try:  # prints the usage of c2enc and the version of espeak-ng
            subprocess.run([path, "--version"], capture_output=True, timeout=10, check=False)
            yield Finding(program, "ok", f"{purpose}: {path}")
        except (OSError, subprocess.TimeoutExpired) as error:
            remedy = f"apt-get install --reinstall {package}"
            yield Finding(program, "broken", f"{path} does not run: {error}", remedy)


def _models() -> Iterator[Finding]:
    from vokens import needs, registry

    for entry in registry.entries():
        name, detail = entry.name, f"{entry.size}, {entry.licence}"
        if lack := needs.lacking(entry.system):
            what, _, remedy = lack.partition(": ")
            yield Finding(name, "missing", f"{detail}, {what}", remedy)
        elif entry.embedded and (error := _fails_to_run(name)):
            ours = (registry.WEIGHTS / name).exists()
            remedy = install_line(options="--force-reinstall --no-deps") if ours else ""
            yield Finding(name, "broken", f"needs no download, but fails: {error}", remedy)
        elif entry.embedded or registry.is_cached(entry):
            yield Finding(name, "ok", detail)
        else:
            yield Finding(name, "missing", f"{detail}, fetched when first used")


def _fails_to_run(name: str) -> Exception | None:
    """The error of opening a model, and of encoding and decoding 0.1 s if it can; None if it works."""
    import numpy as np

    from vokens.models.codec import Codec
    from vokens.models.pretrained import load

    try:
        model = load(name)
        if isinstance(model, Codec):
            silence = np.zeros(model.sample_rate // 10, np.float32)
            tokens = model.encode(silence, sample_rate=model.sample_rate)
            _ = model.decode(tokens) if model.decodes else None
    except (VokensError, OSError) as error:
        return error
    return None


def _evaluators() -> Iterator[Finding]:
    from vokens.evaluator_files import FILES, models_folder

    for name, files in FILES.items():
        folder = models_folder() / name
        if all((folder / file).is_file() for file in files):
            yield Finding(name, "ok", str(folder))
        else:
            yield Finding(name, "missing", "bench", "docs/jobs/metrics.md has the commands that fetch it")


def _folders() -> Iterator[Finding]:
    """The download folder: its size, and whether it is writable."""
    from vokens import registry

    cache = registry.cache_folder()
    place = next(path for path in (cache, *cache.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"vokens")
    except OSError as error:
        remedy = "name a folder that can be written: VOKENS_CACHE=FOLDER"
        yield Finding(str(cache), "broken", f"cannot be written: {error.strerror}", remedy)
        return
    held = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()) if cache.is_dir() else 0
    free = shutil.disk_usage(place).free
    detail = f"{held / 1e6:.0f} MB used, {free / 1e9:.0f} GB free ($VOKENS_CACHE moves it)"
    yield Finding(str(cache), "ok", detail)


TOPICS: dict[str, Callable[[], Iterator[Finding]]] = {
    "vokens": _core,
    "devices": _devices,
    "extras": _extras,
    "programs": _programs,
    "models": _models,
    "evaluators": _evaluators,
    "folders": _folders,
}


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


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _packages(extra: str) -> list[str]:
    """Names of the packages of an extra, "" for the core, as the installed vokens states them."""
    return [re.split(r"[^\w.-]", line)[0] for line in requirements().get(extra, [])]
