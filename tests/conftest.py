"""Small codecs, signals and runs of training that many tests share, built once."""

import functools
import os
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings

from vokens.models.codec import Codec
from vokens.models.mini import Mini, MiniConfig

# Helpers and builders of other folders are imported by their bare names. Not tests/models, nor tests/golden, whose
# weights are `golden.weights`: with their folders on the path, a package `s3tokenizer` would seem to be installed.
FOLDERS = {path.parent for path in Path(__file__).parent.rglob("*.py")}
sys.path[:0] = sorted(str(folder) for folder in FOLDERS if folder.name != "golden")

settings.register_profile("fixed", derandomize=True, database=None)  # the same examples in every run
settings.load_profile("fixed")
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))  # -n 2 has a process for each core


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def close(found: torch.Tensor | None, expected: torch.Tensor, bound: float = 1e-5) -> None:
    """Of one shape, and within a share of the largest expected value."""
    assert found is not None
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= bound * expected.abs().max().clamp(min=1e-3)


def speechlike(num_samples: int, seed: int = 0, sample_rate: int = 16000) -> np.ndarray:
    """float32 (T,): a gliding harmonic voice with pauses and noise, about -20 dB."""
    draw = np.random.default_rng(seed)
    t = np.arange(num_samples) / sample_rate
    pitch = 120 + 40 * np.sin(2 * np.pi * (0.7 + 0.1 * seed) * t)
    phase = 2 * np.pi * np.cumsum(pitch) / sample_rate
    voice = sum(np.sin(k * phase) / k for k in range(1, 12))
    loudness = 0.5 + 0.5 * np.sin(2 * np.pi * 3 * t + seed)
    return (0.08 * voice * loudness + 0.005 * draw.standard_normal(num_samples)).astype(np.float32)


def _spread_codebooks(codec: Codec, seed: int) -> None:
    """Codebooks at the scale of this codec's residuals, so that codes vary as a trained codec's do."""
    generator = torch.Generator().manual_seed(seed)
    waves = torch.from_numpy(np.stack([speechlike(32000, seed=i) for i in range(8)]))
    codec.quantizer.fit(codec.latent(waves).flatten(0, 1).detach(), generator)


def build_tiny_mini() -> Codec:
    torch.manual_seed(0)
    sizes = {"width": 32, "latent_dim": 16, "codebook_size": 32, "encoder_layers": 2, "decoder_layers": 2}
    third = {"decoder_width": 24, "fine_layers": 2, "beam": 4}
    codec = Mini(MiniConfig(num_codebooks=4, semantic_dim=12, **sizes, **third))
    _spread_codebooks(codec, 1)
    return codec.eval().requires_grad_(False)


def build_tiny_speechtokenizer() -> Codec:
    from vokens.models.speechtokenizer import SpeechTokenizer, SpeechTokenizerConfig

    torch.manual_seed(0)
    sizes = {"n_filters": 4, "dimension": 32, "semantic_dim": 24, "codebook_size": 32}
    codec = SpeechTokenizer(SpeechTokenizerConfig(**sizes))
    with torch.no_grad():  # at its random start the signal dies on the way, and all codes are near-ties
        for weight in codec.parameters():
            weight.mul_(1.7 if weight.dim() == 3 else 1.0)
    _spread_codebooks(codec, 2)
    return codec.eval().requires_grad_(False)


def build_tiny_s3tokenizer() -> Codec:
    from vokens.models.s3tokenizer import S3Tokenizer, S3TokenizerConfig

    torch.manual_seed(0)
    sizes = {"width": 32, "heads": 2, "layers": 2, "n_mels": 80, "codebook_size": 81}
    codec = S3Tokenizer(S3TokenizerConfig(**sizes))
    return codec.eval().requires_grad_(False)


