"""Training tokens -> mel: it learns, resumes, ignores padding, splits over processes; a student jumps as its teacher
flows."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from training import Build, build, write_recipe

import vokens
from vokens.flow import objective
from vokens.models.s3gen.flow import TokenToMel, Voice
from vokens.train.flow_data import FlowBatch
from vokens.train.flow_learner import Draw, distillation_times
from vokens.train.tasks.flow import FlowTrainer

TASK = "flow"
STUDENT = ("objective=intmeanflow",)


@pytest.fixture(scope="module")
def taught(data_of: Build, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The recipe and the folder of a flow that knows the two recordings by heart."""
    folder = tmp_path_factory.mktemp("taught")
    path = write_recipe(TASK, folder, data_of(TASK))
    trainer = build(path, "chunked=0.0", "prompted=0.2")
    for _ in range(200):
        trainer.train_step()
    trainer.export()
    return path, folder / "run" / "flow"


def voices_of(batch: FlowBatch) -> list[Voice]:
    return [Voice(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 80), voice) for voice in batch.voices]


def test_two_recordings_are_learned_by_heart(taught: tuple[Path, Path]) -> None:
    trainer = build(taught[0], f"init={taught[1]}")
    measured = trainer.validate()
    assert measured["valid/mel_10"] < 0.5 * measured["valid/mel_mean"]


def test_a_fresh_flow_starts_at_the_mean_mel(trainer_for: Build) -> None:
    trainer = trainer_for()
    measured = trainer.validate()
    assert measured["valid/mel_10"] < 2 * measured["valid/mel_mean"]
    assert trainer.train_step()["flow"] < 20  # log-mels lie around -8: from zero it would be 60 and more


def test_a_fresh_flow_hands_frames_on(trainer_for: Build) -> None:
    estimator = trainer_for("model.decoder_channels=96").model.flow.estimator
    x = torch.randn(1, 7, 96)
    assert torch.equal(estimator.first_conv(x), x + estimator.first_conv.bias)
    middle = estimator.middle[0].resnet.shortcut
    torch.testing.assert_close(middle(x), x)
    given = torch.randn(1, 7, 320)  # x, mu, speaker, prompt
    torch.testing.assert_close(estimator.first.resnet.shortcut(given), given[..., :96])


def loss_of(trainer: FlowTrainer, batch: FlowBatch, draw: Draw) -> Tensor:
    x1, mask = trainer._targets(batch)
    x, velocity = objective.straight_path(x1, draw.noise, draw.t)
    return objective.squared_error(*trainer.model(batch, x, velocity, draw), mask)


@pytest.mark.parametrize("chunked", [0.0, 1.0])
def test_padding_has_no_influence_on_the_loss(trainer_for: Build, chunked: float) -> None:
    trainer = trainer_for(f"chunked={chunked}")
    short = trainer.train.fixed([1, 1])  # 15 tokens
    draw = trainer._draw(short, 0)
    tokens = torch.nn.functional.pad(short.tokens, (0, 4), value=7)
    frames = torch.nn.functional.pad(short.frames, (0, 8), value=3.0)
    padded = replace(short, tokens=tokens, frames=frames)
    longer = trainer._draw(padded, 0)
    torch.testing.assert_close(longer.noise[:, : 2 * 15], draw.noise, atol=0, rtol=0)
    assert not longer.noise[:, 2 * 15 :].any()
    assert torch.equal(longer.prompts, draw.prompts)
    torch.testing.assert_close(loss_of(trainer, padded, longer), loss_of(trainer, short, draw))


def test_rows_without_conditions_get_none(trainer_for: Build) -> None:
    trainer = trainer_for()
    batch = trainer.train.batch(0)
    other = FlowBatch(batch.tokens.flip(1), batch.frames + 1, batch.lengths, -batch.voices)
    draw = replace(trainer._draw(batch, 0), prompts=torch.tensor([4, 4]))
    draw = replace(draw, conditioned=torch.tensor([False, True]))
    x = draw.noise
    with torch.inference_mode():
        a, b = trainer.model(batch, x, x, draw)[0], trainer.model(other, x, x, draw)[0]
    torch.testing.assert_close(a[0], b[0])
    assert (a[1] - b[1]).abs().max() > 1e-3


