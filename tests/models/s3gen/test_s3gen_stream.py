"""S3Gen's streams equal the whole utterance under the same mask; sound comes at once; prompts are kept."""

import copy
import gc
import pickle
import weakref
from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from conftest import refused
from s3gen_model import build
from s3gen_weights import build_flow, golden, ids, reduced
from test_hift import REDUCED
from test_hift import build as build_hift

from vokens.errors import AudioError, ConfigError, TokensError
from vokens.models.s3gen import S3GenModel
from vokens.models.s3gen.flow import MelStream
from vokens.models.s3gen.voice import ReferenceVoice, one_voice

REFS = golden("embed_ref")
LAG = 9508  # samples that the vocoder stays behind, of source v2


@cache
def calm(dialect: str) -> S3GenModel:
    """The golden law makes pitch 100 times as sensitive, so that rounding of a mel, 1e-6, turns the ninth harmonic by
    6e-3 rad in a second: undone here."""
    if dialect == "cosyvoice3":
        vocoder = build_hift(replace(REDUCED, source="v3"))
        model = S3GenModel.from_parts(flow=build_flow(reduced(dialect)), mel2wav=vocoder)
    else:
        model = build(dialect)
    model.mel2wav.f0_predictor.classifier.weight.data /= 100
    return model


@pytest.fixture
def turbo() -> S3GenModel:
    return calm("chatterbox-turbo")


def voice(case: str = "even24k") -> ReferenceVoice:
    return one_voice({k: REFS[f"{case}/{k}"] for k in ("prompt_token", "prompt_feat", "embedding")})


@pytest.mark.parametrize(
    ("dialect", "case"),
    [("cosyvoice2", "even24k"), ("chatterbox-turbo", "odd24k"), ("cosyvoice3", "even24k")],
)
def test_stream_equals_whole(dialect: str, case: str) -> None:
    model, owner, tokens = calm(dialect), voice(case), ids(26)
    plan = {"first_hop": 3, "hop": 5, "context": 10}
    chunks = model.chunks(owner, **plan)
    assert chunks.border(len(model.flow.cut_prompt(owner.voice).tokens) + 3) > 0
    whole, _ = model.inference(tokens, ref_dict=owner, chunks=chunks, seed=7, n_cfm_timesteps=2)
    for pieces in (tokens.tolist(), [tokens[:9], tokens[9:]], [tokens.numpy()]):
        found = [*model.stream(pieces, owner, **plan, seed=7, n_cfm_timesteps=2)]
        assert all(sound.dtype == np.float32 and sound.ndim == 1 for sound in found)
        np.testing.assert_allclose(np.concatenate(found), whole[0].numpy(), atol=1e-4, rtol=0)
        if dialect == "cosyvoice3":  # sound comes after a chunk, three tokens and four frames
            assert len(found[0]) == 6 * 480 - 1924


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


def test_bad_plans_and_voices(turbo: S3GenModel) -> None:
    for wrong in ({"first_hop": 0}, {"first_hop": 9, "hop": 5}, {"context": -1}):
        refused(ConfigError, "first_hop", turbo.stream, ids(5), voice(), **wrong)
    refused(AudioError, "embed_ref", lambda: turbo.stream(ids(5), {}))
    refused(TokensError, "6561", lambda: list(turbo.stream([1, 6561], voice())))
    refused(TokensError, "without a token", lambda: list(turbo.stream([], voice())))
