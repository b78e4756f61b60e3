"""S3Tokenizer's laws: batches change nothing in any precision, every way to open it, training use, odd input."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import refused, speechlike
from test_s3tokenizer import FOLDER, small

import vokens
from vokens import registry
from vokens.batching import batches
from vokens.errors import CheckpointError, ConfigError
from vokens.models.s3tokenizer import RELEASES, S3Tokenizer

RATE = 16000
LENGTHS = [1, 159, 201, 319, 320, 4000, 9601, 16000, 16001, 24123, 24100, 24000]
WAVES = [speechlike(n, seed=i) for i, n in enumerate(LENGTHS)]
VERSIONS = ["v1", "v1_25hz", "v2", "v3"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("frames", [1, None, 20_000])
def test_batch_equals_single(version: str, frames: int | None) -> None:
    """1 takes rows one by one; the others compute padded batches, as on the CPU and elsewhere."""
    codec, _ = small(version)
    alone = [codec.encode(wave, RATE).codes for wave in WAVES]
    codec.frames_per_forward = frames  # None: a mixture of both
    for seed in range(2):
        order = np.random.default_rng(seed).permutation(len(WAVES))
        together = codec.encode([WAVES[i] for i in order], RATE)
        for place, i in enumerate(order):
            assert torch.equal(together[place].codes, alone[i]), f"{LENGTHS[i]} samples"


def test_log_mels_together_are_those_alone() -> None:
    codec, _ = small("v2")
    wave = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(w) for w in WAVES], batch_first=True)
    mels = codec._log_mels(wave, torch.tensor(LENGTHS), lambda row: torch.zeros(0))
    for mel, source in zip(mels, WAVES, strict=True):
        torch.testing.assert_close(mel, codec.log_mel(torch.from_numpy(source)), atol=2e-6, rtol=0)


@pytest.mark.parametrize("version", ["v1_25hz", "v2"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_guarded_half_precision_gives_the_tokens_of_float32(version: str, dtype: torch.dtype) -> None:
    codec, _ = small(version)
    exact = codec.encode(WAVES, RATE).codes
    codec.frames_per_forward = 2000
    codec.set_dtype(dtype)
    plain = codec.encode(WAVES, RATE).codes
    agreement = (plain == exact).float().mean()
    assert agreement > 0.9
    if (version, dtype) == ("v2", torch.bfloat16):
        assert agreement < 1  # the guard has something to do
    codec.set_dtype(dtype, "guarded")
    assert codec.calibrate([speechlike(16000, seed=i) for i in range(20, 24)], RATE) > 1e-4
    assert torch.equal(codec.encode(WAVES, RATE).codes, exact)
    assert codec.recomputed <= len(WAVES)
    assert codec.dtype == torch.float32


def test_only_doubtful_windows_get_a_second_look() -> None:
    codec, _ = small("v2")
    codec.frames_per_forward = 20_000
    waves = [speechlike(8000, seed=i) for i in range(4)]
    for bound, exactness, expected in ((0.0, "guarded", 0), (1.0, "guarded", 4), (1.0, "plain", 0)):
        codec.bound, codec.exactness, codec.recomputed = bound, exactness, 0
        codec.encode(waves, RATE)
        assert codec.recomputed == expected
    codec.bound, codec.exactness = 1.0, "guarded"
    codec.encode(waves[0], RATE)  # alone in float32 it is what a second look would give
    assert codec.recomputed == 0


def test_no_mask_where_lengths_are_equal() -> None:
    codec, _ = small("v2")
    codec.frames_per_forward = 20_000
    masks = []
    codec.encoder.register_forward_pre_hook(lambda _m, args: masks.append(args[1]))
    codec.encode([WAVES[5], WAVES[5] * 0.5], RATE)
    assert masks == [None]


@pytest.mark.parametrize("rows", [40, 2000])
def test_hardly_any_padding_is_computed(rows: int) -> None:
    draw = np.random.default_rng(0)
    frames = (
        np.clip(draw.lognormal(6.1, 0.6, rows), 80, 3000).astype(int).tolist()
    )  # about 4.5 s, as Common Voice
    groups = list(batches(frames, 24_000, 0.02))
    padded = sum(len(g) * max(frames[r] for r in g) for g in groups)
    assert padded < 1.02 * sum(frames)
    assert len(groups) < 1.5 * sum(frames) / 24_000 + 40  # and the groups stay large
    assert sorted(r for g in groups for r in g) == list(range(rows))


# Opening ---------------------------------------------------------------------------------------------------


HEADS = {"heads": 2}  # of the small ones: weights do not say them


@pytest.fixture
def saved(tmp_path: Path) -> dict[str, Path]:
    paths = {}
    for version in VERSIONS:
        paths[version] = tmp_path / f"{version}.pt"
        torch.save(small(version)[0].to_published(), paths[version])
    return paths


def test_state_dicts_say_their_version_where_they_can(saved: dict[str, Path]) -> None:
    for version in ("v2", "v3"):
        codec = vokens.load(saved[version], config=HEADS)
        assert codec.fingerprint == small(version)[0].fingerprint
        refused(CheckpointError, r"config=\{'heads': n\}", vokens.load, saved[version])
    refused(CheckpointError, "speech_tokenizer_v1_25hz", vokens.load, saved["v1"], config=HEADS)
    for stride, version in ((1, "v1"), (2, "v1_25hz")):
        codec = vokens.load(saved["v1"], config={"first_stride": stride, **HEADS})
        assert codec.fingerprint == small(version)[0].fingerprint
        assert codec.frame_rate == 50 / stride


def test_a_release_name_decides_and_is_checked() -> None:
    with torch.device("meta"):
        released = {name: S3Tokenizer(config).to_published() for name, config in RELEASES.items()}
    from vokens.models.s3tokenizer.checkpoint import configure

    for name, state in released.items():
        assert configure(state, name) == RELEASES[name]
    with pytest.raises(CheckpointError, match="layers 6 instead of 12"):
        configure(released["speech_tokenizer_v2_25hz"], "speech_tokenizer_v3_25hz")
    with pytest.raises(CheckpointError, match="not of speech_tokenizer_v2_25hz"):
        configure(released["speech_tokenizer_v1"], "speech_tokenizer_v2_25hz")
    with pytest.raises(ConfigError, match="speech_tokenizer_v1_25hz"):
        configure(released["speech_tokenizer_v1"], "speech_tokenizer_v9")
    refused(ConfigError, "first_stride", configure, released["speech_tokenizer_v1"], {"stride": 2})


def test_state_dicts_are_read_strictly(saved: dict[str, Path], tmp_path: Path) -> None:
    state = torch.load(saved["v2"], weights_only=True)
    extra = {"_mel_filters": torch.zeros(128, 201), "window": torch.zeros(400)}  # in chatterbox's files
    assert S3Tokenizer.from_published(state | extra, HEADS).fingerprint == small("v2")[0].fingerprint
    refused(CheckpointError, "stray", S3Tokenizer.from_published, state | {"stray": torch.zeros(1)}, HEADS)
    del state["encoder.blocks.1.attn.key.weight"]
    refused(CheckpointError, r"blocks\.1\.attn\.key", S3Tokenizer.from_published, state, HEADS)


@pytest.mark.parametrize("version", VERSIONS)
def test_our_folder_opens_in_half_precision(version: str, tmp_path: Path) -> None:
    codec, _ = small(version)
    half = vokens.load(codec.save_pretrained(tmp_path / "saved"), dtype="bfloat16")
    assert (half.config, half.fingerprint) == (codec.config, codec.fingerprint)
    assert half.compute_dtype == torch.bfloat16


def test_the_registry_knows_the_releases() -> None:
    for name, config in RELEASES.items():
        entry = registry.get(name)
        assert (entry.frame_rate, entry.codebook_size) == (100 / config.hop, config.codebook_size)
        (file,) = entry.files
        assert file.url.startswith("https://www.modelscope.cn/models/")
        assert file.path.endswith(".onnx")
        assert len(file.sha256) == 64


def test_a_cached_release_opens_by_name(tmp_path: Path) -> None:
    place = tmp_path / "speech_tokenizer_v1_25hz"
    place.mkdir()
    (place / "speech_tokenizer_v1.onnx").write_bytes((FOLDER / "onnx_v1_25hz.onnx").read_bytes())
    options = {"cache_dir": tmp_path, "local_files_only": True, "config": {"heads": 2}}
    codec = vokens.load("speech_tokenizer_v1_25hz", **options)
    assert (codec.name, codec.frame_rate) == ("speech_tokenizer_v1_25hz", 25.0)


# Use -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_length_law(version: str) -> None:
    codec, _ = small(version)
    for samples in [1, 160, 200, 201, 319, 320, 479, 480, 799, 800, 1120, 3199, 3200, 4801]:
        tokens = codec.encode(speechlike(samples), RATE)
        expected = -(-max(1, samples // 160) // codec.config.hop)
        assert tokens.lengths.tolist() == [expected] == [codec.num_frames(samples)]
        assert (tokens.frame_rate, tokens.codebook_sizes) == (codec.frame_rate, codec.codebook_sizes)
        assert 0 <= tokens.codes.min() <= tokens.codes.max() < codec.codebook_sizes[0]


def test_quantize_compiles_whole_and_takes_autocast() -> None:
    codec, golden = small("v2")
    mel = golden["mel"][None].float().repeat(2, 1, 1)
    lengths = torch.tensor([64, 41], dtype=torch.int32)
    codes, counts = codec.quantize(mel, lengths)
    assert counts.dtype == torch.int32
    compiled = torch.compile(codec.quantize, fullgraph=True, backend="eager")
    found, found_counts = compiled(mel, lengths)
    assert torch.equal(found, codes)
    assert torch.equal(found_counts, counts)
    assert torch.equal(codec.quantize(mel)[0], codec.quantize(mel[:1])[0].repeat(2, 1))
    with torch.autocast("cpu", torch.bfloat16):  # of the model that trains
        hidden = codec.encoder(mel, lengths)
        assert not torch.equal(codec.codebook.encode(hidden)[0][:, :10], codes[:, :10])
        assert torch.equal(codec.quantize(mel, lengths)[0], codes)
        assert torch.equal(compiled(mel, lengths)[0], codes)
    codec.set_dtype(torch.bfloat16)  # asked for
    assert not torch.equal(codec.quantize(mel, lengths)[0], codes)
    codec.set_dtype(torch.float32)
    weight = torch.ones(1, requires_grad=True)  # ids enter another model's graph
    (codes.float() * weight).sum().backward()


@pytest.mark.slow
def test_inductor_gives_the_same_ids() -> None:
    codec, golden = small("v2")
    codec.frames_per_forward = 20_000
    expected = codec.encode(WAVES, RATE).codes
    mel = golden["mel"][None].float()
    ids = codec.quantize(mel)[0]
    codec.encoder.compile(dynamic=True)
    assert torch.equal(codec.encode(WAVES, RATE).codes, expected)
    assert torch.equal(codec.quantize(mel)[0], ids)


def test_the_encoder_trains() -> None:
    codec, golden = small("v2")
    codec.train().requires_grad_(True)
    rounded, _ = codec.codebook(codec.encoder(golden["mel"][None].float()))
    rounded.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in codec.parameters())
