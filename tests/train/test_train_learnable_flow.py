"""Training tokens -> latents: every objective, pairing and contrast learns and composes; rates set the ratio; what is
written opens, speaks and is decoded."""

from pathlib import Path

import pytest
import torch
from conftest import refused
from training import Build

import vokens
from vokens import checkpoint
from vokens.errors import ConfigError
from vokens.flow import objective
from vokens.models.learnable import LearnableLM, LearnableLMConfig, Qwen2Sizes, SpeakerConfig
from vokens.models.learnable.flow import LearnableFlow

TASK, RATE = "learnable_flow", 24000


RUNS = [
    ("objective=flow", "noise_pairing=assignment"),
    ("objective=imf", "noise_pairing=knn", "guidance=0.7"),
    ("objective=alpha", "noise_pairing=assignment"),
    ("objective=meanflow", "noise_pairing=none", "contrastive=0.0"),
]


@pytest.mark.parametrize(
    "changes", [*RUNS[:2], *(pytest.param(run, marks=pytest.mark.slow) for run in RUNS[2:])]
)
def test_every_objective_learns(trainer_for: Build, changes: tuple[str, ...]) -> None:
    """By heart and at fixed draws, the error against the objective's own target falls."""
    trainer = trainer_for(*changes, "steps=6", "chunked=0.0")
    before = trainer.validate()
    for _ in range(6):
        assert trainer.train_step()["flow"] < 1e3
    after = trainer.validate()
    assert after["valid/flow"] < before["valid/flow"]
    assert {"valid/latent_1", "valid/latent_2", "valid/latent_10", "valid/latent_mean"} <= after.keys()
    network = trainer.model.flow
    assert network.config.meanflow == (trainer.config.objective != "flow")
    assert all(weight.grad is not None for weight in network.parameters())


def test_numbers_of_a_latent_count_by_their_weights(trainer_for: Build) -> None:
    """The loss is linear in the weights: what each number adds, weighted, is the whole."""
    trainer = trainer_for("objective=flow")
    whole = trainer.micro_step(0)[0]
    each = []
    for number in range(6):
        trainer.weights = 6.0 * torch.eye(6)[number]
        each.append(trainer.micro_step(0)[0])
    torch.testing.assert_close(torch.stack(each).mean(), whole)
    trainer.weights = torch.tensor([3.0, 1.0, 1.0, 0.5, 0.5, 0.0])
    torch.testing.assert_close(trainer.micro_step(0)[0], (trainer.weights * torch.stack(each)).mean())


def test_distillation_composes(trainer_for: Build, tmp_path: Path) -> None:
    teacher = trainer_for()
    teacher.export()
    folder = tmp_path / "run" / "flow"
    changes = (
        "objective=intmeanflow",
        "noise_pairing=assignment",
        f"distil.source={folder}",
        f"init={folder}",
    )
    student = trainer_for(*changes)
    ours, theirs = student.model.flow.state_dict(), teacher.model.flow.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in teacher.final_flow().state_dict().items())
    assert set(ours) - set(theirs) == {"estimator.time.mixer.weight"}
    assert student.train_step()["flow"] < 1e3
    refused(ConfigError, "time_scale", trainer_for, "objective=imf", f"init={folder}")
    trainer_for("objective=imf", f"init={folder}", "model.time_scale=1000.0")


def test_pairings_bring_noise_nearer(trainer_for: Build) -> None:
    def distances(pairing: str) -> tuple[torch.Tensor, torch.Tensor]:
        trainer = trainer_for(f"noise_pairing={pairing}", "data.batch_size=8")
        batch = trainer.train.fixed([0] * 8)
        noise = trainer._noise(batch, trainer.row_generators(0, 8))
        x1, mask = trainer._targets(batch)
        return objective.item_errors(noise, x1, mask), noise

    (plain, drawn), (nearest, _), (dealt, exchanged) = map(distances, ("none", "knn", "assignment"))
    assert nearest.mean() < plain.mean()
    assert (dealt.mean() - plain.mean()) <= 1e-6  # equal items: any dealing costs the same
    assert torch.equal(drawn.flatten(1).sum(1).sort()[0], exchanged.flatten(1).sum(1).sort()[0])


