"""HiFT against recorded outputs of Chatterbox and CosyVoice, checkpoints, ragged batches and seeds."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from conftest import refused, seeded
from golden.weights import tensor
from s3gen_weights import close, golden, golden3, watched, weight
from torch import Tensor

from vokens import checkpoint
from vokens.errors import AudioError, CheckpointError, ConfigError
from vokens.models.pretrained import layout_of
from vokens.models.s3gen.checkpoint import Spelling, hift_from_published, hift_to_published
from vokens.models.s3gen.config import S3GEN_24K, HiFTNetConfig
from vokens.models.s3gen.hift import HiFTNetModel, trim_fade
from vokens.models.s3gen.source import GivenDraws, HarmonicSource, KeyedDraws

REDUCED = replace(S3GEN_24K, base_channels=32, f0_predictor_cond_channels=32)
GOLDEN = {"v1": golden, "v2": golden, "v3": golden3}


def published_state(config: HiFTNetConfig) -> dict[str, Tensor]:
    """Test weights under the published names, weight norm in its newer spelling."""
    state = hift_to_published(HiFTNetModel(config).state_dict())
    return {name: weight(f"mel2wav.{name}", like) for name, like in state.items()}


def build(config: HiFTNetConfig) -> HiFTNetModel:
    model = HiFTNetModel(config)
    checkpoint.load_strict(model, hift_from_published(published_state(config)), "of the test")
    return model.eval().requires_grad_(False)


@cache
def reduced_hift(source: str = "v1") -> HiFTNetModel:
    """A shared one, which tests leave as it is."""
    return build(replace(REDUCED, source=source))


# Recorded outputs


@pytest.mark.parametrize(
    ("version", "case"),
    [
        *(("v1", case) for case in ("T1", "T2", "T6", "T11", "silence")),
        *(("v3", case) for case in ("T1", "T2", "T4", "T11", "silence")),
    ],
)
def test_recorded_pitch(version: str, case: str) -> None:
    recorded = GOLDEN[version]("hift_reduced_decode", f"f0/{case}")
    found = reduced_hift(version).f0_predictor(recorded["mel"])
    close(found, recorded["f0"], 1e-4 if version == "v3" else 1e-3)
    if "f0_not_final" in recorded:  # three frames are looked at only
        close(found[:, :-3], recorded["f0_not_final"], 1e-4)


@pytest.mark.parametrize("version", ["v1", "v3"])
@pytest.mark.parametrize("case", ["T1", "T3", "batch", "silence"])
def test_recorded_decode(version: str, case: str) -> None:
    recorded = GOLDEN[version]("hift_reduced_decode", f"decode/{case}")
    found = reduced_hift(version).decode(recorded["mel"], recorded["source"])
    close(found, recorded["wav"], 1e-5)


@pytest.mark.parametrize("version", ["v1", "v3"])
def test_recorded_stages(version: str) -> None:
    recorded = GOLDEN[version]("hift_reduced_decode", "decode/T1")
    stages = {key.removeprefix("stage/"): value for key, value in recorded.items() if "stage/" in key}
    model = build(replace(REDUCED, source=version))
    seen = watched({name: model.get_submodule(name) for name in stages if name != "source_stft"})
    seen["source_stft"] = model.stft.of_wave(recorded["source"])
    model.decode(recorded["mel"], recorded["source"])
    assert len(seen) == len(stages) == 15
    for name, value in seen.items():
        close(value, stages[name], 1e-5)


def source_of(version: str) -> HarmonicSource:
    source = HarmonicSource(replace(S3GEN_24K, source=version, arithmetic="published"))
    shapes = {"weight": (1, 9), "bias": (1,)}
    weight, bias = (tensor(f"mel2wav.m_source.l_linear.{name}", shape) for name, shape in shapes.items())
    checkpoint.load_strict(source, {"l_linear.weight": 3 * weight, "l_linear.bias": bias}, "of the test")
    return source.requires_grad_(False)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_recorded_source_with_given_draws(version: str) -> None:
    recorded, source = golden("hift_source"), source_of(version)
    draws = GivenDraws(recorded["v1/phase"] / (2 * torch.pi), recorded["noise"])
    sines = source.sines(recorded["f0"], draws)[..., ::8]
    expected = recorded[f"{version}/sines_injected"]
    close(sines, expected if version == "v1" else expected.transpose(1, 2), 1e-5)
    close(source(recorded["f0"], draws), recorded[f"{version}/source_injected"], 1e-5)


@pytest.mark.parametrize(
    ("version", "case", "seed"),
    [
        *(("v1", case, 1060 + number) for number, case in enumerate(("", "long/", "batch/"))),
        *(("v2", case, 1070 + number) for number, case in enumerate(("", "long/", "batch/"))),
        *(("v3", case, 2001 + number) for number, case in enumerate(("seeded/", "batch/", "long/"))),
    ],
)
def test_recorded_source_with_a_seed(version: str, case: str, seed: int) -> None:
    recorded, source = GOLDEN[version]("hift_source"), source_of(version)
    f0 = recorded.get(f"{case}f0", recorded["f0"])
    draws = GivenDraws.published(seeded(seed), [f0.shape[1] * 480] * len(f0), 9, version)
    found, prefix = source(f0, draws), case if version == "v3" else f"{version}/{case}"
    if case != "long/":
        close(found, recorded[f"{prefix}source"], 1e-5)
        return
    close(found[..., ::29], recorded[f"{prefix}source_sub"], 1e-5 if version == "v3" else 1e-4)
    if version == "v3":
        source.config = replace(source.config, arithmetic="exact")
        close(source(f0, draws)[..., ::29], recorded[f"{prefix}source_sub"], 5e-4)


@pytest.mark.parametrize(("dialect", "version"), [("chatterbox", "v1"), ("cosyvoice2", "v2")])
@pytest.mark.parametrize(("case", "seed"), [("", 1080), ("silence/", 1082), ("T1/", 1083)])
def test_recorded_inference(dialect: str, version: str, case: str, seed: int) -> None:
    recorded = golden(f"hift_reduced_inference_{dialect}")
    mel = recorded[f"{case}mel"]
    every = 1 if case else 3
    expected = recorded[f"{case}source" if case else "source_sub"]
    # The recorded pitch is 3e-4 Hz from its value in float64, float32 here 2e-4: this turns the ninth harmonic by
    # 3e-3 rad in 9 frames, which is 3e-4 of the source's 0.1. From the recorded pitch on, 1e-4 holds below.
    # Both roundings are the processor's, so whichever arithmetic: 2.4e-4 apart in the wave on one with AMX.
    for arithmetic in ("published", "exact"):
        vocoder = build(replace(REDUCED, source=version, arithmetic=arithmetic))
        wave, source = vocoder.inference(mel, generator=seeded(seed))
        close(wave, recorded[f"{case}wav"], 1e-4 if case else 5e-4)
        close(source[..., ::every], expected, 1e-4)
    if not case:
        draws = GivenDraws.published(seeded(seed), [mel.shape[-1] * 480], 9, version)
        source = vocoder.m_source(recorded["f0"], draws)
        close(source[..., ::every], expected, 1e-4)
        close(vocoder.decode(mel, source), recorded["wav"], 1e-4)
        close(vocoder.f0_predictor(mel), recorded["f0"], 1e-3)


def test_recorded_cached_source() -> None:
    recorded = golden("hift_reduced_inference_cosyvoice2")
    vocoder = build(replace(REDUCED, source="v2", arithmetic="published"))
    cache = recorded["cache_source"]
    wave, source = vocoder.inference(speech_feat=recorded["mel"], cache_source=cache, generator=seeded(1081))
    close(wave[..., ::3], recorded["cached/wav_sub"], 5e-4)  # as above
    close(source[..., ::7], recorded["cached/source_sub"], 1e-4)


@pytest.mark.slow
def test_recorded_full_size() -> None:
    recorded = golden("hift_full")
    for dialect, version in (("chatterbox", "v1"), ("cosyvoice2", "v2")):
        vocoder = build(replace(S3GEN_24K, source=version))
        close(vocoder.f0_predictor(recorded["mel"]), recorded["f0"], 2e-3)
        close(vocoder.decode(recorded["mel"], recorded["source"]), recorded["wav_from_source"], 5e-4)
        wave, source = vocoder.inference(recorded["mel"], generator=seeded(1090))
        close(wave, recorded[f"{dialect}/wav"], 5e-4)
        close(source[..., ::5], recorded[f"{dialect}/source_sub"], 5e-4)


def test_fade() -> None:
    faded = trim_fade(torch.ones(1, 1000))[0]
    assert not faded[:480].any()
    assert bool((faded[960:] == 1).all())
    angle = torch.arange(480, dtype=torch.float64) / 479 * torch.pi
    close(faded[480:960], (0.5 - 0.5 * angle.cos()).float(), 1e-6)
    assert torch.equal(trim_fade(torch.ones(2, 700)), faded[:700].expand(2, -1))


# Checkpoints


@pytest.mark.parametrize("prefix", ["", "mel2wav.", "generator."])
@pytest.mark.parametrize("spelling", ["parametrizations", "weight_g", "folded"])
def test_three_spellings_of_weight_norm_load_the_same(spelling: Spelling, prefix: str) -> None:
    model = reduced_hift()
    state = {prefix + name: value for name, value in hift_to_published(model.state_dict(), spelling).items()}
    assert layout_of(state) == "hiftnet"
    if prefix == "generator.":
        state |= {"discriminator.mpd.weight": torch.zeros(1), "step": torch.zeros(())}
    ours = hift_from_published(state)
    assert ours.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        close(ours[name], value, 1e-6)


def test_published_names_are_complete() -> None:
    names = hift_to_published(HiFTNetModel(S3GEN_24K).state_dict())
    assert len(names) == 328  # of chatterbox' mel2wav.*, 20 821 295 numbers
    assert sum(value.numel() for value in names.values()) == 20_821_295
    assert names["ups.0.parametrizations.weight.original0"].shape == (512, 1, 1)
    assert names["resblocks.0.activations1.0.alpha"].shape == (256,)


def test_foreign_and_missing_weights_are_refused() -> None:
    model = reduced_hift()
    state = hift_to_published(model.state_dict())
    with pytest.raises(CheckpointError, match="do not belong"):
        hift_from_published(state | {"conv_more.weight": torch.zeros(1)})
    refused(CheckpointError, "twice", hift_from_published, state | {"mel2wav.conv_pre.bias": torch.zeros(32)})
    del state["conv_pre.bias"]
    with pytest.raises(CheckpointError, match="1 missing"):
        checkpoint.load_strict(HiFTNetModel(REDUCED), hift_from_published(state), "of the test")


def test_training_with_weight_norm_folds_back() -> None:
    model = reduced_hift()
    trained = build(REDUCED).add_weight_norm()
    state = checkpoint.fold_weight_norm(trained.state_dict())
    assert state.keys() == model.state_dict().keys()
    mel, source = torch.randn(1, 80, 3), torch.zeros(1, 1, 1440)
    close(trained.decode(mel, source), model.decode(mel, source), 1e-5)


# Batches, seeds, precision


def random_mel(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed)) - 2


@pytest.mark.parametrize("version", ["v1", "v2", "v3"])
def test_ragged_batch_equals_single_runs(version: str) -> None:
    vocoder = reduced_hift(version)
    mel, lengths, seeds = random_mel(4, 80, 17), torch.tensor([9, 17, 1, 16]), [3, 1, 4, 5]
    for option, draw in (("seed", int), ("generator", seeded)):
        wave, source = vocoder.inference(mel, lengths=lengths, **{option: [draw(seed) for seed in seeds]})
        for row, n in enumerate(lengths.tolist()):
            alone = vocoder.inference(mel[row : row + 1, :, :n], **{option: [draw(seeds[row])]})
            close(wave[row, : n * 480], alone[0][0], 1e-5)
            close(source[row, :, : n * 480], alone[1][0], 1e-6)
            assert not wave[row, n * 480 :].any()


def test_seeds_decide_and_generators_repeat() -> None:
    model = reduced_hift()
    mel = random_mel(1, 80, 4)
    one, same, other = (model.inference(mel, seed=seed)[0] for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    again = [model.inference(mel, generator=seeded(7))[0] for _ in range(2)]
    assert torch.equal(*again)
    torch.manual_seed(7)
    # torch's own generator, as published code is seeded
    assert torch.equal(model.inference(mel)[0], again[0])


def test_keyed_noise_is_normal_and_white() -> None:
    draws = KeyedDraws((0, 1), 9)
    cpu = torch.device("cpu")
    noise = draws.noise(0, 40_000, cpu).double()
    assert noise.shape == (2, 9, 40_000)
    assert noise.mean().abs() < 0.005  # 720 000 values: 4 deviations of their mean
    assert (noise.std() - 1).abs() < 0.005
    assert (noise.pow(4).mean() - 3).abs() < 0.05
    rows = noise.flatten(0, 1)
    off = torch.corrcoef(torch.cat([rows, rows.roll(1, -1)])) - torch.eye(36)
    assert off.abs().max() < 0.025  # 5 deviations of 1 / sqrt(40 000)
    assert torch.equal(draws.noise(999, 10, cpu), draws.noise(0, 2000, cpu)[..., 999:1009])
    phase = KeyedDraws(tuple(range(500)), 9).phase(cpu)
    assert phase.min() >= -0.5
    assert phase.max() < 0.5
    assert (phase.std() - 12**-0.5).abs() < 0.01


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_phase_does_not_drift(version: str) -> None:
    """Two minutes of a steady voice: the last samples' sines stand where exact arithmetic puts them."""
    config = replace(S3GEN_24K, source=version, nsf_sigma=0.0, nb_harmonics=2)
    frames, hertz = 6000, 187.3
    silent = GivenDraws(torch.zeros(1, 3, 1), torch.zeros(1, 3, frames * 480))
    sines = HarmonicSource(config).sines(torch.full((1, frames), hertz), silent)[0, :, -480:].double()
    # v1 has taken a step at sample 0; v2 stands at the first frame's whole hop of steps until its centre.
    sample = torch.arange((frames - 1) * 480, frames * 480, dtype=torch.float64)
    count = sample + 1 if version == "v1" else (sample + 0.5 + 240).clamp(max=frames * 480.0)
    for h in range(3):
        step = (torch.tensor(hertz) * (h + 1) / 24000).double()  # turns per sample, as float32 gives it
        close(sines[h], 0.1 * torch.sin(2 * torch.pi * (step * count).remainder(1)), 1e-6)


