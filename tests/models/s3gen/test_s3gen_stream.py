"""S3Gen's streams equal the whole utterance under the same mask; work and memory do not grow; prompts are kept."""

import copy
import gc
import pickle
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from conftest import refused, seeded
from s3gen_model import build, golden
from torch import Tensor

from vokens.errors import AudioError, ConfigError, TokensError
from vokens.models.s3gen import S3GenModel
from vokens.models.s3gen.flow import MelStream
from vokens.models.s3gen.voice import ReferenceVoice, one_voice

REFS = golden("embed_ref")
LAG = 9508  # samples that the vocoder stays behind, of source v2


def calm(model: S3GenModel) -> S3GenModel:
    """The golden law makes pitch 100 times as sensitive, so that rounding of a mel, 1e-6, turns the ninth harmonic by
    6e-3 rad in a second: undone here."""
    model.mel2wav.f0_predictor.classifier.weight.data /= 100
    return model


@pytest.fixture(scope="module")
def model() -> S3GenModel:
    return calm(build("cosyvoice2"))


@pytest.fixture(scope="module")
def turbo() -> S3GenModel:
    return calm(build("chatterbox-turbo"))


def voice(case: str = "even24k") -> ReferenceVoice:
    return one_voice({k: REFS[f"{case}/{k}"] for k in ("prompt_token", "prompt_feat", "embedding")})


def ids(count: int, seed: int = 0) -> Tensor:
    return torch.randint(6561, (count,), generator=seeded(seed))


@pytest.mark.parametrize(("name", "case"), [("model", "even24k"), ("turbo", "odd24k")])
def test_stream_equals_whole(name: str, case: str, request: pytest.FixtureRequest) -> None:
    model, owner, tokens = request.getfixturevalue(name), voice(case), ids(26)
    plan = {"first_hop": 3, "hop": 5, "context": 10}
    chunks = model.chunks(owner, **plan)
    assert chunks.border(len(model.flow.cut_prompt(owner.voice).tokens) + 3) > 0
    whole, _ = model.inference(tokens, ref_dict=owner, chunks=chunks, seed=7, n_cfm_timesteps=2)
    for pieces in (tokens.tolist(), [tokens[:9], tokens[9:]], [tokens.numpy()]):
        found = [*model.stream(pieces, owner, **plan, seed=7, n_cfm_timesteps=2)]
        assert all(sound.dtype == np.float32 and sound.ndim == 1 for sound in found)
        np.testing.assert_allclose(np.concatenate(found), whole[0].numpy(), atol=1e-4, rtol=0)


def test_a_whole_utterance_at_once_still_comes_chunk_by_chunk(turbo: S3GenModel) -> None:
    found = [len(sound) for sound in turbo.stream([ids(60)], voice(), first_hop=10, hop=10, context=10)]
    assert len(found) >= 5


def test_sound_comes_while_tokens_arrive(turbo: S3GenModel) -> None:
    given = 0

    def arriving() -> Iterator[int]:
        nonlocal given
        for token in ids(40).tolist():
            given += 1
            yield token

    heard, when = 0, []
    for sound in turbo.stream(arriving(), voice(), first_hop=10, hop=10, context=10):
        heard += len(sound)
        when.append((given, heard))
    assert when[0] == (13, 20 * 480 - 9268)  # what the first chunk has beyond the vocoder's look-ahead
    assert all(sound >= (tokens - 13) * 960 - LAG for tokens, sound in when)
    assert heard == 40 * 960


def test_prompt_is_computed_once(turbo: S3GenModel, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, starts = voice(), []
    start = MelStream.start
    monkeypatch.setattr(MelStream, "start", lambda *given: starts.append(1) or start(*given))
    first, again = (np.concatenate([*turbo.stream(ids(6), owner, hop=10)]) for _ in range(2))
    assert len(starts) == 1
    assert np.array_equal(first, again)
    _ = [*turbo.stream(ids(6), owner, hop=11)]  # another plan
    assert len(starts) == 2
    owner.forget()
    _ = [*turbo.stream(ids(6), owner, hop=10)]
    assert len(starts) == 3


def test_a_voice_holds_no_model(turbo: S3GenModel) -> None:
    owner, flow = voice(), copy.deepcopy(turbo.flow)
    owner.start(MelStream(flow, schedule=turbo.flow.schedule(1)))
    assert len(owner._starts) == 1
    assert pickle.loads(pickle.dumps(owner)).voice.tokens.equal(owner.voice.tokens)
    gone = weakref.ref(flow.estimator)
    del flow
    gc.collect()
    assert gone() is None
    assert not owner._starts


def test_work_and_memory_do_not_grow(turbo: S3GenModel) -> None:
    """Keys that a chunk sees are as many after 40 chunks as after 5, and so is what the vocoder keeps."""
    owner, flow = voice(), turbo.flow
    stream = MelStream(flow, chunks=turbo.chunks(owner, first_hop=5, hop=5, context=10))
    state, sizes = owner.start(stream), []
    vocoder = turbo.mel2wav.init_state(1, 0)
    for chunk in range(40):
        mel, state = stream.step(state, ids(8 if chunk == 0 else 5, chunk))
        _, vocoder = turbo.mel2wav.step(mel, vocoder)
        sizes.append((state.nbytes, sum(kept.nbytes for kept in vocoder.layers.values())))
    assert len(set(sizes[5:])) == 1


def test_bad_plans_and_voices(turbo: S3GenModel) -> None:
    for wrong in ({"first_hop": 0}, {"first_hop": 9, "hop": 5}, {"context": -1}):
        refused(ConfigError, "first_hop", turbo.stream, ids(5), voice(), **wrong)
    refused(AudioError, "embed_ref", lambda: turbo.stream(ids(5), {}))
    refused(TokensError, "6561", lambda: list(turbo.stream([1, 6561], voice())))
    refused(TokensError, "without a token", lambda: list(turbo.stream([], voice())))
