"""Sampling: the published draws for every seed, ties, repeated tokens, forbidden tokens."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vokens.errors import ConfigError
from vokens.nn.sampling import Sampler, draw, kept, nucleus

GOLDEN = load_file(Path(__file__).parent / "golden/learnable/sampling.safetensors")
ROWS = range(6)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("row", ROWS)
def test_nucleus_keeps_and_draws_as_published(row):
    logp = GOLDEN["logp"][row]
    assert torch.equal(kept(logp, 0.8, 25)[0], GOLDEN[f"{row}.kept"])
    assert [nucleus(logp, 0.8, 25, seeded(1000 + s)) for s in range(24)] == GOLDEN[f"{row}.nucleus"].tolist()


@pytest.mark.parametrize("row", ROWS)
def test_repetition_aware_draws_as_published(row):
    logp, history = GOLDEN["logp"][row], GOLDEN[f"{row}.history"].tolist()
    for name, sampler in (("ras", Sampler()), ("ras.win4_tau.5", Sampler(window=4, repeats=0.5))):
        found = [sampler.draw(logp, history, seeded(1000 + s)) for s in range(24)]
        assert found == GOLDEN[f"{row}.{name}"].tolist()


@pytest.mark.parametrize("row", ROWS)
def test_a_generator_is_carried_through_many_draws(row):
    logp, history = GOLDEN["logp"][row], GOLDEN[f"{row}.history"].tolist()
    sampler, generator, found = Sampler(top_p=0.6, top_k=5), seeded(5), []
    for _ in range(24):
        found.append(sampler.draw(logp, history, generator))
    assert found == GOLDEN[f"{row}.ras.stream"].tolist()


def test_ties_stay_in_order():
    scores = torch.zeros(7)
    assert torch.equal(kept(scores, 0.8, 25)[0], GOLDEN["ties.kept"])
    generator = seeded(3)
    assert [nucleus(scores, 0.8, 25, generator) for _ in range(24)] == GOLDEN["ties.nucleus"].tolist()
    assert Sampler("greedy").draw(scores) == 0


def test_temperature_sharpens_and_flattens():
    scores = torch.tensor([0.0, 1.0, 2.0])
    cold, hot = Sampler("full", temperature=0.01), Sampler("full", temperature=100.0)
    assert {cold.draw(scores, (), seeded(s)) for s in range(20)} == {2}
    assert {hot.draw(scores, (), seeded(s)) for s in range(40)} == {0, 1, 2}


def test_frequencies_are_the_probabilities():
    scores, generator = torch.tensor([0.5, 0.3, 0.2]).log(), seeded(0)
    counts = torch.bincount(torch.tensor([draw(scores, generator) for _ in range(4000)]), minlength=3)
    torch.testing.assert_close(counts / 4000, scores.exp(), atol=0.03, rtol=0)


@pytest.mark.parametrize("kind", ["greedy", "full", "nucleus", "ras"])
def test_forbidden_tokens_never_come(kind):
    scores = torch.tensor([9.0, 0.0, 1.0, 9.0]).masked_fill(torch.tensor([1, 0, 0, 1]).bool(), -torch.inf)
    sampler = Sampler(kind, top_p=1.0)
    assert {sampler.draw(scores, [2, 2], seeded(s)) for s in range(60)} <= {1, 2}


def test_a_repeated_token_can_be_masked():
    scores = torch.tensor([5.0, 0.0, 0.0])
    sampler = Sampler(mask_repeated=True)
    assert {sampler.draw(scores, [], seeded(s)) for s in range(20)} == {0}
    assert {sampler.draw(scores, [0], seeded(s)) for s in range(20)} == {1, 2}
    alone = torch.tensor([5.0, -torch.inf, -torch.inf])
    assert sampler.draw(alone, [0], seeded(0)) == 0


@pytest.mark.parametrize("wrong", [{"kind": "beam"}, {"top_p": 0.0}, {"top_k": 0}, {"temperature": 0.0}])
def test_unusable_settings_are_named(wrong):
    with pytest.raises(ConfigError, match="accepted"):
        Sampler(**wrong)
