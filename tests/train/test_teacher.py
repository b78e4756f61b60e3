"""Semantic teachers: their features, alignment with the codec's frames, and training with them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import refused, speechlike
from training import Build, cache_in, write_speech

from vokens.errors import ConfigError
from vokens.train.data import Crops, pcm_rows, read_clips
from vokens.train.teacher import RATE, HubertTeacher, teacher_rows

TASK = "codec"
transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def hubert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small HuBERT with random weights, as save_pretrained leaves it."""
    folder = tmp_path_factory.mktemp("hubert")
    torch.manual_seed(0)
    config = transformers.HubertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, conv_dim=(8,) * 7
    )
    transformers.HubertModel(config).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    return folder


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    return write_speech(tmp_path / "speech", RATE, (0.5, 0.75, 1.0))


def test_hubert_features_are_the_mean_of_its_layers_or_one(hubert: Path) -> None:
    wave = speechlike(RATE)
    model = transformers.HubertModel.from_pretrained(hubert).eval()
    values = torch.from_numpy((wave - wave.mean()) / np.sqrt(wave.var() + 1e-7))[None]
    with torch.inference_mode():
        states = model(values, output_hidden_states=True).hidden_states
    average = HubertTeacher(str(hubert)).features(wave)
    assert average.shape == (49, 16)
    np.testing.assert_allclose(average, torch.stack(states).mean(0)[0], atol=1e-5)
    np.testing.assert_allclose(HubertTeacher(str(hubert), 1).features(wave), states[1][0], atol=1e-5)
    refused(ConfigError, "0 to 2", lambda: HubertTeacher(str(hubert), 3))


def test_features_lie_under_the_frames_that_they_describe(speech: Path, tmp_path: Path) -> None:
    """A teacher that tells the time at the middle of each of its windows: crops must read their own middles."""

    class Clock:
        name, width, grid = "clock", 1, (0.024, 0.028)

        def features(self, wave: np.ndarray) -> np.ndarray:
            count = int(len(wave) / RATE / self.grid[0]) + 2
            return (self.grid[1] + self.grid[0] * np.arange(count))[:, None].astype(np.float32)

    clips = read_clips(speech)
    pcm = pcm_rows(cache_in(tmp_path), clips, RATE)
    rows = teacher_rows(cache_in(tmp_path), Clock(), pcm)
    crops = Crops(
        pcm, sample_rate=RATE, crop=3200, hop=320, batch_size=8, seed=0, teacher=rows, grid=Clock.grid
    )
    times = crops.batch(3).teacher[:, :, 0]
    spacing = times.diff(dim=1)
    inside = times[:, 1:] > 0.05  # before the first window's middle the first feature holds
    assert torch.allclose(spacing[inside], torch.tensor(0.02), atol=2e-3)  # fp16 times
    assert torch.allclose((times[:, -1] / 0.02 - 0.5).round() * 0.02 + 0.01, times[:, -1], atol=2e-3)


@pytest.mark.parametrize(("cached", "loss"), [("true", "d_axis"), ("false", "t_axis")])
def test_distillation_falls(trainer_for: Build, hubert: Path, speech: Path, cached: str, loss: str) -> None:
    """On one crop, over and over."""
    for extra in (1, 2):
        (speech / f"{extra}.wav").unlink()
    changes = [f"data.train={speech}", "data.valid=", f"teacher.source={hubert}", "teacher.kind=hubert"]
    changes += [f"teacher.cached={cached}", f"teacher.loss={loss}", "model.semantic_dim=16"]
    changes += ["adversarial.kinds=[]", "losses={mel=0.0, distill=1.0, commit=0.1}", "codebook_dropout=0.0"]
    changes += ["data.batch_size=1", "data.seconds=0.5", "optim.learning_rate=3e-3", "optim.warmup=0"]
    trainer = trainer_for(*changes, "optim.schedule=constant")
    found = [trainer.train_step()["distill"] for _ in range(70)]
    assert np.mean(found[-5:]) < 0.9 * np.mean(found[:5])


def test_a_width_that_does_not_fit_says_what_to_set(trainer_for: Build, hubert: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.semantic_dim = 16"):
        trainer_for("teacher.kind=hubert", f"teacher.source={hubert}")
