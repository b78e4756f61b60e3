"""bfloat16 on the CPU, with and without instructions for it: close to float32, and float32 at every border."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from conftest import speechlike
from torch import nn
from torch.nn import functional as F

from vokens.models.codec import Codec
from vokens.models.dacvae import DACVAE, DACVAEConfig
from vokens.models.flowae import FlowAE, FlowAEConfig
from vokens.models.flowae.network import FlowDecoder
from vokens.models.socodec.vocoder import SnakeBeta
from vokens.nn.attention import attention
from vokens.nn.conv import PlainConv1d
from vokens.nn.ecapa import ECAPA
from vokens.nn.float32 import Float32Buffers
from vokens.nn.snake import Snake, mish
from vokens.nn.stft import SpectrumIn
from vokens.quantize.rvq import EuclideanCodebook

RATE = 16000


def halved(model: Any) -> Any:
    return copy.deepcopy(model).set_dtype(torch.bfloat16)


def error(actual: Any, expected: Any) -> float:
    """Root of the squared error over that of the signal."""
    actual, expected = (torch.as_tensor(x).float() for x in (actual, expected))
    return float((actual - expected).norm() / expected.norm())


def test_waves_of_codecs_are_close_and_float32(speaker: Codec) -> None:
    tokens = speaker.encode(speechlike(8000), RATE)
    actual, expected = halved(speaker).decode(tokens)[0], speaker.decode(tokens)[0]
    assert actual.dtype == np.float32
    assert error(actual, expected) < 0.1
    assert len(np.unique(actual)) > len(actual) // 2  # not the few numbers that bfloat16 has


def test_most_ids_of_a_codec_stay_and_loading_changes_none(speaker: Codec) -> None:
    tokens = speaker.encode(speechlike(8000), RATE)
    assert torch.equal(
        copy.deepcopy(speaker).set_dtype(torch.float32).encode(speechlike(8000), RATE).codes, tokens.codes
    )
    half = halved(speaker).encode(speechlike(8000), RATE)
    assert half.fingerprint == tokens.fingerprint
    assert float((half.codes[:, 0] == tokens.codes[:, 0]).float().mean()) > 0.5
    if tokens.global_vector is not None:
        assert half.global_vector.dtype == torch.float32


LIGHT = {"network": "stft", "latent_dim": 6, "n_fft": 240, "flow_width": 16, "flow_layers": 1, "steps": 1}
RATES = {
    "encoder_rates": (2, 4),
    "decoder_rates": (4, 2),
    "encoder_dim": 8,
    "decoder_dim": 32,
    "latent_dim": 16,
}


@pytest.mark.parametrize(
    ("system", "config"), [(DACVAE, DACVAEConfig(**RATES)), (FlowAE, FlowAEConfig(**LIGHT))]
)
def test_an_autoencoder_is_close_and_float32(system: type, config: DACVAEConfig) -> None:
    """Rows of a ragged batch too."""
    torch.manual_seed(0)
    model = system(config).freeze()
    half, waves = halved(model), [speechlike(4000), speechlike(1500)]
    latents = model.encode(waves, RATE)
    actual = half.encode(waves, RATE)
    assert actual.values.dtype == torch.float32
    assert error(actual.values, latents.values) < 0.03
    for sound, expected in zip(half.decode(latents), model.decode(latents), strict=True):
        assert sound.dtype == np.float32
        assert error(sound, expected) < 0.05


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_attention_that_learns_is_rounded_once(autocast: bool, bias: bool) -> None:
    """In float32 inside, where torch's backward pass is 3.5 times as fast; half precision in and out."""
    draw = torch.Generator().manual_seed(0)
    parts = [torch.randn(2, 3, 40, 16, generator=draw).bfloat16().requires_grad_() for _ in range(3)]
    mask = torch.randn(2, 3, 40, 40, generator=draw).bfloat16() if bias else torch.ones(40, 40).tril().bool()

    def outcome(function: Any) -> list[torch.Tensor]:
        y = function(*parts)
        return [y, *torch.autograd.grad(y.float().square().sum(), parts)]

    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        actual = outcome(lambda q, k, v: attention(q, k, v, mask))
    wide = mask.float() if bias else mask
    expected = outcome(
        lambda q, k, v: F.scaled_dot_product_attention(q.float(), k.float(), v.float(), wide).bfloat16()
    )
    assert all(map(torch.equal, actual, expected))
    assert actual[0].dtype == torch.bfloat16