def test_shares_are_as_asked(trainer_for: Build) -> None:
    trainer = trainer_for()
    batch = trainer.train.fixed([0] * 64)
    drawn = [trainer._draw(batch, number) for number in range(16)]
    dropped = torch.cat([~draw.conditioned for draw in drawn]).float().mean()
    prompts = torch.cat([draw.prompts for draw in drawn])
    t = torch.cat([draw.t for draw in drawn])
    assert abs(dropped - 0.2) < 0.04
    assert abs((prompts == 0).float().mean() - (0.5 + 0.5 / 12)) < 0.05  # of 40 frames 0 to 11 are given
    assert prompts.max() == 11
    assert abs(t.mean() - 0.5) < 0.03
    assert 3 <= sum(draw.chunked for draw in drawn) <= 13


def test_jumps_go_forward_and_cover_what_will_be_asked() -> None:
    a, b, kind = torch.rand(3, 4000, generator=torch.Generator().manual_seed(0))
    t, r = distillation_times(a, b, kind)
    assert ((t >= 0) & (t <= r) & (r <= 1)).all()
    assert abs((t == r).float().mean() - 0.1) < 0.02
    for start, end in ((0.0, 1.0), (0.0, 0.5), (0.5, 1.0)):
        assert abs(((t == start) & (r == end)).float().mean() - 1 / 6) < 0.02


def test_the_target_is_the_mean_velocity_of_the_guided_ode(taught: tuple[Path, Path]) -> None:
    path, teacher = taught
    trainer = build(path, *STUDENT, f"distil.source={teacher}", "distil.steps=10", "chunked=0.0")
    assert trainer.teacher is not None
    batch = trainer.train.fixed([0, 0])
    nothing = {"prompts": torch.zeros(2, dtype=torch.int64), "t": torch.zeros(2), "r": torch.ones(2)}
    draw = replace(trainer._draw(batch, 0), **nothing)
    found = trainer._distilled(batch, draw.noise, draw)
    flow = replace(trainer.teacher.flow.config, cfm_t_scheduler="linear")
    same = TokenToMel(flow).eval()
    same.load_state_dict(trainer.teacher.flow.state_dict())
    mel, _ = same.generate(
        batch.tokens, voices_of(batch), schedule=same.schedule(10, guidance=0.7), noise=list(draw.noise)
    )
    torch.testing.assert_close(draw.noise + found, mel.transpose(1, 2), atol=1e-4, rtol=1e-4)


def test_a_student_jumps_where_its_teacher_flows(taught: tuple[Path, Path], tmp_path: Path) -> None:
    path, teacher = taught
    changes = (*STUDENT, f"distil.source={teacher}", f"init={teacher}", f"out={tmp_path}", "distil.steps=3")
    trainer = build(path, *changes, "optim.learning_rate=2e-3", "chunked=0.0")
    before = vokens.load(teacher)
    batch = trainer.train.fixed([0, 1])
    rows = [row[:n] for row, n in zip(batch.tokens, batch.lengths.tolist(), strict=True)]

    def made(flow: TokenToMel, steps: int) -> Tensor:
        drawn = trainer._noise(batch, trainer.row_generators(5, 2))
        noise = [drawn[i, : 2 * len(row)] for i, row in enumerate(rows)]
        schedule = flow.schedule(steps)
        return flow.generate(rows, voices_of(batch), schedule=schedule, noise=noise)[0]

    assert isinstance(before, TokenToMel)
    wanted = made(before, 10)
    for _ in range(60):
        trainer.train_step()
    trainer.export()
    student = vokens.load(tmp_path / "flow")
    assert isinstance(student, TokenToMel)
    assert student.config.meanflow
    apart = {"before": made(before, 1), "after": made(student, 1), "after, 2 steps": made(student, 2)}
    apart = {name: float((mel - wanted).abs().mean()) for name, mel in apart.items()}
    assert apart["after"] < 0.6 * apart["before"], apart
    assert apart["after, 2 steps"] < 0.6 * apart["before"], apart


def test_crops_are_tokens_with_their_own_frames(trainer_for: Build) -> None:
    crops = trainer_for().train
    for step in range(4):
        batch = crops.batch(step)
        assert batch.frames.shape == (2, 80, 2 * batch.tokens.shape[1])
        for tokens, frames, n in zip(batch.tokens, batch.frames, batch.lengths.tolist(), strict=True):
            assert n in (15, 20)
            clip = 1 if n == 15 else 0
            whole = crops.tokens[clip][:, 0]
            starts = [i for i in range(len(whole) - n + 1) if np.array_equal(whole[i : i + n], tokens[:n])]
            cut = [crops.frames[clip][2 * i : 2 * (i + n)].T.astype(np.float32) for i in starts]
            assert any(np.array_equal(piece, frames[:, : 2 * n]) for piece in cut)
            assert not frames[:, 2 * n :].any()
