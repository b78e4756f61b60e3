"""Decoder language models: ragged batches are their rows, pieces are the whole, rows stop by themselves."""

import pytest
import torch
from torch.testing import assert_close

from vokens.lm import KVCache, SamplingParams, decode
from vokens.lm.cache import causal_mask, left_padded
from vokens.lm.decode import by_rows
from vokens.lm.qwen2 import Qwen2, Qwen2Sizes
from vokens.lm.transformer import CausalTransformer


@pytest.fixture(params=["gpt", "qwen2"])
def network(request):
    torch.manual_seed(0)
    if request.param == "gpt":
        return CausalTransformer(32, 2, 4).eval().requires_grad_(False)
    return Qwen2(Qwen2Sizes(8, 32, 64, 2, 4, 2)).eval().requires_grad_(False)


def run(network, x, kept=None):
    return network(x, cache=kept)


def test_a_ragged_batch_is_its_rows_and_pieces_are_the_whole(network, monkeypatch):
    monkeypatch.setattr("vokens.lm.cache.GROWTH", 2)  # buffers grow many times
    rows = [torch.randn(count, 32) for count in (5, 2, 3)]
    x, mask = left_padded(rows)
    assert mask is not None
    assert mask.sum(1).tolist() == [5, 2, 3]
    kept, more = KVCache(2, mask), torch.randn(3, 9, 32)
    found = [run(network, x, kept), *(run(network, piece, kept) for piece in more.split([1, 3, 1, 4], 1))]
    assert kept.length == 14
    for row, alone in enumerate(rows):
        whole = run(network, torch.cat([alone, more[row]])[None])[0]
        assert_close(torch.cat(found, 1)[row, 5 - len(alone) :], whole, rtol=1e-5, atol=1e-5)


def test_masks_of_prefixes_and_padding():
    device = torch.device("cpu")
    assert causal_mask(1, 7, device) is None
    whole = causal_mask(2, 4, device)
    assert whole is not None
    assert whole[0, 0].tolist() == [[True, True, True, False], [True] * 4]
    padding = torch.tensor([[False, True, True]])
    padded = causal_mask(3, 3, device, padding)
    assert padded is not None
    assert padded[0, 0].tolist() == [[True, False, False], [False, True, False], [False, True, True]]
    text = causal_mask(3, 3, device, torch.tensor([[True, False, True]]), prefix=2)
    assert text is not None
    assert text[0, 0].tolist() == [[True, False, False], [True, False, False], [True, False, True]]


def test_rows_stop_at_their_end_and_their_limits():
    """Logits that count up to 3, the end: a row may not end before its least, and does at its most."""
    steps: list[list[int]] = []

    def logits(last: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot((last + 1).clamp(max=3), 4).float()

    def step(last: torch.Tensor) -> torch.Tensor:
        steps.append(last.tolist())
        return logits(last)

    options = {"end": 3, "limits": [(0, 9), (4, 9), (0, 1), (0, 0)], "generators": [None] * 4}
    greedy = SamplingParams(temperature=0)
    rows = by_rows(decode(logits(torch.tensor([0, 0, 0, 0])), step, greedy, **options), 4)
    assert [row.tolist() for row in rows] == [[1, 2], [1, 2, 0, 1, 2], [1], []]
    assert steps[0] == [1, 1, 1, 0]  # what has ended reads something, unheard


def test_a_history_and_the_likeliest_end_count():
    even = torch.zeros(1, 3)
    once = SamplingParams(repeats=1, mask_repeated=True, top_k=1)
    options = {"end": 2, "limits": [(0, 1)], "generators": [None]}
    ((token,),) = decode(even.clone(), lambda _: even, once, history=[[0]], **options)
    assert token != 0
    likely = torch.tensor([[0.0, 0.0, 1.0]])
    drawn = SamplingParams(temperature=100.0)
    assert not list(decode(likely, lambda _: likely, drawn, end_if_likeliest=True, **options))
