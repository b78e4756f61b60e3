"""Tokens to mel against recorded outputs of every dialect; ragged batches equal single runs; ids stay integers."""

import copy
import hashlib
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import refused, seeded
from s3gen_weights import build_flow, close, golden, golden3, ids, reduced, reduced_flow, voice_of
from torch import Tensor

from vokens.checkpoint import load_strict
from vokens.errors import AudioError, CheckpointError, ConfigError, TokensError
from vokens.flow.noise import PrefixNoise, fresh_noise
from vokens.models.s3gen.checkpoint import flow_from_published, flow_to_published
from vokens.models.s3gen.config import DIALECTS
from vokens.models.s3gen.flow import Schedule, TokenToMel, Voice
from vokens.nn.streaming import Chunks

SPEAKER = golden("flow_reduced_chatterbox")["embedding"]  # of all dialects but CosyVoice 3


@torch.inference_mode()
def solve(
    model: TokenToMel, case: dict[str, Tensor], z: Tensor, schedule: Schedule, chunks: Chunks | None = None
) -> Tensor:
    """The ODE alone, in the layout of the files, (B, C, T)."""
    mask = case["mask"].transpose(1, 2)
    mu, prompt = ((case[name] * case["mask"]).transpose(1, 2) for name in ("mu", "cond"))
    lengths = None if bool(mask.all()) else mask[..., 0].sum(1).long()
    given = mu, case["spks"], prompt, z.transpose(1, 2)
    return model.sample(*given, schedule, lengths=lengths, chunks=chunks).transpose(1, 2)


# The ODE


@pytest.mark.parametrize("dialect", ["chatterbox", "cosyvoice3"])
def test_recorded_solutions(dialect: str) -> None:
    model = reduced_flow(dialect)
    third = dialect == "cosyvoice3"
    case = golden3("cfm_reduced", "given") if third else golden("cfm_reduced_chatterbox", "given")
    for name, steps in (("out", 10), ("out_1steps", 1), ("out_5steps", 5)):
        close(solve(model, case, case["z"], model.schedule(steps)), case[name], 5e-5)
    schedule = model.schedule()
    for step in (1, 4, 9)[: 3 if third else 2]:
        until = replace(schedule, grid=schedule.grid[: step + 1])
        found = solve(model, case, case["z"], until)
        close(found[:, :: 4 if third else 8], case["x_steps"][step - 1], 5e-5)


def test_recorded_solution_of_a_seed() -> None:
    case, model = golden("cfm_reduced_chatterbox"), reduced_flow("chatterbox")
    z = torch.randn(case["given/mu"].shape, generator=seeded(1001))
    close(z[:, :2], case["seeded/z_head"], 0)
    given = golden("cfm_reduced_chatterbox", "given")
    close(solve(model, given, z, model.schedule()), case["seeded/out"], 5e-5)


@pytest.mark.parametrize("dialect", ["cosyvoice2", "cosyvoice3"])
def test_recorded_prefix_noise(dialect: str) -> None:
    table, model = PrefixNoise(), reduced_flow(dialect)
    recorded = golden("cfm_reduced_cosyvoice2")
    close(table.frames(0, 24).T[::8], recorded["rand_noise_head"][0], 0)
    close(table.frames(14992, 15000).T[::8], recorded["rand_noise_tail"][0], 0)
    for name, scale, chunks in (("full", 1, None), ("chunk", 1, Chunks(10)), ("temperature", 0.6, None)):
        third = dialect == "cosyvoice3"
        case = golden3("cfm_reduced", name) if third else golden("cfm_reduced_cosyvoice2", name)
        z = scale * table.frames(0, case["mu"].shape[2]).T[None]
        close(solve(model, case, z, model.schedule(), chunks), case["out"], 5e-5)


@pytest.mark.parametrize("steps", [1, 2])
def test_recorded_meanflow_steps(steps: int) -> None:
    case, turbo = golden("cfm_reduced_meanflow"), reduced_flow("chatterbox-turbo")
    found = solve(turbo, case, case[f"{steps}steps/z"], turbo.schedule(steps))
    close(found, case[f"{steps}steps/out"], 2e-5)


def test_prefix_noise_has_no_end() -> None:
    table = PrefixNoise()
    late = table.frames(14_990, 30_010)  # over two borders
    assert late.shape == (15_020, 80)
    again = PrefixNoise()
    assert torch.equal(again.frames(15_005, 15_020), late[15:30])
    assert not torch.equal(late[10:20], table.frames(0, 10))
    assert table.frames(7, 7).shape == (0, 80)


