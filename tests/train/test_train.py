"""Runs of training: stopped ones lose nothing, checkpoints are no models, manifests, schedules."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import refused, speechlike
from safetensors.torch import load_file, save_file
from training import Build, build, losses_of, write_recipe

import vokens
from vokens.errors import CheckpointError, ConfigError
from vokens.train.config import OptimConfig
from vokens.train.data import read_clips
from vokens.train.state import checkpoints

TASK = "codec"


@pytest.fixture
def recipe(data_of: Build, tmp_path: Path) -> Path:
    """For the command line."""
    return write_recipe(TASK, tmp_path, data_of(TASK))


def test_a_deeper_codec_starts_where_a_shallower_one_ended(trainer_for: Build, tmp_path: Path) -> None:
    shallow = trainer_for().final_model()
    shallow.save_pretrained(tmp_path / "shallow")
    layers = f"model.decoder_layers={shallow.config.decoder_layers + 2}"
    deeper = trainer_for(f"out={tmp_path / 'deeper'}", f"init={tmp_path / 'shallow'}", layers)
    codes, frames = shallow.encode(speechlike(4000), 16000).codes, torch.tensor([13])
    again = deeper.final_model().decode_batch(codes, frames, 0)
    assert torch.equal(again, shallow.decode_batch(codes, frames, 0))
    last = deeper.model.decoder.backbone.blocks[-1].expand.weight
    before = last.clone()
    for _ in range(2):
        deeper.train_step()
    assert not torch.equal(last, before)
    state = load_file(tmp_path / "shallow/model.safetensors")
    del state["decoder.backbone.blocks.0.scale"]  # of a block that is there
    save_file(state, tmp_path / "damaged.safetensors")
    damaged = (f"out={tmp_path / 'damaged'}", f"init={tmp_path / 'damaged.safetensors'}", layers)
    refused(CheckpointError, "blocks.0.scale", trainer_for, *damaged)


def test_a_decoder_alone_learns_and_the_tokens_stay(trainer_for: Build, tmp_path: Path) -> None:
    trainer = trainer_for()
    trainer.train_step()  # its codebooks start from k-means
    first = trainer.final_model()
    first.save_pretrained(tmp_path / "first")
    other = ("model.decoder_width=24", "model.fine_layers=1", "decoder_only=true", "losses.commit=0")
    refused(ConfigError, "init is empty", trainer_for, *other)
    refused(ConfigError, "commit was given", trainer_for, f"init={tmp_path / 'first'}", *other[:-1])
    trainer = trainer_for(f"out={tmp_path / 'other'}", f"init={tmp_path / 'first'}", *other)
    start = trainer.final_model()
    for _ in range(3):  # the last against discriminators
        trainer.train_step()
    model, wave = trainer.final_model(), speechlike(4000)
    assert torch.equal(model.encode(wave, 16000).codes, first.encode(wave, 16000).codes)
    learnt, former = model.state_dict(), start.state_dict()
    changed = {name.partition(".")[0] for name in learnt if not torch.equal(learnt[name], former[name])}
    assert changed == {"decoder"}
    model.save_pretrained(tmp_path / "model")
    again = trainer_for(f"out={tmp_path / 'again'}", f"init={tmp_path / 'model'}", *other)
    codes, frames = first.encode(wave, 16000).codes, torch.tensor([13])
    onward = again.final_model().decode_batch(codes, frames, 0)
    assert torch.equal(onward, model.decode_batch(codes, frames, 0))


def losses(run: Path) -> list[dict[str, float]]:
    return [line for line in losses_of(run) if "mel" in line]


def test_sigkill_loses_nothing_before_the_last_checkpoint(recipe: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    changes = ["save_every=5", "steps=12", "optim.schedule=constant"]
    build(recipe, f"out={whole}", *changes).run()
    command = [sys.executable, "-m", "vokens", "train", str(recipe)]
    command += [word for change in changes for word in ("--set", change)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    saved = tmp_path / "run" / "checkpoints"
    deadline = time.monotonic() + 120
    while not (saved.exists() and checkpoints(saved)) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    subprocess.run(command, check=True, capture_output=True)
    assert losses(tmp_path / "run") == losses(whole)


def test_interrupt_saves_and_says_so(recipe: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vokens", "train", str(recipe), "--set", "steps=100000"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "saved" in errors
    assert checkpoints(tmp_path / "run" / "checkpoints")


def test_speechtokenizer_trains_with_weight_norm_and_resumes(trainer_for: Build, tmp_path: Path) -> None:
    changes = ["system=speechtokenizer", "steps=3", "adversarial.start=1"]
    sizes = "{n_filters=2, dimension=8, semantic_dim=8, codebook_size=16, num_codebooks=2}"
    changes += [
        f"model={sizes}",
        "mel=published",
        'adversarial.kinds=["mpd", "msd"]',
        "adversarial.divisor=16",
    ]
    trainer = trainer_for(*changes)
    assert any("parametrizations" in name for name in trainer.model.state_dict())
    trainer.run()
    again = trainer_for(*changes)
    again._resume()
    assert again.train_step() == trainer.train_step()
    codec = vokens.load(tmp_path / "run" / "codec")
    assert not any("parametrizations" in name for name in codec.state_dict())
    wave = speechlike(4000)
    assert codec.decode(codec.encode(wave, 16000))[0].shape == wave.shape


def test_codebooks_fitted_after_a_warm_start_are_all_used(trainer_for: Build) -> None:
    trainer = trainer_for("fit_codebooks=25", "optim.schedule=constant")
    for _ in range(25):
        assert trainer.train_step()["commit"] == 0.0
    trainer.train_step()
    batch, _, _ = trainer._batch(0)
    codes = trainer.model.quantizer.encode(trainer.model.latent(batch.wave))
    assert min(len(codes[:, k].unique()) for k in range(2)) > 4


def test_what_a_run_goes_on_from_is_not_taken_for_a_model(trainer_for: Build, tmp_path: Path) -> None:
    trainer_for().save()
    with pytest.raises(CheckpointError, match=r"open the folder of the model, beside .*checkpoints"):
        vokens.load(next((tmp_path / "run" / "checkpoints").glob("*.pt")))


def test_another_network_is_not_resumed(trainer_for: Build, tmp_path: Path) -> None:
    trainer_for("steps=1").run()
    refused(CheckpointError, "another network", lambda: trainer_for("model.width=24").run())


def test_manifests_of_three_kinds(data_of: Build, tmp_path: Path) -> None:
    wav = str(data_of(TASK)["train"] / "0.wav")
    lines = {
        "ours": {"id": "a", "path": wav, "split": "train", "text": "hi"},
        "nemo": {"audio_filepath": wav, "text": "hi", "duration": 0.4},
        "lhotse": {"id": "a", "recording": {"sources": [{"type": "file", "source": wav}]}},
    }
    lines["lhotse"]["supervisions"] = [{"text": "hi"}]
    for name, record in lines.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text(json.dumps(record) + "\n")
        (clip,) = read_clips(path)
        assert (clip.path, clip.text) == (Path(wav), "hi")
    refused(ConfigError, "no recordings", read_clips, tmp_path / "ours.jsonl", "test")


def test_schedules() -> None:
    cosine = OptimConfig(warmup=10, schedule="cosine", final=0.1)
    assert cosine.factor(0, 110) == pytest.approx(0.1)
    assert cosine.factor(10, 110) == pytest.approx(1.0)
    assert cosine.factor(60, 110) == pytest.approx(0.55)
    assert cosine.factor(110, 110) == pytest.approx(0.1)
    decay = OptimConfig(schedule="decay", decay_steps=50)
    assert [decay.factor(s, 100) for s in (0, 50, 75, 100)] == pytest.approx([1.0, 1.0, 0.5, 0.0])
