"""The site: every Python block of the pages runs, every command parses, links lead somewhere, notebooks run.

Published weights are stood in for by tiny random models of the same systems, under the names that the pages load.
"""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
import tyro
from conftest import build_tiny_socodec, build_tiny_speechtokenizer

import vokens
from vokens import audio, registry
from vokens.cli import main, module_of
from vokens.errors import MissingExtra
from vokens.models.pretrained import Pretrained
from vokens.train.config import read_recipe

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))
TEXTS = {page: (DOCS / page).read_text() for page in PAGES}
CODE = {
    page: [(text[: m.start()].count("\n") + 1, m[1]) for m in re.finditer(r"```python\n(.*?)```", text, re.S)]
    for page, text in TEXTS.items()
}
ELSEWHERE = {
    "systems/s3gen.md": "faces/test_s3gen_cli.py",
    "jobs/say.md": "faces/test_say.py",
}  # pages that these tests run
NOTEBOOKS = sorted((ROOT / "examples/notebooks").glob("*.ipynb"))
WRITTEN = {".md", ".py", ".toml", ".ipynb", ".yaml", ".sh"}
LINK = r"\]\((?!https?:|#)([^)#]+)"  # to a file
SAMPLE = Path(audio.__file__).parent.parent / "samples" / "english.flac"


def tiny_s3tokenizer() -> Pretrained:
    from vokens.models.s3tokenizer import S3Tokenizer, S3TokenizerConfig

    torch.manual_seed(0)
    return S3Tokenizer(S3TokenizerConfig(width=32, heads=1, layers=1)).eval()


def tiny_flowae() -> Pretrained:
    from vokens.models.flowae import FlowAE, FlowAEConfig

    return FlowAE(FlowAEConfig(latent_dim=6, encoder_dim=2, decoder_dim=32, flow_width=16, flow_layers=1))


def tiny_socodec_lm() -> Pretrained:
    from vokens.models.socodec.lm import TokenLM, TokenLMConfig

    codec = build_tiny_socodec()
    sizes = {"width": 32, "layers": 1, "heads": 2, "vector_width": codec.config.width}
    facts = {"model": "socodec_16384x4_120ms_16khz_chinese", "frame_rate": codec.frame_rate}
    return TokenLM(TokenLMConfig(codebook_sizes=codec.codebook_sizes, **sizes, **facts))


def of_speakers(build: str, part: str = "") -> Pretrained:
    """A small model that speaks, or a part of it."""
    whole = getattr(import_module("speakers"), build)()
    return getattr(whole, part) if part else whole


def write_published_speechtokenizer(path: Path) -> None:
    codec = build_tiny_speechtokenizer()
    path.with_name("config.json").write_text(json.dumps(codec.config.to_published()))
    torch.save(codec.to_published(), path)


def write_extracted(path: Path) -> None:
    (folder := path.with_name("recordings")).mkdir()
    for number, name in enumerate(("one.wav", "two.wav")):
        write_sample(folder / name, number)
    command = ["extract", str(folder), "--model", "mini", "--out", str(path), "--workers", "0"]
    assert main(command) == 0


def write_sample(path: Path, number: int) -> None:
    """A second of real speech, not the same for each number."""
    wave, rate = soundfile.read(SAMPLE, frames=16000 + 800 * number, start=4000 * number)
    soundfile.write(path, wave, rate)


