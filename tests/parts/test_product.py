"""The product of this processor equals torch's, forward and backward, in every layout, and falls back to it."""

import time

import pytest
import torch
from conftest import seeded
from torch import nn
from torch.nn import functional as F

from vokens.errors import ConfigError
from vokens.nn import product
from vokens.nn.attention import attention
from vokens.nn.lstm import SkipLSTM
from vokens.nn.product import Linear, linear
from vokens.quantize.rvq import EuclideanCodebook
from vokens.quantize.vq import UnitVectorQuantizer

needs_onednn = pytest.mark.skipif(not product._available(), reason="this torch has no oneDNN product")
WIDTHS = 96, 80  # wide enough that a few rows are past _LEAST_WORK


def operands(*shape: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = seeded(sum(shape))
    inner, outer = WIDTHS
    return tuple(torch.randn(*size, generator=draw) for size in ((*shape, inner), (outer, inner), (outer,)))


@needs_onednn
@pytest.mark.parametrize("shape", [(40,), (2, 30), (2, 3, 17), (1, 1), (0,), (2, 0), ()])
@pytest.mark.parametrize("with_bias", [True, False])
def test_equals_torch(shape: tuple[int, ...], with_bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product, "_LEAST_WORK", 0)
    x, weight, bias = operands(*shape)
    bias = bias if with_bias else None
    with product.using("onednn"), torch.inference_mode():
        assert torch.allclose(linear(x, weight, bias), F.linear(x, weight, bias), atol=1e-4)


@needs_onednn
def test_equals_torch_where_memory_is_not_contiguous() -> None:
    x, weight, bias = operands(50)
    wide, tall = x.repeat_interleave(2, 1)[:, ::2], x.t().contiguous().t()
    with product.using("onednn"), torch.no_grad():
        for given in (wide, tall, x.expand(3, 50, WIDTHS[0])):
            for kernel in (weight, weight.t().contiguous().t()):
                assert torch.allclose(linear(given, kernel, bias), F.linear(given, kernel, bias), atol=1e-4)


@needs_onednn
def test_a_part_of_a_wider_weight_is_about_as_fast_as_a_whole_one() -> None:
    def least(x: torch.Tensor, weight: torch.Tensor) -> float:
        def once() -> float:
            start = time.perf_counter()
            linear(x, weight)
            return time.perf_counter() - start

        return min(once() for _ in range(3))

    x, whole, wide = (torch.randn(200, width, generator=seeded(width)) for width in (64, 64, 512))
    with product.using("onednn"), torch.no_grad():
        for part in (wide[:, 64:128], wide.t()[64:128].t(), whole.repeat(2, 1)[::2]):
            assert torch.allclose(linear(x, part), F.linear(x, part), atol=1e-4)
            assert least(x, part) < 50 * least(x, whole)  # some 1.2, and 2000 by oneDNN's reference loops


@needs_onednn
@pytest.mark.parametrize(
    "learns", [(True, True, True), (True, False, False), (False, True, False), (False, False, True)]
)
def test_gradients_equal_torch(learns: tuple[int, ...]) -> None:
    def gradients(function) -> list[torch.Tensor | None]:
        parts = [part.requires_grad_(bool(need)) for part, need in zip(operands(4, 25), learns, strict=True)]
        function(*parts).square().mean().backward()
        return [part.grad for part in parts]

    with product.using("onednn"):
        for mine, reference in zip(gradients(linear), gradients(F.linear), strict=True):
            assert (mine is None) == (reference is None)
            assert mine is None or torch.allclose(mine, reference, atol=1e-5)


@needs_onednn
def test_gradients_of_gradients_equal_torch() -> None:
    def penalty(function) -> torch.Tensor:
        x, weight, bias = (part.requires_grad_() for part in operands(40))
        (slope,) = torch.autograd.grad(function(x, weight, bias).tanh().sum(), x, create_graph=True)
        slope.square().sum().backward()
        return weight.grad

    with product.using("onednn"):
        assert torch.allclose(penalty(linear), penalty(F.linear), rtol=1e-3, atol=1e-2)


def test_float64_is_torchs_and_passes_gradcheck() -> None:
    parts = [part.double()[..., :3].requires_grad_() for part in operands(4)[:2]]
    assert torch.autograd.gradcheck(linear, (*parts, None))


@needs_onednn
def test_other_types_and_modes_are_torchs() -> None:
    x, weight, bias = operands(40)
    with product.using("onednn"):
        halves = [part.bfloat16() for part in (x, weight, bias)]
        assert torch.equal(linear(*halves), F.linear(*halves))
        with torch.autocast("cpu", torch.bfloat16):
            assert linear(x, weight, bias).dtype == torch.bfloat16
        value, slope = torch.func.jvp(lambda x: linear(x, weight, bias), (x,), (x,))
        assert torch.allclose(value - slope, bias.expand_as(value), atol=1e-4)


def test_a_torch_without_the_product_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise AttributeError("no such op")

    def wrong(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return F.linear(x, weight, bias) + 1

    for broken in (missing, wrong):
        monkeypatch.setattr(product, "_product", broken)
        monkeypatch.setattr(product, "maker", lambda: "AuthenticAMD")
        monkeypatch.delenv("VOKENS_PRODUCT", raising=False)
        product._available.cache_clear()
        product._chosen.cache_clear()
        try:
            assert product.backend() == "torch"
            x, weight, bias = operands(40)
            assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))
            with pytest.raises(ConfigError, match="no oneDNN"), product.using("onednn"):
                pass
        finally:
            monkeypatch.undo()
            product._available.cache_clear()
            product._chosen.cache_clear()


