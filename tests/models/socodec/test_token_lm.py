"""The token language model: streams are delayed, caches equal the whole, rows are as if alone, a corpus is learned."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import refused, seeded
from torch.testing import assert_close
from training import Build

import vokens
from vokens.errors import ConfigError, TokensError
from vokens.lm.cache import KVCache
from vokens.lm.sampling import GREEDY, SamplingParams
from vokens.models.socodec.lm import TokenLM, TokenLMConfig, delayed
from vokens.tokens import Tokens

TASK, SIZES = "token_lm", (7, 5, 6)


def tokens(*lengths: int, vector_width: int = 0, seed: int = 0) -> Tokens:
    draw = seeded(seed)
    codes = [torch.randint(0, size, (len(lengths), max(lengths)), generator=draw) for size in SIZES]
    vector = torch.randn(len(lengths), vector_width, generator=draw) if vector_width else None
    facts, frames = ("tiny", "", 16000, 25 / 3, SIZES), torch.tensor(lengths)
    return Tokens(torch.stack(codes, 1), frames, frames * 1920, *facts, global_vector=vector)


def tiny(**settings: int) -> TokenLM:
    torch.manual_seed(0)
    lm = TokenLM(TokenLMConfig(codebook_sizes=SIZES, width=32, layers=2, heads=2, model="tiny", **settings))
    for parameter in lm.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(6)  # as sure of itself as a trained one
    return lm.eval().requires_grad_(False)


@pytest.mark.parametrize("delay", [0, 1, 3])
def test_streams_are_delayed(delay: int) -> None:
    some = tokens(6, 1, 4)
    steps = delayed(some.codes, some.lengths, SIZES, delay)
    assert steps.shape == (3, 3, 6 + 2 + 2 * delay)
    for j, size in enumerate(SIZES):
        first = 1 + delay * j
        assert (steps[:, j, :first] == size + 1).all()
        for row, length in enumerate(some.lengths):
            assert torch.equal(steps[row, j, first : first + length], some.codes[row, j, :length])
            assert (steps[row, j, first + length :] == size).all()


@pytest.mark.parametrize("pieces", [(1,) * 9, (4, 1, 4), (2, 7)])
def test_the_cache_equals_the_whole(pieces: tuple[int, ...]) -> None:
    lm, some = tiny(delay=1, vector_width=4), tokens(5, 5, vector_width=4)
    steps = delayed(some.codes, some.lengths, SIZES, 1)
    whole = lm(steps, some.global_vector)
    cache = KVCache(2)
    found = [lm(piece, some.global_vector, cache) for piece in steps.split(list(pieces), 2)]
    for j, wanted in enumerate(whole):
        assert_close(torch.cat([logits[j] for logits in found], 1), wanted, rtol=1e-5, atol=1e-5)


def test_the_future_is_not_seen() -> None:
    lm, some = tiny(delay=1), tokens(6)
    steps = delayed(some.codes, some.lengths, SIZES, 1)
    other = steps.clone()
    other[:, :, 4:] = 0
    for one, two in zip(lm(steps), lm(other), strict=True):
        assert torch.equal(one[:, :4], two[:, :4])


def test_losses_of_ragged_rows_are_those_of_each() -> None:
    lm, some = tiny(delay=2), tokens(6, 2, 4)
    each = [lm.losses(some.codes[i : i + 1, :, :n], some.lengths[i : i + 1]) for i, n in enumerate((6, 2, 4))]
    weights = torch.tensor([7.0, 3.0, 5.0])  # codes and the end
    wanted = (torch.stack(each) * weights[:, None]).sum(0) / weights.sum()
    assert_close(lm.losses(some.codes, some.lengths), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("delay", [0, 1])
def test_sampled_rows_are_those_alone_and_go_on_from_their_prompts(delay: int) -> None:
    lm, some = tiny(delay=delay, vector_width=4), tokens(5, 2, 3, vector_width=4)
    free = SamplingParams()
    together = lm.generate(prompt=some, max_frames=12, sampling=free, seed=3)
    assert len(set(together.lengths.tolist())) > 1 or int(together.lengths[0]) == 12
    for i, given in enumerate(some.lengths.tolist()):
        assert torch.equal(together.codes[i, :, :given], some.codes[i, :, :given])
    assert some.global_vector is not None
    alone = lm.generate(prompt=some[0], max_frames=12, sampling=free, seed=3)
    assert torch.equal(alone.codes[0], together.codes[0, :, : alone.lengths[0]])
    assert torch.equal(lm.generate(prompt=some, max_frames=12, sampling=free, seed=3).codes, together.codes)
    assert together.model == "tiny"


def test_what_does_not_fit_is_named() -> None:
    refused(TokensError, "global vectors", lambda: tiny(vector_width=4).generate(max_frames=2))
    with pytest.raises(TokensError, match="prompt"):
        TokenLM(TokenLMConfig(codebook_sizes=(3,), width=8, layers=1, heads=2)).generate(prompt=tokens(2))
    refused(ConfigError, "multiple", TokenLMConfig, width=30, heads=4)


@pytest.mark.parametrize("delay", [0, 1])
def test_a_tiny_corpus_is_learned_by_heart(trainer_for: Build, delay: int) -> None:
    trainer = trainer_for(f"model.delay={delay}")
    for _ in range(80):
        trainer.train_step()
    assert trainer.validate()["valid/nats"] < 0.3
    row = trainer.dataset[0].codes
    begun = replace(tokens(2), codes=torch.from_numpy(row[None, :, :2].astype(np.int64)))
    said = trainer.final_model().generate(prompt=begun, sampling=GREEDY, max_frames=20)
    assert torch.equal(said.codes[0], torch.from_numpy(row.astype(np.int64)))


def test_the_trained_model_samples(finished: Build) -> None:
    lm = vokens.load(finished(TASK).out / "lm")
    said = lm.generate(2, max_frames=6, seed=1)
    assert said.model == "tiny"
    assert said.codes.shape[1] == 3
    assert 1 <= int(said.lengths.max()) <= 6
