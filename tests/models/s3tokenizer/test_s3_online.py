"""S3Tokenizer inside a model that trains: the example, mixed precision, compilation and DDP."""

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from conftest import speechlike

from vokens import audio
from vokens.models.s3tokenizer import RELEASES, S3Tokenizer

EXAMPLE = Path(__file__).parents[3] / "examples/speechllm_online.py"
TINY = {"width": 64, "heads": 1, "layers": 1}


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("speechllm_online", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def tokenizer_of(name: str = "speech_tokenizer_v2_25hz") -> S3Tokenizer:
    torch.manual_seed(0)
    sizes = TINY | ({"codebook_size": 64} if "v1" in name else {})
    return S3Tokenizer(replace(RELEASES[name], **sizes))


@pytest.fixture
def model(example: ModuleType) -> Any:
    return example.SpeechLLM(tokenizer_of(), width=32, layers=1, heads=2)


WAVES = [torch.from_numpy(speechlike(n, seed=n)) for n in (6400, 3300, 8000)]


@pytest.fixture
def batch(example: ModuleType, model: Any) -> tuple[torch.Tensor, ...]:
    texts = (b"one", b"twenty-two", b"")
    items = [(model.tokenizer.log_mel(w), text) for w, text in zip(WAVES, texts, strict=True)]
    return example.collate(items)


def test_it_learns_and_its_tokenizer_stays(example: ModuleType, model: Any, batch: tuple) -> None:
    before = {name: t.clone() for name, t in model.tokenizer.state_dict().items()}
    losses = list(example.train(model, repeat(batch, 20), torch.device("cpu"), lr=3e-3))
    assert losses[-1] < 0.7 * losses[0]
    assert all(torch.equal(t, before[name]) for name, t in model.tokenizer.state_dict().items())
    assert all(p.grad is None for p in model.tokenizer.parameters())
    assert all(p.grad is not None for name, p in model.named_parameters() if not name.startswith("tokenizer"))
    assert not any("tokenizer" in name for name in model.trained())


def test_targets_are_the_tokens_of_the_recordings(example: ModuleType, model: Any, batch: tuple) -> None:
    mel, frames, _ = batch
    offline = model.tokenizer.encode(WAVES, 16000)
    with torch.autocast("cpu", torch.bfloat16):  # no reason for other tokens
        codes, counts = model.tokenizer.quantize(mel, frames)
        targets = model.targets(codes, counts)
    for i, count in enumerate(offline.lengths.tolist()):
        row = targets[i].tolist()
        assert row[: count + 1] == [*offline.codes[i, 0, :count].tolist(), model.end]
        assert set(row[count + 1 :]) <= {example.IGNORED}


@pytest.mark.parametrize(
    "name",
    ["speech_tokenizer_v1", "speech_tokenizer_v2_25hz"]
    + [
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("speech_tokenizer_v1_25hz", "speech_tokenizer_v3_25hz")
    ],
)
def test_compiled_without_a_graph_break(example: ModuleType, name: str) -> None:
    torch._dynamo.reset()
    model = example.SpeechLLM(tokenizer_of(name), width=32, layers=1, heads=2).train()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for longest in (50, 64, 91, 33):
        mel, frames = torch.randn(2, 128, longest), torch.tensor([longest, 7], dtype=torch.int32)
        text = torch.zeros(2, 5, dtype=torch.int64)
        with torch.autocast("cpu", torch.bfloat16):
            loss, wanted = compiled(mel, frames, text), model(mel, frames, text)
        assert torch.equal(loss, wanted)
        loss.backward()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] - graphs <= 2  # one length, then any length


@pytest.fixture
def alone_in_a_group(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("alone_in_a_group")
def test_under_ddp(example: ModuleType, model: Any, batch: tuple) -> None:
    plain = [p.clone() for p in model.parameters()]
    first = next(example.train(model, repeat(batch, 1), torch.device("cpu")))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for parameter, value in zip(model.parameters(), plain, strict=True):
            parameter.copy_(value)
        assert first == model(*batch).item()


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    """The script's command line for a small corpus, one of whose texts is empty."""
    tokenizer_of().save_pretrained(tmp_path / "model")
    for i, wave in enumerate(WAVES):
        audio.save(tmp_path / f"{i}.wav", wave, 16000)
        (tmp_path / f"{i}.txt").write_text("text" * i)
    audio.save(tmp_path / "no text.wav", WAVES[0], 16000)
    settings = "--steps 4 --batch 1 --width 32 --layers 1 --workers 0"
    places = ["--tokenizer", f"{tmp_path}/model", "--output", f"{tmp_path}/llm.pt"]
    return [str(tmp_path), *places, *settings.split()]


def check_saved(folder: Path) -> None:
    saved = torch.load(folder / "llm.pt", weights_only=True)
    assert "head.weight" in saved
    assert not any(name.startswith("tokenizer") for name in saved)


def test_the_script(
    example: ModuleType,
    flags: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    example.main(flags)
    assert "step 0: loss" in capsys.readouterr().out
    check_saved(tmp_path)


@pytest.mark.slow
def test_the_script_in_two_processes(flags: list[str], tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    subprocess.run([*torchrun, str(EXAMPLE), *flags], check=True)
    check_saved(tmp_path)