def test_half_precision_keeps_pitch_and_spectra_in_float32() -> None:
    vocoder, mel = build(REDUCED), random_mel(1, 80, 12)
    wave, source = vocoder.inference(mel, seed=0)
    half = vocoder.to(torch.bfloat16)
    assert half.conv_pre.weight.dtype == torch.bfloat16
    kept = (half.f0_predictor.classifier.weight, half.m_source.l_linear.weight, half.stft.analysis)
    assert {tensor.dtype for tensor in kept} == {torch.float32}
    rough, rough_source = half.inference(mel, seed=0)
    assert rough.dtype == torch.float32
    assert torch.equal(rough_source, source)
    assert (rough - wave).square().mean() < 1e-3 * wave.square().mean()


# Bad input


@pytest.mark.parametrize(
    ("mel", "options", "error", "message"),
    [
        (torch.zeros(80, 5), {}, AudioError, "shape"),
        (torch.zeros(1, 81, 5), {}, AudioError, "80"),
        (torch.zeros(1, 80, 5, dtype=torch.int64), {}, AudioError, "floats"),
        (torch.full((1, 80, 5), torch.nan), {}, AudioError, "NaN"),
        (torch.zeros(1, 80, 0), {}, AudioError, "without frames"),
        (torch.zeros(2, 80, 5), {"lengths": torch.tensor([5])}, ConfigError, "lengths"),
        (torch.zeros(2, 80, 5), {"lengths": torch.tensor([5, 0])}, ConfigError, "lengths"),
        (torch.zeros(2, 80, 5), {"seed": [1]}, ConfigError, "seeds"),
        (torch.zeros(2, 80, 5), {"generator": [seeded(1)]}, ConfigError, "generators"),
        (torch.zeros(1, 80, 5), {"generator": seeded(1), "seed": 1}, ConfigError, "both"),
    ],
)
def test_bad_input(mel: Tensor, options: dict, error: type, message: str) -> None:
    refused(error, message, reduced_hift().inference, mel, **options)


def test_bad_sizes() -> None:
    for wrong in ({"source": "v4"}, {"upsample_rates": (8,)}, {"resblock_kernel_sizes": (4, 7, 11)}):
        refused(ConfigError, ".", replace, S3GEN_24K, **wrong)
    assert HiFTNetConfig(upsample_rates=[8, 8]) == HiFTNetConfig()