MODELS: dict[str, Callable[[], Pretrained]] = {
    "speechtokenizer_hubert_avg": build_tiny_speechtokenizer,
    "speech_tokenizer_v2_25hz": tiny_s3tokenizer,
    "socodec_16384x4_120ms_16khz_chinese": build_tiny_socodec,
    "chatterbox_s3gen": partial(of_speakers, "tiny_s3gen"),
    "checkpoint.pt": partial(of_speakers, "tiny_speech", "autoencoder"),
    "USLM.pt": partial(of_speakers, "tiny_uslm"),
    "runs/flowae_mini/model": tiny_flowae,
    "runs/socodec_lm_mini/lm": tiny_socodec_lm,
    "runs/learnable_lm_mini/lm": partial(of_speakers, "tiny_speech", "lm"),
    "runs/learnable_flow_mini/flow": partial(of_speakers, "tiny_speech", "flow"),
    "runs/dacvae_mini/model": partial(of_speakers, "tiny_speech", "autoencoder"),
    "runs/s3_mini/codec": partial(of_speakers, "tiny_speech", "tokenizer"),
    "runs/s3_scratch/codec": partial(of_speakers, "tiny_speech", "tokenizer"),
}
FILES: dict[str, Callable[[Path], None]] = {
    "SpeechTokenizer.pt": write_published_speechtokenizer,
    "tokens": write_extracted,
    "hello.vok": lambda path: vokens.load("mini").encode(SAMPLE).save(path),
}
GIVEN = {  # what a page names without making it
    "systems/learnable_flow.md": {"tokens": [torch.arange(5), torch.arange(3)], "speaker": torch.ones(1, 12)},
}
SHORTER = (("num_workers=4", "num_workers=0"), ("max_frames=100", "max_frames=8"))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def here(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, without a network, where models are kept in `cache`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VOKENS_CACHE", str(cache))
    kept = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    monkeypatch.setenv("MPLCONFIGDIR", str(kept / "matplotlib"))  # its list of fonts takes seconds to make
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # where s3tokenizer keeps its own files
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


def provide(code: str, here: Path, cache: Path) -> None:
    """All that the code opens by a name in quotes."""
    named = set(re.findall(r'"([^"\n]+)"', code))
    for number, name in enumerate(sorted(name for name in named if name.endswith((".wav", ".flac")))):
        write_sample(here / name, number)
    for name in sorted(named & MODELS.keys()):
        known = registry.MODELS.get(name)
        folder = cache / name if known else here / name
        if not folder.exists():
            MODELS[name]().save_pretrained(folder)
            for file in known.files if known else ():
                (folder / file.path).touch()
    for name in sorted(named & FILES.keys()):
        FILES[name](here / name)


@pytest.mark.parametrize("page", [page for page in PAGES if CODE[page] and page not in ELSEWHERE])
def test_python_of_the_page_runs(page: str, here: Path, cache: Path) -> None:
    provide("".join(code for _, code in CODE[page]), here, cache)
    names = {"__name__": page, **GIVEN.get(page, {})}
    for line, code in CODE[page]:
        for long, short in SHORTER:
            code = code.replace(long, short)
        try:
            exec(compile("\n" * line + code, page, "exec"), names)
        except MissingExtra as error:
            pytest.skip(str(error))


def test_pages_that_others_run_are_run() -> None:
    for page, test in ELSEWHERE.items():
        assert f"docs/{page}" in (ROOT / "tests" / test).read_text()


def test_few_blocks_are_not_run_and_each_says_why() -> None:
    exempt = [page for page, text in TEXTS.items() if "```python notest" in text]
    assert exempt == ["jobs/serve.md"]  # a client of a server that the page starts; test_serve.py has one


VERB_LINE = r"(?:(?:torchrun|accelerate launch)\b.* -m )?vokens (.+)"
COMPAT_LINE = r"(?:(?:python|torchrun\b.*) -m (?=vokens))?((?:vokens\.compat\.\w+|s3tokenizer) .+)"


def commands(text: str, pattern: str = VERB_LINE) -> Iterator[list[str]]:
    """The words of every command in a block of the page that the pattern finds, which are its first group."""
    blocks = re.findall(r"^```(?:console|bash|sh)\n(.*?)^```", text, re.S | re.M)
    blocks += re.findall(r"(?:^    .*\n)+", text, re.M)
    for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
        line = re.split(r"\s#|\s[|<>]\s", line.strip())[0]
        if actual := re.match(pattern, line):
            yield shlex.split(actual[1])


@pytest.mark.parametrize("page", [page for page in PAGES if list(commands(TEXTS[page]))])
def test_commands_of_the_page_are_understood(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for verb, *words in commands(TEXTS[page]):
        arguments = tyro.cli(
            module_of(verb).Arguments,
            args=words,
            config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes),
        )
        if verb == "train" and arguments.recipe.islower():  # RECIPE stands for any
            read_recipe(arguments.recipe, arguments.set)


COMPAT = {
    "s3tokenizer": "vokens.compat.s3tokenizer.__main__",
    "vokens.compat.s3tokenizer": "vokens.compat.s3tokenizer.__main__",
    "vokens.compat.socodec": "vokens.compat.socodec",
    "vokens.compat.cosyvoice": "vokens.compat.cosyvoice.__main__",
    "vokens.compat.learnable_speech": "vokens.compat.learnable_speech.__main__",
}


class Understood(Exception):
    """Raised in the place of the work, once the flags have been parsed."""


@pytest.mark.parametrize("page", [page for page in PAGES if list(commands(TEXTS[page], COMPAT_LINE))])
def test_commands_of_other_packages_are_understood(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parse = argparse.ArgumentParser.parse_args

    def stop_after(parser: argparse.ArgumentParser, *given: Any) -> None:
        parse(parser, *given)
        raise Understood

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop_after)
    for module, *words in commands(TEXTS[page], COMPAT_LINE):
        with pytest.raises(Understood):
            import_module(COMPAT[module]).main(words)


def test_links_lead_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *ROOT.glob("recipes/*.md"), *DOCS.rglob("*.md")]
    links = [(page, link) for page in pages for link in re.findall(LINK, page.read_text())]
    missing = [f"{page}: {link}" for page, link in links if not (page.parent / link).exists()]
    assert not missing


