"""The ASR model: its length law and its greedy loop, on small graphs of the published form; the published ones."""

import numpy as np
import pytest
from conftest import refused

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("tokenizers")

from evaluator_graphs import ENDLESS, SENTENCE, WIDTH, write_moonshine

from vokens.errors import AudioError, CheckpointError, NotInstalled
from vokens.evaluator_files import find_evaluator
from vokens.models.moonshine import HOP, SHORTEST, Moonshine


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Moonshine:
    return Moonshine(write_moonshine(tmp_path_factory.mktemp("moonshine"), SENTENCE))


def check_length_law(moonshine: Moonshine, width: int) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 20000).astype(np.float32)
    for n in (SHORTEST, SHORTEST + HOP - 1, SHORTEST + HOP, 16000, 16001):
        states = moonshine.encode(noise[:n])
        assert states.shape == ((n - SHORTEST) // HOP + 1, width)
        assert states.dtype == np.float32


def test_length_law(small) -> None:
    check_length_law(small, WIDTH)


def test_words_follow_until_the_end_and_a_loop_is_bounded(small, tmp_path) -> None:
    refused(AudioError, "895", lambda: small.encode(np.zeros(894, np.float32)))
    assert small.transcribe(np.zeros(16000, np.float32)) == "the sea"
    endless = Moonshine(write_moonshine(tmp_path, ENDLESS))
    words = ["again"] * 15  # 2 s, 6.5 a second, and 2
    assert endless.transcribe(np.zeros(32000, np.float32)).split() == words


def test_missing_and_damaged_files_are_named(tmp_path) -> None:
    words = r"encoder_model\.onnx.*docs/jobs/metrics\.md"
    refused(NotInstalled, words, find_evaluator, "moonshine-tiny-en", tmp_path)
    for name in ("tokenizer.json", "decoder_model_merged.onnx"):
        write_moonshine(tmp_path, SENTENCE)
        (tmp_path / name).write_bytes(b"{")
        refused(CheckpointError, name, Moonshine, tmp_path)


@pytest.mark.evaluators
def test_the_published_graphs() -> None:
    moonshine = Moonshine(find_evaluator("moonshine-tiny-en"))
    check_length_law(moonshine, 288)
    assert isinstance(moonshine.transcribe(np.zeros(8000, np.float32)), str)  # in bounded time
