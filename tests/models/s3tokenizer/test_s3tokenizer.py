"""S3Tokenizer against recorded outputs of the published package 0.3.0: every stage, ragged batches, full sizes."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from golden.weights import fill_
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from vokens.models.s3tokenizer import RELEASES, S3Tokenizer, S3TokenizerConfig

FOLDER = Path(__file__).parents[2] / "golden/s3tokenizer"
CONFIG = json.loads((FOLDER / "config.json").read_text())
CASES, NAMES = CONFIG["cases"], CONFIG["names"]
PUBLISHED = {  # settings: published -> ours
    "n_mels": "n_mels",
    "n_audio_state": "width",
    "n_audio_head": "heads",
    "n_audio_layer": "layers",
    "n_audio_ctx": "max_positions",
    "n_codebook_size": "codebook_size",
}


def build(version: str, sizes: dict[str, int], overrides: dict[str, Any], **settings: Any) -> S3Tokenizer:
    """The codec of a golden case: weights that follow from their names."""
    ours = {PUBLISHED[name]: size for name, size in sizes.items()}
    codec = S3Tokenizer(replace(RELEASES[NAMES[version]], **ours, **settings))
    state = codec.to_published()
    kept = state.pop("encoder.positional_embedding", None)
    fill_(state)
    for name, tensor in state.items():
        rule = next((rule for pattern, rule in overrides.items() if re.fullmatch(pattern, name)), {})
        tensor.mul_(rule.get("mul", 1.0)).add_(rule.get("add", 0.0))
    if kept is not None:
        state["encoder.positional_embedding"] = kept
    return S3Tokenizer.from_published(state, codec.config)


def small(version: str) -> tuple[S3Tokenizer, dict[str, Tensor]]:
    case = CASES[f"{version}_small"]
    golden = load_file(FOLDER / f"{version}_small.safetensors")
    return build(version, case["config"], case["overrides"]), golden


def near(found: Tensor, expected: Tensor, share: float = 2e-5) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= share * expected.abs().max()


def same(found: Tensor, expected: Tensor) -> None:
    assert torch.equal(found, expected.long())


VERSIONS = list(NAMES)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_stage(version: str) -> None:
    codec, golden = small(version)
    mel = golden["mel"][None, :, : CASES[f"{version}_small"]["stage_T"]].float()
    encoder = codec.encoder
    stage = F.gelu(encoder.conv1(mel))
    near(stage[:, :: 2 if version == "v1" else 1], golden["stage.conv1"])
    near(F.gelu(encoder.conv2(stage)), golden["stage.conv2"])
    seen: dict[int, Tensor] = {}
    for i, block in enumerate(encoder.blocks):
        block.register_forward_hook(lambda _m, _i, out, i=i: seen.update({i: out}))
    hidden = encoder(mel)
    for i, found in seen.items():
        near(found, golden[f"stage.block{i}"])
    near(hidden, golden["stage.hidden"])
    codes, margin = codec.codebook.encode(hidden)
    same(codes, golden["stage.codes"])
    assert (margin - golden["stage.margin"]).abs().max() <= 1e-4


@pytest.mark.parametrize("version", VERSIONS)
def test_short_ragged_wide_and_silent(version: str) -> None:
    codec, golden = small(version)
    mel = golden["mel"].float()
    for frames in CASES[f"{version}_small"]["single"]:
        same(codec.quantize(mel[None, :, :frames])[0][0], golden[f"single{frames}.codes"])
    same(codec.quantize(torch.full((1, 128, 20), -1.5))[0][0], golden["silence.codes"])

    lengths = golden["ragged.lens"]
    batch = torch.full((len(lengths), 128, int(lengths.max())), 7.5)
    for i, length in enumerate(lengths.tolist()):
        batch[i, :, :length] = mel[:, i : i + length]
    hidden = codec.encoder(batch, lengths)[:, :, :: 2 if version == "v1" else 1]
    for extra in (0, 9):  # wider than the longest row: the reference refuses it for v1
        codes, counts = codec.quantize(F.pad(batch, (0, extra), value=-3.0), lengths)
        assert torch.equal(counts, golden["ragged.code_lens"])
        for i, count in enumerate(counts.tolist()):
            same(codes[i, :count], golden["ragged.codes"][i, :count])
            assert not codes[i, count:].any()
            near(hidden[i, :count], golden["ragged.hidden"][i, :count], 4e-5)


@pytest.mark.parametrize("version", VERSIONS)
def test_waves_to_ids(version: str) -> None:
    case, golden = CASES["e2e"], load_file(FOLDER / "e2e.safetensors")
    sizes = dict(case["config"]["v3" if version == "v3" else "v1/v1_25hz/v2"])
    if version.startswith("v1"):
        sizes["n_codebook_size"] = case["config"]["v1 n_codebook_size"]
    codec = build(version, sizes, case["overrides"][version])
    waves = [golden[f"pcm{i}"].float() / 32768 for i in range(4)]
    tokens = codec.encode(waves, 16000)
    assert tokens.lengths.tolist() == golden[f"{version}.code_lens"].tolist()
    for i, count in enumerate(tokens.lengths.tolist()):
        same(tokens.codes[i, 0, :count], golden[f"{version}.codes"][i, :count])


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_released_sizes(version: str) -> None:
    case, golden = CASES[f"{version}_full"], load_file(FOLDER / f"{version}_full.safetensors")
    codec = build(version, {}, case["overrides"])
    keys = json.loads((FOLDER / "keys.json").read_text())[NAMES[version]]
    shapes = {name: list(tensor.shape) for name, tensor in codec.to_published().items()}
    assert shapes == {name: key[0] for name, key in keys.items()}
    assert codec.name == NAMES[version]
    seen: dict[str, Tensor] = {}
    for i, block in enumerate(codec.encoder.blocks):
        block.register_forward_hook(lambda _m, _i, out, i=i: seen.update({f"block{i}": out}))
    hidden = codec.encoder(golden["mel"][None].float())
    for name, found in (seen | {"hidden": hidden}).items():
        if name in golden:
            near(found[0, ::3, ::16], golden[name])
    codes, margin = codec.codebook.encode(hidden)
    same(codes[0], golden["codes"])
    assert (margin[0] - golden["margin"]).abs().max() <= 1e-4


@pytest.mark.parametrize("version", VERSIONS)
def test_published_names_are_a_bijection(version: str) -> None:
    codec, _ = small(version)
    published = codec.to_published()
    again = S3Tokenizer.from_published(published, codec.config)
    assert again.fingerprint == codec.fingerprint
    assert again.to_published().keys() == published.keys()
    layout = json.loads((FOLDER / "keys.json").read_text())[NAMES[version]]
    layers = codec.config.layers
    kept = {k for k in layout if not k.startswith("encoder.blocks.") or int(k.split(".")[2]) < layers}
    assert published.keys() == kept


def test_the_four_releases_differ_where_the_papers_say() -> None:
    assert {(c.hop, c.layers, c.quantizer, c.positions, c.memory_taps) for c in RELEASES.values()} == {
        (2, 6, "vq", "sinusoid", 0),
        (4, 6, "vq", "sinusoid", 0),
        (4, 6, "fsq", "rotary", 31),
        (4, 12, "fsq", "rotary", 31),
    }
    assert S3TokenizerConfig() == RELEASES["speech_tokenizer_v2_25hz"]
