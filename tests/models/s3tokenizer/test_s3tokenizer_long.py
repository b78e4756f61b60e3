"""S3Tokenizer over 30 s: no token is lost, the published merge to the id where asked for, bounded memory."""

import json
import runpy
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from conftest import refused, speechlike
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from test_s3tokenizer import CASES, FOLDER, build, small
from torch import Tensor

from vokens.errors import ConfigError
from vokens.models.s3tokenizer import S3Tokenizer
from vokens.models.s3tokenizer.long import log_mel, windows

LONG = CASES["long"]
GOLDEN = load_file(FOLDER / "long.safetensors")
SEAMS = Path(__file__).parents[3] / "benchmarks/quality/s3_seams.py"


def long_codec(version: str, long_audio: str) -> S3Tokenizer:
    sizes = LONG["config"] | ({"n_codebook_size": LONG["v1_codebook"]} if version.startswith("v1") else {})
    return build(version, sizes, LONG["overrides"][version], long_audio=long_audio)


def agree(found: Tensor, expected: Tensor, case: str) -> None:
    """Ids are equal but where rounding decides."""
    assert found.shape == expected.shape
    differing = (found != expected.long()).nonzero().flatten().tolist()
    assert set(differing) <= set(LONG["fragile"][case]), case


@pytest.mark.parametrize("version", ["v1", "v1_25hz", "v2", "v3"])
def test_published_merge(version: str) -> None:
    codec = long_codec(version, "published")
    mel = GOLDEN["mel"].float()
    for frames in LONG["lengths"][version]:
        found, counts = codec.quantize(mel[None, :, :frames])
        agree(found[0], GOLDEN[f"{version}.{frames}.codes"], f"{version}.{frames}")
        assert int(counts) == LONG["result"][f"{version}.{frames}"]["tokens"]
    if f"{version}.mixed.lens" in GOLDEN:
        lengths = GOLDEN[f"{version}.mixed.lens"]
        batch = torch.full((3, 4, int(lengths.max())), 9.0)
        for i, n in enumerate(lengths.tolist()):
            batch[i, :, :n] = mel[:, 10 * i : 10 * i + n]
        found, counts = codec.quantize(batch, lengths)
        assert counts.tolist() == GOLDEN[f"{version}.mixed.code_lens"].tolist()
        for i, n in enumerate(counts.tolist()):
            agree(found[i, :n], GOLDEN[f"{version}.mixed.codes"][i, :n], f"{version}.mixed.{i}")


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_nothing_is_lost_and_the_rest_is_as_published(version: str) -> None:
    codec = long_codec(version, "complete")
    hop = codec.config.hop
    for frames in (5200, 5201, 5400, 5596, 5600):
        found = codec.quantize(GOLDEN["mel"][None, :, :frames].float())[0][0]
        published = GOLDEN[f"{version}.{frames}.codes"]
        assert len(found) == -(-frames // hop)
        redundant = 200 // hop if frames > 5200 else 0  # the published third window cuts the second
        upto = len(found) - redundant
        agree(found[:upto], published[:upto], f"{version}.{frames}")


@settings(max_examples=300, deadline=None)
@given(frames=st.one_of(st.integers(1, 30_000), st.integers(1, 5_000_000)), hop=st.sampled_from([2, 4]))
def test_every_frame_has_its_token(frames: int, hop: int) -> None:
    plan = windows(frames, hop)
    assert plan[0].start == plan[0].left == 0
    assert plan[-1].end == plan[-1].right == -(-frames // hop)
    assert all(one.end == two.start for one, two in pairwise(plan))
    assert all(w.left <= w.start < w.end <= w.right <= w.left + 3000 // hop for w in plan)
    assert len(plan) == (1 if frames <= 3000 else 1 - (3000 - frames) // 2600)


@settings(max_examples=300, deadline=None)
@given(frames=st.integers(1, 60_000), hop=st.sampled_from([2, 4]))
def test_the_published_loss_is_the_known_one(frames: int, hop: int) -> None:
    kept = sum(w.end - w.start for w in windows(frames, hop, published=True))
    count, cut = -(-frames // 2600), 200 // hop
    rest = -(-(frames - 2600 * (count - 1)) // hop)
    lost = min(cut, 2 * cut - rest) if count >= 3 and rest < 2 * cut else 0
    assert kept == -(-frames // hop) - lost
    if not lost and not (count >= 3 and rest <= 2 * cut):
        assert windows(frames, hop, published=True) == windows(frames, hop)


def test_recorded_merges() -> None:
    for name, frames, hop in (
        ("three", 5400, 4),
        ("short_last", 5240, 4),
        ("exact", 5600, 4),
        ("v1", 5400, 2),
    ):
        case = json.loads((FOLDER / "merge.json").read_text())[name]
        plan = windows(frames, hop, published=True)
        assert [w.right - w.left for w in plan] == case["lengths"]
        start = case["token_rate"] * 1000
        kept = [(k * start + w.start - w.left, w.end - w.start) for k, w in enumerate(plan)]
        runs = [[first, first + count - 1] for first, count in kept if count]
        assert runs == case["merged_runs_inclusive"]


def test_a_long_recording_from_wave_to_ids() -> None:
    """54 s, the length at which the published package returns 1300 tokens."""
    codec, _ = small("v2")
    wave = torch.from_numpy(speechlike(54 * 16000))
    tokens = codec.encode(wave, 16000)
    assert tokens.lengths.tolist() == [1350]
    whole = codec.quantize(codec.log_mel(wave)[None])[0]
    assert torch.equal(tokens.codes[0], whole)
    beside = codec.encode([wave[:5000], wave, wave[:480_000]], 16000)
    assert torch.equal(beside[1].codes, tokens.codes)
    assert torch.equal(beside[2].codes, codec.encode(wave[:480_000], 16000).codes)


def test_log_mel_in_pieces_is_the_whole() -> None:
    codec, _ = small("v2")
    for samples in (201, 400, 1599, 1600, 1761, 16000):
        wave = torch.from_numpy(speechlike(samples))
        whole = codec.mel(wave[None])[0]
        for longest in (1, 3, 10, 99):
            pieces = log_mel(codec.mel, wave, longest)
            assert pieces.shape == whole.shape
            torch.testing.assert_close(pieces, whole, atol=1e-6, rtol=0)


def test_memory_is_bounded_by_windows_per_forward() -> None:
    codec = long_codec("v2", "complete")
    seen = []
    codec.encoder.register_forward_pre_hook(lambda _m, args: seen.append(args[0].shape))
    for budget, most in ((None, 3000), (9000, 9000)):
        codec.frames_per_forward = budget
        found = codec.quantize(GOLDEN["mel"].repeat(1, 4)[None].float())[0]
        assert found.shape == (1, 5600)
        assert max(b * f for b, _, f in seen) <= most
        seen.clear()


def test_agreement_by_distance_from_the_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SEAMS.parent))
    seam_agreement = runpy.run_path(str(SEAMS))["seam_agreement"]
    codec = long_codec("v2", "complete")
    mel = GOLDEN["mel"][:, :1000].float()
    share, count = seam_agreement(lambda part: codec.quantize(part[None])[0][0], mel, 4, size=400, overlap=80)
    assert int(count.sum()) == 250
    assert ((share >= 0) & (share <= 1)).all()
    near_by = lambda part: part[0, ::4].mul(1000).long()  # noqa: E731  ids that see only their own frame
    share, count = seam_agreement(near_by, mel, 4, size=400, overlap=80)
    assert share[count > 0].eq(1).all()
    aware = lambda part: (torch.arange(len(part[0, ::4])) * 4 + 8 > part.shape[1]).long()  # noqa: E731
    share, _ = seam_agreement(aware, mel, 4, size=400, overlap=0)  # the last token of a window is wrong
    assert share[0] < 1
    assert share[1:].eq(1).all()


def test_whole_context_ends_with_the_table_of_positions() -> None:
    codec = long_codec("v1", "complete")
    refused(ConfigError, "1500", lambda: codec.encoder(torch.zeros(1, 4, 3001)))
