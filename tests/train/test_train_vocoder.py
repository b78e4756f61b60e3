"""Training HiFT: losses fall, resuming changes nothing, rows are those of one process, the vocoder opens and plays."""

import numpy as np
import pytest
import torch
from training import Build

from vokens.audio import LogMel
from vokens.audio.mel import MEL_24K_80
from vokens.nn.discriminators import MultiResolutionDiscriminator
from vokens.train.losses import relativistic
from vokens.train.tasks.vocoder import SILENT

TASK, RATE = "vocoder", 24000


def test_tracked_sines_are_at_the_tracked_pitch(trainer_for: Build) -> None:
    trainer = trainer_for("sines=tracked")
    batch = trainer._batch(trainer.train.fixed([0, 1]))
    heard: list[torch.Tensor] = []
    source = trainer.model.vocoder.m_source
    source.register_forward_pre_hook(lambda _, args: heard.append(args[0]))
    draws = trainer._draws(0, batch.wave)
    _, pitch = trainer.model(batch.mel, draws, batch.pitch)
    trainer.model(batch.mel, draws)
    assert torch.equal(heard[0], batch.pitch)
    assert torch.equal(heard[1], pitch)


def test_crops_have_the_mel_and_pitch_of_their_place(trainer_for: Build) -> None:
    trainer = trainer_for()
    crops = trainer.train.fixed([0, 1])
    batch = trainer._batch(crops)
    assert crops.lengths.tolist() == [2880, 2880]
    inner = LogMel(MEL_24K_80)(batch.wave)[..., 2:-2]  # a crop's own ends are reflected
    torch.testing.assert_close(batch.mel[..., 2:-2], inner, atol=0.02, rtol=0)
    rows = trainer.train.teacher
    assert rows is not None
    start = (24000 - 2880) // 2 // 480
    np.testing.assert_array_equal(batch.pitch[0], rows[0][start : start + 6, -1].astype(np.float32))
    short = trainer._batch(trainer.train.fixed([2]))  # 1500 samples: 3 frames
    assert short.mel.shape == (1, 80, 6)
    assert (short.mel[0, :, 3:] == SILENT).all()
    assert not short.pitch[0, 3:].any()
    assert short.mel[0, :, :3].max() > SILENT + 1


def test_relativistic_loss_by_hand() -> None:
    better, worse = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0.9, 1.8, 2.9]])
    # Differences 0.1, 0.2, 0.1: the median is 0.1, none is below it.
    assert relativistic([better], [worse]) == 0
    worse = torch.tensor([[1.1, 1.9, 2.7]])  # -0.1, 0.1, 0.3: median 0.1, one below by 0.2
    torch.testing.assert_close(relativistic([better], [worse]), torch.tensor(0.04))
    torch.testing.assert_close(relativistic([better], [worse], 1.0), torch.tensor(0.04))
    far = torch.tensor([[9.0, 1.9, 2.7]], requires_grad=True)
    loss = relativistic([better], [far])
    torch.testing.assert_close(loss.detach(), torch.tensor(0.04))  # truncated: and then it does not pull
    assert not torch.autograd.grad(loss, far)[0].any()
    torch.testing.assert_close(relativistic([better] * 2, [worse] * 2, 1.0), torch.tensor(0.08))


def test_multi_resolution_discriminator_sizes() -> None:
    judge = MultiResolutionDiscriminator(4)
    logits, maps = judge(torch.randn(2, 1, 2400))
    assert [len(m) for m in maps] == [6, 6, 6]
    assert [m[0].shape for m in maps] == [(2, 4, 21, 513), (2, 4, 11, 1025), (2, 4, 49, 257)]
    assert [x.shape for x in logits] == [(2, 21 * 65), (2, 11 * 129), (2, 49 * 33)]
    silent, _ = judge(torch.zeros(1, 1, 2400, requires_grad=True))
    silent[0].sum().backward()  # no NaN from the root at zero
    assert all(p.grad is None or p.grad.isfinite().all() for p in judge.parameters())
    assert sum(p.numel() for p in MultiResolutionDiscriminator().parameters()) == pytest.approx(
        0.28e6, rel=0.05
    )
