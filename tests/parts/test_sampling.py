"""Sampling: the published draws for every seed, ties, repeated tokens, forbidden tokens."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import refused, seeded
from safetensors.torch import load_file
from torch.testing import assert_close

from vokens.errors import ConfigError
from vokens.lm.sampling import COSYVOICE, GREEDY, SamplingParams, by_rank, keep_likeliest
from vokens.nn.sampling import Sampler, Sampling

GOLDEN = load_file(Path(__file__).parents[1] / "golden/learnable/sampling.safetensors")
NUCLEUS = replace(COSYVOICE, repeats=0)


@pytest.mark.parametrize("row", range(6))
def test_nucleus_and_repetition_awareness_draw_as_published(row):
    """With a generator for each draw, and one that is carried through all."""
    logp, history = GOLDEN["logp"][row], GOLDEN[f"{row}.history"].tolist()
    assert torch.equal(by_rank(logp, 0.8, 25)[0], GOLDEN[f"{row}.kept"])
    for name, sampler in {
        "nucleus": NUCLEUS,
        "ras": COSYVOICE,
        "ras.win4_tau.5": replace(COSYVOICE, window=4, repeats=2),
    }.items():
        found = [sampler.draw(logp, history, seeded(1000 + s)) for s in range(24)]
        assert found == GOLDEN[f"{row}.{name}"].tolist(), name
    sampler, generator = replace(COSYVOICE, top_p=0.6, top_k=5), seeded(5)
    stream = [sampler.draw(logp, history, generator) for _ in range(24)]
    assert stream == GOLDEN[f"{row}.ras.stream"].tolist()


def test_ties_stay_in_order():
    scores = torch.zeros(7)
    assert torch.equal(by_rank(scores, 0.8, 25)[0], GOLDEN["ties.kept"])
    generator = seeded(3)
    assert [NUCLEUS.draw(scores, (), generator) for _ in range(24)] == GOLDEN["ties.nucleus"].tolist()
    assert GREEDY.draw(scores) == 0


def test_top_p_is_of_the_top_k_or_of_all():
    logits = torch.tensor([0.1, 0.4, 0.3, 0.2]).log()
    for law, wanted in (
        ((0, 1.0), (0.1, 0.4, 0.3, 0.2)),
        ((2, 1.0), (0.0, 4 / 7, 3 / 7, 0.0)),
        ((0, 0.5), (0.0, 4 / 7, 3 / 7, 0.0)),
        ((2, 0.5), (0.0, 1.0, 0.0, 0.0)),  # the likeliest holds 4/7 of the two
    ):
        assert_close(keep_likeliest(logits, *law).softmax(0), torch.tensor(wanted))
    assert by_rank(logits, 0.5, 2)[0].tolist() == [1, 2]  # and 0.4 of all


def test_temperature_sharpens_and_flattens():
    scores = torch.tensor([0.0, 1.0, 2.0])
    cold, hot = SamplingParams(0.01), SamplingParams(100.0)
    assert {cold.draw(scores, (), seeded(s)) for s in range(20)} == {2}
    assert {hot.draw(scores, (), seeded(s)) for s in range(40)} == {0, 1, 2}


def test_frequencies_are_the_probabilities():
    scores, generator = torch.tensor([0.5, 0.3, 0.2]).log(), seeded(0)
    draws = [SamplingParams().draw(scores, (), generator) for _ in range(4000)]
    counts = torch.bincount(torch.tensor(draws), minlength=3)
    torch.testing.assert_close(counts / 4000, scores.exp(), atol=0.03, rtol=0)


@pytest.mark.parametrize(
    "sampler",
    [GREEDY, SamplingParams(), SamplingParams(top_k=3), NUCLEUS, COSYVOICE, SamplingParams(repeats=1)],
)
def test_forbidden_tokens_never_come(sampler):
    scores = torch.tensor([9.0, 0.0, 1.0, 9.0]).masked_fill(torch.tensor([1, 0, 0, 1]).bool(), -torch.inf)
    sampler = replace(sampler, top_p=1.0)
    assert {sampler.draw(scores, [2, 2], seeded(s)) for s in range(60)} <= {1, 2}


def test_a_repeated_token_can_be_masked():
    scores = torch.tensor([5.0, 0.0, 0.0])
    sampler = replace(COSYVOICE, mask_repeated=True)
    assert {sampler.draw(scores, [], seeded(s)) for s in range(20)} == {0}
    assert {sampler.draw(scores, [0], seeded(s)) for s in range(20)} == {1, 2}
    alone = torch.tensor([5.0, -torch.inf, -torch.inf])
    assert sampler.draw(alone, [0], seeded(0)) == 0


def test_names_of_the_last_release_mean_what_they_meant():
    assert Sampler() == COSYVOICE
    assert Sampler("greedy") == GREEDY == SamplingParams(temperature=0.0)
    assert Sampler("full", temperature=0.5) == SamplingParams(0.5)
    assert Sampler("nucleus", 0.7, 30) == SamplingParams(top_k=30, top_p=0.7, top_p_first=True)
    assert Sampler(window=4, repeats=0.5).repeats == 2  # twice or more
    assert Sampling(0.9, 50, 0.9, 4, 0.25) == SamplingParams(0.9, 50, 0.9, 4, 2)  # more than once
    assert Sampling() == SamplingParams()
    refused(ConfigError, "accepted", Sampler, "beam")


@pytest.mark.parametrize(
    "wrong",
    [{"top_p": 0.0}, {"top_p": 1.5}, {"top_k": -1}, {"temperature": -1.0}, {"window": 0}, {"repeats": -1}],
)
def test_unusable_settings_are_named(wrong):
    refused(ConfigError, "accepted", SamplingParams, **wrong)
