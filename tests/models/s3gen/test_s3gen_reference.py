"""The reference voice of S3Gen against recorded ref_dicts of Chatterbox; batches, rates, bad input."""

import numpy as np
import pytest
import torch
from conftest import refused, speechlike
from s3gen_weights import close, golden, weight

from vokens.errors import AudioError
from vokens.models.s3gen.voice import embed_ref
from vokens.models.s3tokenizer import S3Tokenizer, S3TokenizerConfig
from vokens.nn.campplus import CAMPPlus

GOLDEN = golden("embed_ref")
RATES = {"even24k": 24000, "odd24k": 24000, "from44k": 44100, "from16k": 16000, "silence": 24000}


@pytest.fixture(scope="module")
def parts() -> dict[str, torch.nn.Module]:
    tokenizer = S3Tokenizer(S3TokenizerConfig(width=128, heads=2, layers=2))
    state = {name: weight(f"tokenizer.{name}", value) for name, value in tokenizer.to_published().items()}
    speaker = CAMPPlus().eval().requires_grad_(False)
    speaker.load_state_dict({k: weight(f"speaker_encoder.{k}", v) for k, v in speaker.state_dict().items()})
    return {"tokenizer": S3Tokenizer.from_published(state, tokenizer.config), "speaker_encoder": speaker}


@pytest.mark.parametrize("name", RATES)
def test_recorded(parts, name: str) -> None:
    ref = embed_ref(GOLDEN[f"{name}/wav"], RATES[name], cut_mel=False, allow_silent=True, **parts)
    assert torch.equal(ref["prompt_token"], GOLDEN[f"{name}/prompt_token"])
    assert torch.equal(ref["prompt_token_len"], GOLDEN[f"{name}/prompt_token_len"])
    for key, atol in (("prompt_feat", 1e-4), ("embedding", 2e-5)):
        close(ref[key], GOLDEN[f"{name}/{key}"], atol)


def test_two_frames_for_each_token(parts) -> None:
    whole = embed_ref(GOLDEN["odd24k/wav"], 24000, cut_mel=False, **parts)
    cut = embed_ref(GOLDEN["odd24k/wav"], 24000, **parts)
    assert whole["prompt_feat"].shape == (1, 9, 80)
    assert cut["prompt_feat"].shape == (1, 8, 80)
    assert cut["prompt_feat_len"].tolist() == [8]
    assert torch.equal(cut["prompt_feat"], whole["prompt_feat"][:, :8])
    assert torch.equal(cut["prompt_token"], whole["prompt_token"])


@pytest.mark.parametrize("rate", [22050, 24000])
def test_batch_equals_single(parts, rate: int) -> None:
    waves = [torch.from_numpy(speechlike(int(s * rate), i, rate)) for i, s in enumerate((0.31, 0.08, 0.2))]
    batch = torch.full((3, len(waves[0])), 0.5)  # padding that would be heard
    for row, wave in zip(batch, waves, strict=True):
        row[: len(wave)] = wave
    together = embed_ref(batch, rate, lengths=torch.tensor([len(wave) for wave in waves]), **parts)
    for row, wave in enumerate(waves):
        alone = embed_ref(wave, rate, **parts)
        tokens, frames = (int(alone[f"prompt_{kind}_len"]) for kind in ("token", "feat"))
        assert together["prompt_token_len"][row] == tokens
        assert together["prompt_feat_len"][row] == frames == 2 * tokens
        assert torch.equal(together["prompt_token"][row, :tokens], alone["prompt_token"][0])
        for key in ("prompt_feat", "embedding"):
            value = together[key][row, : alone[key].shape[1]]
            close(value, alone[key][0], 2e-5)
        assert not together["prompt_token"][row, tokens:].any()
        assert not together["prompt_feat"][row, frames:].any()


def test_array_and_batch_of_one(parts) -> None:
    wave = speechlike(4000, 1, 16000)
    forms = wave, torch.from_numpy(wave)[None], np.float64(wave)
    found = [embed_ref(given, 16000, **parts) for given in forms]
    for other in found[1:]:
        assert other.pop("tokenizer") == found[0]["tokenizer"]
        assert all(torch.equal(value, found[0][key]) for key, value in other.items())


VOICE = torch.from_numpy(speechlike(8000, 0, 16000))


@pytest.mark.parametrize(
    ("wave", "rate", "options", "message"),
    [
        (VOICE[:1279], 16000, {}, "1279 samples"),
        (torch.zeros(0), 16000, {}, "0 samples"),
        (torch.zeros(8000), 16000, {}, "silent"),
        (VOICE.clone().index_fill(0, torch.tensor([5]), torch.nan), 16000, {}, "NaN"),
        (VOICE * 32768, 16000, {}, "32768"),
        ((VOICE * 32768).to(torch.int16), 16000, {}, "floats"),
        (VOICE[None, None], 16000, {}, "shape"),
        (VOICE, 16, {}, "ref_sr=16"),
        (VOICE, 16000.0, {}, "ref_sr=16000.0"),
        (VOICE, None, {}, "ref_sr=None"),
        (VOICE, -16000, {}, "ref_sr"),
        (VOICE, 16000, {"lengths": torch.tensor([8001])}, "lengths"),
        (VOICE, 16000, {"lengths": torch.tensor([800, 800])}, "lengths"),
    ],
)
def test_bad_input_is_refused_before_any_work(wave, rate, options, message) -> None:
    refused(AudioError, message, embed_ref, wave, rate, tokenizer=None, speaker_encoder=None, **options)