@needs_onednn
def test_few_rows_of_large_weights_are_onednns_on_every_x86(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a batch's decoding; one row, many rows, small weights, gradients and a wish for torch are torch's."""
    monkeypatch.setattr(product, "_chosen", lambda: "torch")
    monkeypatch.delenv("VOKENS_PRODUCT", raising=False)
    assert product._available()  # by a product of its own, once
    calls, plain = [], product._product
    monkeypatch.setattr(product, "_product", lambda *parts: calls.append(len(parts[0])) or plain(*parts))
    x, weight = torch.randn(20, 1024), torch.randn(1024, 1024) / 32
    with torch.no_grad():
        for rows in (1, 3, 4, 8, 15, 16):
            assert torch.allclose(linear(x[:rows], weight), F.linear(x[:rows], weight), atol=1e-4)
        linear(x[:8], weight[:512])
        linear(x[:8].double(), weight.double())
        with product.using("torch"):
            linear(x[:8], weight)
    linear(x[:8], weight)
    assert calls == [4, 8, 15]


@needs_onednn
def test_distances_to_codebooks_are_this_processors_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fourteenth of SpeechTokenizer's encoder; the ids are those of torch's product."""
    torch.manual_seed(0)
    residual, unit, x = EuclideanCodebook(64, 256), UnitVectorQuantizer(64, 256), torch.randn(2, 30, 64)
    residual.embed.normal_()

    def ids() -> list[torch.Tensor]:
        with torch.no_grad():
            return [residual.encode(x), unit.encode(x)[0]]

    with product.using("torch"):
        expected = ids()
    calls, plain = [], product._product
    monkeypatch.setattr(product, "_product", lambda *parts: calls.append(parts) or plain(*parts))
    with product.using("onednn"):
        assert all(map(torch.equal, ids(), expected))
    assert len(calls) == 2


def test_linear_is_a_linear_and_others_networks_take_it() -> None:
    theirs = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Sequential(nn.Linear(8, 4, bias=False)))
    names, x = list(theirs.state_dict()), torch.randn(5, 8)
    before = theirs(x)
    product.use_in(theirs)
    assert list(theirs.state_dict()) == names
    assert all(type(part) is Linear for part in theirs.modules() if isinstance(part, nn.Linear))
    assert torch.allclose(theirs(x), before, atol=1e-6)


def test_an_unknown_product_is_refused() -> None:
    with pytest.raises(ConfigError, match="'blas', and can be torch"), product.using("blas"):
        pass


@needs_onednn
@pytest.mark.parametrize("mask", ["none", "lengths", "causal", "bias", "padding"])
def test_attention_equals_torch(mask: str) -> None:
    draw = seeded(0)
    q, k, v = (torch.randn(2, 3, length, 64, generator=draw) for length in (300, 350, 350))
    given = {
        "none": None,
        "lengths": torch.arange(350) < torch.tensor([350, 200])[:, None, None, None],
        "causal": torch.ones(300, 350, dtype=torch.bool).tril(50),
        "bias": torch.randn(2, 3, 300, 350, generator=draw),
        "padding": torch.arange(350) < torch.tensor([350, 0])[:, None, None, None],
    }[mask]
    with product.using("onednn"), torch.inference_mode():
        y = attention(q, k, v, given, 0.1)
    with torch.inference_mode():
        assert (y - F.scaled_dot_product_attention(q, k, v, given, scale=0.1)).abs().max() < 2e-6


def test_a_type_without_instructions_gives_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(product, "_flags", lambda: {"avx2"})
    product.fast.cache_clear()
    assert [product.fast(dtype) for dtype in (torch.bfloat16, torch.float32)] == [False, True]
    product.warn_where_slow(torch.bfloat16, torch.device("cpu"))
    product.warn_where_slow(torch.float32, torch.device("cpu"))
    product.warn_where_slow(torch.bfloat16, torch.device("cuda"))
    product.fast.cache_clear()
    (line,) = caplog.messages
    assert line.startswith("vokens: warning: bfloat16 was requested")


@needs_onednn
@pytest.mark.parametrize("backward", [False, True])
def test_an_lstm_over_reordered_weights_equals_torchs(backward: bool) -> None:
    """Over two spans, of which the second has fewer rows."""
    torch.manual_seed(0)
    lstm = SkipLSTM(512, 1, bidirectional=True).requires_grad_(False)
    spans = torch.randn(40, 5, 512), torch.randn(33, 4, 512)

    def run() -> list[torch.Tensor]:
        first, state = lstm.step(spans[0], None, 0, backward)
        second, (hidden, cell) = lstm.step(spans[1], state, 0, backward)
        return [first, second, hidden, cell]

    with torch.inference_mode():
        assert product.reordered(lstm.lstm.weight_hh_l0, 5) is not None
        mine = run()
        with product.using("torch"):
            assert product.reordered(lstm.lstm.weight_hh_l0, 5) is None
            reference = run()
        lstm.lstm.weight_hh_l0.zero_(), lstm.lstm.weight_hh_l0_reverse.zero_()
        assert not torch.allclose(run()[1], mine[1], atol=1e-2)  # no copy outlives its weight
    for one, other in zip(mine, reference, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


@needs_onednn
def test_weights_are_reordered_only_where_it_pays() -> None:
    weight = torch.randn(2048, 512)
    with torch.no_grad():
        for rows in (1, 2, 64):
            assert product.reordered(weight, rows) is None
        assert product.reordered(weight[:64], 8) is None
        assert product.reordered(weight.double(), 8) is None
    assert product.reordered(weight, 8) is None  # autograd needs the plain one