def test_files_that_the_repository_names_exist() -> None:
    """In pages, comments, messages and model cards; tests name files that they make."""
    folders = ("src", "recipes", "benchmarks", "docs", "examples")
    writings = [*ROOT.glob("*.md"), ROOT / "Makefile", *(ROOT / ".ci").iterdir()]
    writings += [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in WRITTEN]
    pattern = r"(?<![\w/.-])(?:src|recipes|benchmarks|docs|examples|tests)/[\w/]+\.[a-z]+"
    named = {name: path for path in writings for name in re.findall(pattern, path.read_text())}
    assert len(named) > 50
    missing = [f"{path}: {name}" for name, path in named.items() if not (ROOT / name).exists()]
    assert not missing


def test_every_release_and_its_repository_are_on_the_page_of_what_was_proven() -> None:
    page = TEXTS["systems/index.md"]
    own = {"speechtokenizer", "s3tokenizer", "socodec", "s3gen", "learnable_lm"}
    released = [entry for entry in registry.entries() if entry.system in own and not entry.embedded]
    assert len(released) >= 14
    missing = [entry.name for entry in released if f"`{entry.name}`" not in page]
    missing += [source for source in registry.PUBLISHED if source.split("/")[1] not in page]
    assert not missing


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    if find_spec("mkdocs") is None or find_spec("mkdocstrings") is None:
        pytest.skip("mkdocs is not installed (make docs)")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    reports = list(DOCS.rglob("index.html"))  # pages by themselves, which no page of ours may overwrite
    assert len(list(tmp_path.rglob("index.html"))) == len(PAGES) + len(reports)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path, here: Path) -> None:
    names: dict = {"__name__": path.stem}
    for number, cell in enumerate(cells(path)):
        try:
            exec(compile(cell, f"{path.name}, cell {number}", "exec"), names)
        except MissingExtra as error:
            pytest.skip(str(error))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_kept_without_outputs(path: Path) -> None:
    book = json.loads(path.read_text())
    assert book["nbformat"] == 4
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in book["cells"])


def cells(path: Path) -> list[str]:
    """The code of a notebook."""
    book = json.loads(path.read_text())
    return ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code"]
