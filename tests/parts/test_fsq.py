"""Finite scalar quantization: the recorded ids, the digits of every id, margins that mean what they say."""

from pathlib import Path

import pytest
import torch
from conftest import seeded
from safetensors.torch import load_file

from vokens.quantize.fsq import FiniteScalarQuantizer
from vokens.quantize.vq import UnitVectorQuantizer

GOLDEN = load_file(Path(__file__).parents[1] / "golden/s3tokenizer/fsq.safetensors")


def transparent(dims: int = 8, levels: int = 3) -> FiniteScalarQuantizer:
    """Whose projection hands its input on."""
    quantizer = FiniteScalarQuantizer(dims, dims, levels)
    torch.nn.init.eye_(quantizer.project.weight)
    torch.nn.init.zeros_(quantizer.project.bias)
    return quantizer.requires_grad_(False)


def test_recorded_ids() -> None:
    assert torch.equal(transparent().encode(GOLDEN["pre"])[0], GOLDEN["codes"].long())
    with torch.autocast("cpu", torch.bfloat16):  # rows 19 to 22 are 1e-4 beside the edge
        assert torch.equal(transparent().encode(GOLDEN["pre"])[0], GOLDEN["codes"].long())


@pytest.mark.parametrize(("dims", "levels"), [(8, 3), (3, 5), (2, 7)])
def test_every_id_is_its_digits(dims: int, levels: int) -> None:
    quantizer = transparent(dims, levels)
    ids = torch.arange(levels**dims)
    digits = quantizer.digits(ids)
    assert len(digits.unique(dim=0)) == quantizer.size == len(ids)
    assert digits.abs().max() == 1
    assert torch.equal(quantizer.encode(torch.atanh(digits * 0.998))[0], ids)
    # Dimension 0 is lowest.
    torch.testing.assert_close(digits[1] - digits[0], torch.eye(dims)[0] * 2 / (levels - 1))


def test_no_change_below_the_margin_flips_an_id() -> None:
    quantizer = transparent()
    x = torch.randn(2000, 8, generator=seeded(0))
    ids, margin = quantizer.encode(x)
    bounded = 0.999 * x.tanh()
    for sign in (-1, 1):
        moved = bounded + sign * 0.99 * margin[:, None]
        same = moved.abs() < 0.999  # tanh does not reach further
        again = quantizer.encode(torch.atanh(moved.clamp(-0.9989, 0.9989) / 0.999))[0]
        assert torch.equal(again[same.all(1)], ids[same.all(1)])
    edge = torch.where(bounded.abs().sub(0.5).abs() == margin[:, None], 1.02, 0.98)
    crossed = bounded + bounded.sign() * (0.5 - bounded.abs()) * edge  # each number to just beyond its edge
    assert (quantizer.encode(torch.atanh(crossed / 0.999))[0] != ids).float().mean() > 0.9


def test_gradients_pass_through_the_rounding() -> None:
    quantizer = FiniteScalarQuantizer(16, 8)
    x = torch.randn(5, 16, requires_grad=True)
    rounded, ids = quantizer(x)
    assert torch.equal(rounded, quantizer.digits(ids))
    rounded.sum().backward()
    assert (x.grad.abs().sum(1) > 0).all()
    assert quantizer.project.weight.grad is not None


def test_nearest_codeword_by_brute_force() -> None:
    generator = seeded(1)
    quantizer = UnitVectorQuantizer(12, 40).requires_grad_(False)
    x = torch.randn(3, 50, 12, generator=generator) * 9
    distance = torch.cdist((x / x.norm(dim=-1, keepdim=True)).double(), quantizer.embedding.double()).square()
    two = distance.sort(-1).values[..., :2]
    ids, margin = quantizer.encode(x)
    assert torch.equal(ids, distance.argmin(-1))
    torch.testing.assert_close(margin, (two[..., 1] - two[..., 0]).float(), atol=1e-6, rtol=0)
    assert torch.equal(quantizer.decode(ids), quantizer.embedding[ids])


def test_first_of_equal_codewords_and_zero_input() -> None:
    quantizer = UnitVectorQuantizer(4, 6).requires_grad_(False)
    quantizer.embedding.copy_(torch.eye(4)[[0, 1, 0, 1, 2, 3]])
    assert quantizer.encode(torch.eye(4)[:2])[0].tolist() == [0, 1]
    assert torch.isfinite(quantizer.distances(torch.zeros(1, 4))).all()