def test_copies_compute_the_same() -> None:
    recorded, flow = golden("flow_reduced_cosyvoice2", "even"), build_flow(reduced("cosyvoice2"))
    flow.requires_grad_(True)
    voice = voice_of(recorded, SPEAKER)
    mel, _ = flow.generate(recorded["tokens"], voice)
    again, _ = copy.deepcopy(flow).generate(recorded["tokens"], voice)
    assert torch.equal(mel, again)
    flow.prepare(
        recorded["tokens"], voice
    ).mu.sum().backward()  # what inference has kept does not stop training
    assert flow.embedding.weight.grad.any()


def test_guidance_may_end_early() -> None:
    model = build_flow(replace(reduced("chatterbox"), cfm_guidance_end=0.5))
    schedule = model.schedule()
    assert schedule.guidance[:7] == pytest.approx([0.7] * 7)
    assert schedule.guidance[7:] == [0.0] * 3
    case = golden("cfm_reduced_chatterbox", "given")
    shorter = solve(model, case, case["z"], schedule)
    assert 0 < (shorter - case["out"]).abs().max() < 1


# Tokens to mel


@pytest.mark.parametrize(
    ("case", "seed"), [("even", 1020), ("odd", 1021), ("shortest", 1022), ("odd3", 1023)]
)
def test_recorded_chatterbox(case: str, seed: int) -> None:
    recorded, flow = golden("flow_reduced_chatterbox", case), reduced_flow("chatterbox")
    voice = voice_of(recorded, SPEAKER)
    mel, frames = flow.generate(recorded["tokens"], voice, generator=seeded(seed))
    close(mel, recorded["mel"], 5e-5)
    assert frames.tolist() == [recorded["mel"].shape[2]]
    given = flow.prepare(recorded["tokens"], voice)
    close(given.speaker, golden("flow_reduced_chatterbox")["spk80"], 1e-6)
    if "mu" in recorded:
        close(given.mu, recorded["mu"], 1e-5)
        close(fresh_noise(20, 80, seeded(seed)).T[None], recorded["z"], 0)
    if "mel_not_final" in recorded:
        mel, _ = flow.generate(recorded["tokens"], voice, finalize=False, generator=seeded(1030))
        close(mel, recorded["mel_not_final"], 5e-5)


@pytest.mark.parametrize(("case", "seed"), [("even", 1041), ("odd", 1043), ("shortest", 1045)])
@pytest.mark.parametrize("steps", [1, 2])
def test_recorded_meanflow(case: str, seed: int, steps: int) -> None:
    recorded, turbo = golden("flow_reduced_meanflow", case), reduced_flow("chatterbox-turbo")
    options = {"schedule": turbo.schedule(steps), "generator": seeded(seed + steps - 1)}
    mel, _ = turbo.generate(recorded["tokens"], voice_of(recorded, SPEAKER), **options)
    close(mel, recorded[f"mel_{steps}steps"], 5e-5)


CASES = ("even", "odd", "long_mel", "shortest")


@pytest.mark.parametrize(
    ("dialect", "case"),
    [*(("cosyvoice2", case) for case in CASES), *(("cosyvoice3", case) for case in (*CASES, "no_prompt"))],
)
@pytest.mark.parametrize("finalize", [True, False])
def test_recorded_mels(dialect: str, case: str, finalize: bool) -> None:
    flow = reduced_flow(dialect)
    read, file = (golden3, "flow_reduced") if dialect == "cosyvoice3" else (golden, f"flow_reduced_{dialect}")
    recorded = read(file, case)
    voice = voice_of(recorded, read(file)["embedding"])
    for mask, chunks in (("full", None), ("chunk", flow.config.chunks())):
        mel, _ = flow.generate(recorded["tokens"], voice, finalize=finalize, chunks=chunks)
        close(mel, recorded[f"mel_{mask}" if finalize else f"mel_{mask}_not_final"], 5e-5)