def build_tiny_socodec() -> Codec:
    from vokens.models.socodec import SoCodec, SoCodecConfig

    torch.manual_seed(0)
    sizes = {"width": 32, "codebook_dim": 4, "codebook_size": 8, "vocoder_width": 32}
    speaker = {"speaker_channels": (8, 8, 8, 8, 24), "speaker_attention": 4, "speaker_squeeze": 4}
    hubert = {"width": 32, "layers": 2, "heads": 2, "hidden": 64, "conv_width": 8}
    codec = SoCodec(SoCodecConfig(**sizes, **speaker, **{f"hubert_{k}": v for k, v in hubert.items()}))
    with torch.no_grad():  # as above
        for name, weight in codec.named_parameters():
            weight.mul_(
                2.0 if weight.dim() == 3 and name.startswith(("encoder", "semantic_", "mel_")) else 1.0
            )
        waves = [torch.from_numpy(speechlike(32000, seed=i)) for i in range(8)]
        inner = codec.codebooks.project_in(torch.cat([codec.latent(wave[None])[0] for wave in waves]))
        for book, part in zip(codec.codebooks.codebooks, inner.chunk(8, -1), strict=True):
            book.init_from(part, torch.Generator().manual_seed(3))
    return codec.eval().requires_grad_(False)


CODECS: dict[str, Callable[[], Codec]] = {  # a new system joins the shared laws here
    "mini": build_tiny_mini,
    "speechtokenizer": build_tiny_speechtokenizer,
    "s3tokenizer": build_tiny_s3tokenizer,
}


CHUNKS = {  # where systems that compute long audio in pieces, exactly, say how much at a time
    "mini": ("vokens.models.codec", ("SPAN_FRAMES",)),
    "speechtokenizer": (
        "vokens.models.speechtokenizer.spans",
        ("CONV_FRAMES", "LSTM_FRAMES", "LAYERED_FRAMES"),
    ),
}

if find_spec("transformers"):  # of the extra "hf"; SoCodec's HuBERT runs in it
    CODECS["socodec"] = build_tiny_socodec
    CHUNKS["socodec"] = ("vokens.models.socodec.model", ("MEL_FRAMES", "DECODER_TOKENS", "VOCODER_FRAMES"))


@pytest.fixture(scope="session")
def tiny_codec_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small random `mini`, which vokens.load opens."""
    return build_tiny_mini().save_pretrained(tmp_path_factory.mktemp("codec"))


@pytest.fixture(scope="session")
def built() -> dict[str, Codec]:
    return {name: build() for name, build in CODECS.items()}


@pytest.fixture(params=CODECS)
def codec(request: pytest.FixtureRequest, built: dict[str, Codec]) -> Codec:
    """Every codec."""
    return built[request.param]


@pytest.fixture(params=CHUNKS)
def speaker(request: pytest.FixtureRequest, built: dict[str, Codec]) -> Codec:
    """Every codec that also decodes."""
    return built[request.param]


# Runs of training. `training` is imported late: it takes seconds, and no other folder needs it.


@pytest.fixture(scope="session")
def data_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Path]]:
    """The places of a task's small data and of a cache, made once."""
    from training import write_data

    return functools.cache(lambda task: write_data(task, tmp_path_factory.mktemp(task)))


@pytest.fixture
def trainer(data_of: Callable[[str], dict[str, Path]], tmp_path: Path) -> Callable[..., Any]:
    """A trainer of a task, with changes to its tiny recipe, for a run in tmp_path/run."""
    from training import build, write_recipe

    return lambda task, *changes: build(write_recipe(task, tmp_path, data_of(task)), *changes)


@pytest.fixture
def trainer_for(trainer: Callable[..., Any], request: pytest.FixtureRequest) -> Callable[..., Any]:
    """`trainer` of the module's TASK."""
    return functools.partial(trainer, request.module.TASK)


@pytest.fixture(scope="session")
def finished(
    data_of: Callable[[str], dict[str, Path]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Any]:
    """The trainer of a task after its whole tiny run, made once; do not train it on."""
    from training import FINISHED, build, write_recipe

    @functools.cache
    def run(task: str) -> Any:
        done = build(
            write_recipe(task, tmp_path_factory.mktemp("run"), data_of(task)), *FINISHED.get(task, ())
        )
        done.run()
        return done

    return run


class Trap:
    """Makes a folder when an ordinary reader unpickles it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def refused(error: Any, words: str, call: Callable[..., Any], /, *args: Any, **options: Any) -> None:
    """Assert that the call raises this error, with one line that these words are found in."""
    with pytest.raises(error, match=words) as caught:
        call(*args, **options)
    assert "\n" not in str(caught.value)
