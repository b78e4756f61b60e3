"""The recogniser against its laws; runs only where the models lie (docs/metrics.md says how to get them)."""

from pathlib import Path

import numpy as np
import pytest

from vokens.bench.judges import find_judge
from vokens.bench.recognise import HOP, SHORTEST, Moonshine
from vokens.errors import AudioError, NotInstalled

pytest.importorskip("onnxruntime")
pytest.importorskip("tokenizers")


@pytest.fixture(scope="module")
def moonshine() -> Moonshine:
    try:
        return Moonshine(find_judge("moonshine-tiny-en"))
    except NotInstalled as error:
        pytest.skip(str(error))


def test_length_law(moonshine):
    noise = np.random.default_rng(0).normal(0, 0.1, 20000).astype(np.float32)
    for n in (SHORTEST, SHORTEST + HOP - 1, SHORTEST + HOP, 16000, 16001):
        states = moonshine.encode(noise[:n])
        assert states.shape == ((n - SHORTEST) // HOP + 1, 288)
        assert states.dtype == np.float32


def test_too_short(moonshine):
    with pytest.raises(AudioError, match="895"):
        moonshine.encode(np.zeros(894, np.float32))


def test_silence_is_transcribed_in_bounded_time(moonshine):
    assert isinstance(moonshine.transcribe(np.zeros(8000, np.float32)), str)


def test_missing_folder_says_what_and_how(tmp_path: Path):
    with pytest.raises(NotInstalled, match=r"encoder_model\.onnx.*docs/metrics\.md"):
        find_judge("moonshine-tiny-en", tmp_path)