def three_voices() -> list[Voice]:
    odd, even = (golden("flow_reduced_chatterbox", case) for case in ("odd", "even"))
    nobody = Voice(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 80), SPEAKER[0].roll(7))
    return [voice_of(odd, SPEAKER), voice_of(even, SPEAKER.flip(1)), nobody]


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("chunks", [None, Chunks(5), Chunks(5, left=0, phase=1)])
@pytest.mark.parametrize("finalize", [True, False])
def test_ragged_batch_equals_singles(dialect: str, chunks: Chunks | None, finalize: bool) -> None:
    model, tokens = reduced_flow(dialect), [ids(n, n) for n in (4, 13, 9)]
    voices, options = three_voices(), {"finalize": finalize, "chunks": chunks}
    together, frames = model.generate(tokens, voices, generator=[seeded(i) for i in range(3)], **options)
    for row, (some, voice) in enumerate(zip(tokens, voices, strict=True)):
        alone, _ = model.generate(some, voice, generator=seeded(row), **options)
        assert frames[row] == alone.shape[2]
        close(together[row : row + 1, :, : frames[row]], alone, 1e-5)
        assert not together[row, :, frames[row] :].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_ids(dtype: torch.dtype) -> None:
    """Only 846 of 6561 ids survive a trip through bfloat16, 3689 one through float16."""
    recorded = golden("flow_reduced_cosyvoice2", "even")
    voice = voice_of(recorded, SPEAKER)
    half = build_flow(reduced("cosyvoice2")).to(dtype)
    assert torch.equal(half.cut_prompt(voice).tokens, voice.tokens)
    assert voice.mel.dtype == torch.float32  # the caller's voice is left as it was
    mel, _ = half.generate(recorded["tokens"], voice)
    assert mel.dtype == torch.float32
    assert (mel - recorded["mel_full"]).std() < 0.05 * recorded["mel_full"].std()


def test_published_names_go_both_ways() -> None:
    config = replace(DIALECTS["chatterbox"], vocab_size=9, token_embed_dim=16, encoder_linear_units=8)
    config = replace(config, decoder_channels=8, decoder_attention_head_dim=4)  # as deep as the published one
    model = TokenToMel(config)
    published = flow_to_published(model.state_dict())
    names = hashlib.sha256("\n".join(sorted(published)).encode()).hexdigest()
    assert (len(published), names[:16]) == (1121, "1abb0a370e66893b")
    back = flow_from_published(published)
    assert back.keys() == model.state_dict().keys()
    assert all(torch.equal(back[name], value) for name, value in model.state_dict().items())
    lacking = {k: v for k, v in published.items() if not k.endswith("0.self_attn.linear_k.bias")}
    refused(CheckpointError, "linear_k", flow_from_published, lacking)
    with pytest.raises(CheckpointError, match="do not belong"):
        flow_from_published({**published, "decoder.estimator.extra": torch.zeros(1)})
    mixer = {"decoder.estimator.time_embed_mixer.weight": torch.zeros(32, 64)}
    mixed = flow_from_published(published | mixer)
    refused(CheckpointError, "unexpected", load_strict, model, mixed, "a turbo file")


def test_bad_input() -> None:
    flow, turbo = reduced_flow("cosyvoice2"), reduced_flow("chatterbox-turbo")
    voice = three_voices()[0]
    good: Any = torch.arange(6)
    for tokens in (good[:0], [], good.float(), torch.tensor([6561]), torch.tensor([-1]), [good, good[:0]]):
        refused(TokensError, ".", flow.generate, tokens, voice)
    refused(TokensError, "finalize", flow.generate, good[:3], voice, finalize=False)
    for bad in (
        replace(voice, mel=torch.zeros(10, 79)),
        replace(voice, mel=torch.full((10, 80), torch.nan)),
        replace(voice, speaker=torch.zeros(191)),
        replace(voice, tokens=torch.zeros(1, 5, dtype=torch.int64)),
    ):
        refused(AudioError, ".", flow.generate, good, bad)
    refused(AudioError, "leaves nothing", turbo.generate, good, replace(voice, mel=torch.zeros(40, 80)))
    refused(ConfigError, "voices", flow.generate, [good, good], [voice])
    refused(ConfigError, "generators", lambda: turbo.generate([good, good], voice, generator=[seeded(0)]))
    refused(ConfigError, "Euler", turbo.schedule, solver="midpoint")


@pytest.mark.slow
def test_recorded_full_size() -> None:
    recorded, ref = golden("e2e_full"), golden("e2e_full", "ref")
    voice, flow = voice_of(ref, ref["embedding"]), build_flow(DIALECTS["cosyvoice2"])
    for name, chunks in (("full", None), ("chunk", flow.config.chunks())):
        mel, _ = flow.generate(recorded["cosyvoice2/tokens"], voice, chunks=chunks)
        close(mel[:, ::2], recorded[f"cosyvoice2/mel_{name}_sub"], 1e-4)
    flow.config = DIALECTS["chatterbox"]
    mel, _ = flow.generate(recorded["tokens"], voice, generator=seeded(1800))
    close(mel, recorded["mel"], 1e-4)
    turbo = build_flow(DIALECTS["chatterbox-turbo"])
    mel, _ = turbo.generate(recorded["tokens"], voice, generator=seeded(1900))
    close(mel, recorded["meanflow/mel"], 1e-4)