def test_assigned_noise_ends_where_the_row_ends(trainer_for: Build) -> None:
    trainer = trainer_for("noise_pairing=assignment", "data.batch_size=3")
    batch = trainer.train.fixed([0, 1, 2])
    noise = trainer._noise(batch, trainer.row_generators(0, 3))
    _, mask = trainer._targets(batch)
    assert not (noise * (1 - mask)).any()
    assert ((noise != 0).all(2).sum(1) == 2 * batch.lengths).all()


def test_latents_are_normalised(trainer_for: Build, data_of: Build) -> None:
    places = data_of(TASK)
    trainer = trainer_for()
    batch = trainer.train.fixed([0, 2])
    model = trainer.final_model()
    vae = vokens.load(places["latents"])
    rows = [vae.encode(places["train"] / f"{i}.wav") for i in range(3)]
    whole = [model.normalised(row.values[0].T) for row in rows]
    every = torch.cat(whole)
    torch.testing.assert_close(every.mean(0), torch.zeros(6), atol=2e-2, rtol=0)
    torch.testing.assert_close(every.std(0), torch.ones(6), atol=2e-2, rtol=0)
    frames = batch.frames[0, :, : 2 * int(batch.lengths[0])].T
    apart = [
        (whole[0][i : i + len(frames)] - frames).abs().max() for i in range(len(whole[0]) - len(frames) + 1)
    ]
    assert min(apart) < 0.02


def test_three_latents_per_token(trainer_for: Build, data_of: Build, tmp_path: Path) -> None:
    places = data_of(TASK)
    trainer = trainer_for(f"data.latents={places['latents']}75")
    trainer.run()
    flow = vokens.load(tmp_path / "run" / "flow")
    assert isinstance(flow, LearnableFlow)
    assert (flow.ratio, flow.latent_dim, flow.config.frame_rate) == (3, 6, 75.0)
    assert flow.config.mean == (1.0,) * 6
    vector = trainer.train.fixed([0]).voices
    latents = flow.generate([1, 2, 3, 4], vector, seed=0)
    assert latents[0].shape == (6, 12)
    waves = vokens.load(f"{places['latents']}75").decode(flow.pack(latents))
    assert len(waves[0]) == 4 * 960


def test_voices_of_the_language_model(trainer_for: Build, tmp_path: Path) -> None:
    sizes = Qwen2Sizes(120, 64, 128, 2, 4, 2, 512)
    torch.manual_seed(0)
    speaker = SpeakerConfig(width=32, layers=1, heads=2, embed_dim=12)
    lm = LearnableLM(LearnableLMConfig(sizes, speaker, speech_tokens=81))
    lm.save_pretrained(tmp_path / "lm")
    trainer = trainer_for(f"data.speaker={tmp_path / 'lm'}")
    assert trainer.train.fixed([0]).voices.shape == (1, 12)
    trainer.export()
    flow = vokens.load(tmp_path / "run" / "flow")
    assert isinstance(flow, LearnableFlow)
    assert flow.speaker_encoder is not None
    for name, value in lm.speaker_encoder.state_dict().items():
        assert torch.equal(flow.speaker_encoder.state_dict()[name], value)
    wave, _ = vokens.audio.load(trainer.config.data.train + "/1.wav", RATE)
    found = flow.voice(wave, sample_rate=RATE)
    torch.testing.assert_close(found, trainer.train.fixed([1]).voices, atol=2e-3, rtol=0)


def test_a_published_flow_is_a_start(trainer_for: Build, tmp_path: Path) -> None:
    trainer = trainer_for("data.normalise=false")
    state = trainer.final_model().to_published()
    checkpoint.save_safetensors(tmp_path / "flow.safetensors", state)
    changes = (f"init={tmp_path / 'flow.safetensors'}", "data.normalise=false")
    again = trainer_for(*changes)
    for name, value in trainer.model.flow.state_dict().items():
        assert torch.equal(again.model.flow.state_dict()[name], value)
