"""S3Tokenizer in 8-bit integers: exact sums, ids that do not depend on company, and what it refuses."""

from pathlib import Path

import pytest
import torch
from conftest import build_tiny_mini, refused
from test_s3tokenizer import small
from test_s3tokenizer_batch import LENGTHS, RATE, WAVES
from torch import nn

import vokens
from vokens.cli import main
from vokens.errors import CheckpointError, ConfigError
from vokens.models.s3tokenizer.export import export_onnx
from vokens.models.s3tokenizer.int8 import Int8Linear, _exact, input_bits

# Each way of writing numbers that this processor computes exactly; 7 bits work everywhere.
each_width = pytest.mark.parametrize("bits", [bits for bits in (16, 8, 7) if _exact(bits)])
ERRORS = {16: 2e-4, 8: 0.02, 7: 0.025}


@each_width
def test_products_are_near_and_rows_do_not_depend_on_each_other(bits: int) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(1280, 96).requires_grad_(False)
    x = torch.randn(3, 50, 1280) * torch.logspace(-3, 3, 150).reshape(3, 50, 1)  # loud and quiet tokens
    x[1] += 5 * x[1].abs().mean(-1, keepdim=True)
    rounded = Int8Linear(linear, bits)
    found, exact = rounded(x), linear(x)
    assert ((found - exact).norm(dim=-1) / exact.norm(dim=-1)).max() < ERRORS[bits]
    for row in range(3):
        assert torch.equal(rounded(x[row, 7:8]), found[row, 7:8])
    assert torch.equal(rounded(x.to(torch.bfloat16)), rounded(x.to(torch.bfloat16).float()))


@each_width
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_no_sum_overflows(sign: float, bits: int) -> None:
    """The largest inputs on the largest weights, where pairs of 8-bit products would not fit in 16 bits."""
    linear = nn.Linear(512, 8, bias=False).requires_grad_(False)
    linear.weight.fill_(sign)
    x = torch.ones(4, 512)
    x[:, 0] = 0.0  # the lowest of its range
    rtol = 2e-5 if bits == 16 else 1e-6  # two digits have a step of 2^-15
    torch.testing.assert_close(Int8Linear(linear, bits)(x), torch.full((4, 8), 511 * sign), rtol=rtol, atol=0)


@each_width
def test_silence_and_layers_without_bias(bits: int) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(64, 16, bias=False).requires_grad_(False)
    assert Int8Linear(linear, bits)(torch.zeros(2, 64)).eq(0).all()
    same = torch.full((2, 64), 3.0)
    torch.testing.assert_close(Int8Linear(linear, bits)(same), linear(same), rtol=0, atol=0.05)


@each_width
def test_zeros_among_other_inputs_err_nothing(bits: int) -> None:
    """After GELU most inputs are near zero: a step that misses zero makes all of them err alike, and sums drift."""
    linear = nn.Linear(2048, 8, bias=False).requires_grad_(False)
    linear.weight.fill_(1.0)
    x = torch.zeros(1, 2048)
    x[0, :2] = torch.tensor([-0.17, 5.0])
    assert (Int8Linear(linear, bits)(x) - 4.83).abs().max() < 0.05


def test_the_processor_is_asked_by_a_product() -> None:
    assert input_bits() in (7, 8, 16)
    assert _exact(7)
    assert _exact(input_bits())


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_ids_in_int8(version: str) -> None:
    codec, _ = small(version)
    exact = codec.encode(WAVES, RATE)
    codec.set_dtype(torch.int8)
    found = codec.encode(WAVES, RATE)
    assert (found.model, found.fingerprint) == (exact.model, exact.fingerprint)
    assert torch.equal(found.lengths, exact.lengths)
    assert (found.codes == exact.codes).float().mean() > 0.6
    for i in (0, 5, 9, 11):
        alone = codec.encode(WAVES[i], RATE)
        assert torch.equal(alone.codes, found[i].codes), f"{LENGTHS[i]} samples"
    assert not any(isinstance(module, nn.Linear) for module in codec.encoder.modules())
    assert codec.set_dtype(torch.int8) is codec
    assert torch.equal(codec.encode(WAVES, RATE).codes, found.codes)


def test_what_int8_refuses(tmp_path: Path) -> None:
    codec, _ = small("v2")
    refused(ConfigError, "guarded", codec.set_dtype, torch.int8, "guarded")
    refused(ConfigError, "int8 are accepted", codec.set_dtype, torch.int16)
    codec.set_dtype(torch.int8)
    refused(ConfigError, "load the codec again", codec.set_dtype, torch.float32)
    refused(ConfigError, "half precision", codec.calibrate, WAVES[5], RATE)
    refused(CheckpointError, "float32 codec", codec.save_pretrained, tmp_path / "saved")
    refused(CheckpointError, "float32 codec", codec.to_published)
    refused(CheckpointError, "float32 codec", export_onnx, codec, tmp_path / "codec.onnx")
    with pytest.raises(ConfigError, match="meta"):
        codec.encoder.blocks[0].mlp(torch.zeros(1, 4, codec.config.width, device="meta"))
    refused(ConfigError, "meta", lambda: small("v2")[0].to("meta").set_dtype(torch.int8))
    refused(ConfigError, r"int8 .* mini computes in float32", lambda: build_tiny_mini().set_dtype(torch.int8))


def test_load_and_the_command_line_take_it(tmp_path: Path) -> None:
    codec, _ = small("v2")
    folder = codec.save_pretrained(tmp_path / "codec")
    rounded = vokens.load(folder, dtype="int8")
    wave = tmp_path / "a.wav"
    vokens.audio.save(wave, WAVES[8], RATE)
    expected = rounded.encode(wave)
    assert expected.fingerprint == codec.fingerprint
    command = ["encode", str(wave), "--model", str(folder), "--dtype", "int8", "--device", "cpu"]
    assert main([*command, "--output", str(tmp_path / "a.vok")]) == 0
    assert torch.equal(vokens.Tokens.load(tmp_path / "a.vok").codes, expected.codes)
    refused(ConfigError, "int8 are accepted", vokens.load, folder, dtype="int4")