def test_codebooks_and_windows_stay_float32() -> None:
    for part in (EuclideanCodebook(4, 8), SpectrumIn(64, 2)):
        part.to(torch.bfloat16)
        assert all(value.dtype == torch.float32 for value in part.buffers())


@pytest.mark.parametrize("activation", [Snake(16), SnakeBeta(16)])
def test_snakes_are_rounded_once(activation: nn.Module) -> None:
    """Off by the rounding of the result alone, 2^-9, in every layout of memory and in pieces."""
    for parameter in activation.parameters():
        nn.init.constant_(parameter, 1.5)
    x = (4 * torch.randn(2, 16, 20_000, generator=torch.Generator().manual_seed(0))).to(torch.bfloat16)
    half = copy.deepcopy(activation).to(torch.bfloat16)
    with torch.inference_mode():
        expected = activation(x.float())
        for given in (x, x.mT.contiguous().mT):
            actual = half(given)
            assert actual.dtype == torch.bfloat16
            assert ((actual.float() - expected).abs() <= 2**-8 * expected.abs() + 1e-4).all()


@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "groups"), [(1, 3, 1, 1), (2, 0, 1, 1), (1, 6, 2, 4)]
)
def test_convolutions_are_torchs(stride: int, padding: int, dilation: int, groups: int) -> None:
    torch.manual_seed(0)
    conv = PlainConv1d(16, 8, 7, stride, padding, dilation, groups).to(torch.bfloat16)
    x = torch.randn(2, 16, 50).to(torch.bfloat16)
    wide = F.conv1d(x.float(), conv.weight.float(), conv.bias.float(), stride, padding, dilation, groups)
    with torch.no_grad():
        assert error(conv(x), wide) < 0.01
        assert conv.float()(x.float()).equal(nn.Conv1d._conv_forward(conv, x.float(), conv.weight, conv.bias))


@pytest.mark.parametrize(("channels", "kernel"), [(2, 32), (4, 120), (8, 16), (12, 24)])
def test_wide_kernels_of_few_channels_are_right(channels: int, kernel: int) -> None:
    """On processors with AMX torch 2.13 gives these an error of 100 %, with and without autocast."""
    torch.manual_seed(0)
    conv, x = PlainConv1d(channels, 8, kernel, stride=kernel // 2), torch.randn(2, channels, 400)
    with torch.no_grad():
        wide = conv(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert error(conv(x), wide) < 0.01
        assert error(conv.bfloat16()(x.bfloat16()), wide) < 0.01


def test_statistics_and_spectra_stay_float32() -> None:
    """A flow's means and deviations of latents, its windows, and the network that hears a voice."""
    flow = FlowDecoder(FlowAEConfig(network="stft", latent_dim=6, n_fft=240, flow_width=16, flow_layers=1))
    for part in (flow, ECAPA(8, (8, 8, 8, 8, 16), 8, 4, 16), Mean()):
        part.to(torch.bfloat16)
        kept = part.parameters() if isinstance(part, ECAPA) else part.buffers()
        assert all(value.dtype == torch.float32 for value in kept)
    assert flow.enter.weight.dtype == torch.bfloat16
    assert flow.spectra.of_speech(torch.randn(1, 4800)).dtype == torch.float32


class Mean(Float32Buffers):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))


def test_mish_is_torchs() -> None:
    x = torch.linspace(-100, 100, 4001)
    with torch.no_grad():
        torch.testing.assert_close(mish(x), F.mish(x), atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(mish(x.bfloat16()), F.mish(x.bfloat16()), atol=1e-6, rtol=2**-7)
