"""Tokens to mel against recorded outputs of every dialect; ragged batches equal single runs; ids stay integers."""

import copy
import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import refused, seeded
from s3gen_weights import close, fill, part, reduced
from safetensors.torch import load_file

from vokens.checkpoint import load_strict
from vokens.errors import AudioError, CheckpointError, ConfigError, TokensError
from vokens.flow.noise import PrefixNoise, fresh_noise
from vokens.models.s3gen.checkpoint import flow_from_published, flow_to_published
from vokens.models.s3gen.config import DIALECTS
from vokens.models.s3gen.flow import TokenToMel, Voice
from vokens.nn.streaming import Chunks

HERE = Path(__file__).parents[2] / "golden/s3gen"
NAMES = ("chatterbox", "meanflow", "cosyvoice2")
FLOW = {name: load_file(HERE / f"flow_reduced_{name}.safetensors") for name in NAMES}
CFM = {name: load_file(HERE / f"cfm_reduced_{name}.safetensors") for name in NAMES}


@pytest.fixture(scope="module")
def chatterbox():
    return fill(TokenToMel(reduced("chatterbox")))


@pytest.fixture(scope="module")
def turbo():
    return fill(TokenToMel(reduced("chatterbox-turbo")))


@pytest.fixture(scope="module")
def cosyvoice2():
    return fill(TokenToMel(reduced("cosyvoice2")))


def voice_of(case, golden):
    return Voice(case["prompt_token"][0], case["prompt_feat"][0], golden["embedding"][0].float())


def solve(model, case, z, schedule, chunks=None):
    """The ODE alone, in the layout of the files, (B, C, T)."""
    mask = case["mask"].transpose(1, 2)
    mu, prompt = ((case[name] * case["mask"]).transpose(1, 2) for name in ("mu", "cond"))
    lengths = None if bool(mask.all()) else mask[..., 0].sum(1).long()
    given = mu, case["spks"], prompt, z.float().transpose(1, 2)
    x = model.sample(*given, schedule, lengths=lengths, chunks=chunks)
    return x.transpose(1, 2)


# The ODE


@torch.inference_mode()
def test_recorded_solutions(chatterbox):
    case = part(CFM["chatterbox"], "given")
    for name, steps in (("out", 10), ("out_1steps", 1), ("out_5steps", 5)):
        close(solve(chatterbox, case, case["z"], chatterbox.schedule(steps)), case[name], 5e-5)
    z = torch.randn(case["mu"].shape, generator=seeded(1001))
    close(z[:, :2], CFM["chatterbox"]["seeded/z_head"], 0)
    close(solve(chatterbox, case, z, chatterbox.schedule()), CFM["chatterbox"]["seeded/out"], 5e-5)


@torch.inference_mode()
def test_recorded_trajectory(chatterbox):
    case, schedule = part(CFM["chatterbox"], "given"), chatterbox.schedule()
    for step in (1, 4):
        until = replace(schedule, grid=schedule.grid[: step + 1])
        found = solve(chatterbox, case, case["z"], until)
        close(found[:, ::8], case["x_steps"][step - 1], 5e-5)


@torch.inference_mode()
def test_recorded_prefix_noise(cosyvoice2):
    table = PrefixNoise()
    close(table.frames(0, 24).T[::8], CFM["cosyvoice2"]["rand_noise_head"][0], 0)
    close(table.frames(14992, 15000).T[::8], CFM["cosyvoice2"]["rand_noise_tail"][0], 0)
    for name, scale, chunks in (("full", 1, None), ("chunk", 1, Chunks(10)), ("temperature", 0.6, None)):
        case = part(CFM["cosyvoice2"], name)
        z = scale * table.frames(0, case["mu"].shape[2]).T[None]
        close(solve(cosyvoice2, case, z, cosyvoice2.schedule(), chunks), case["out"], 5e-5)


@pytest.mark.parametrize("steps", [1, 2])
@torch.inference_mode()
def test_recorded_meanflow_steps(turbo, steps):
    case = {k: v.float() for k, v in CFM["meanflow"].items()}
    found = solve(turbo, case, case[f"{steps}steps/z"], turbo.schedule(steps))
    close(found, case[f"{steps}steps/out"], 2e-5)


def test_prefix_noise_has_no_end():
    table = PrefixNoise()
    late = table.frames(14_990, 30_010)  # over two borders
    assert late.shape == (15_020, 80)
    again = PrefixNoise()
    assert torch.equal(again.frames(15_005, 15_020), late[15:30])
    assert not torch.equal(late[10:20], table.frames(0, 10))
    assert table.frames(7, 7).shape == (0, 80)


def test_copies_compute_the_same(cosyvoice2):
    golden = part(FLOW["cosyvoice2"], "even")
    voice = voice_of(golden, FLOW["cosyvoice2"])
    mel, _ = cosyvoice2.generate(golden["tokens"], voice)
    again, _ = copy.deepcopy(cosyvoice2).generate(golden["tokens"], voice)
    assert torch.equal(mel, again)
    cosyvoice2.prepare(
        golden["tokens"], voice
    ).mu.sum().backward()  # what inference has kept does not stop training
    assert cosyvoice2.embedding.weight.grad.any()
    cosyvoice2.zero_grad(set_to_none=True)


def test_guidance_may_end_early(chatterbox):
    model = fill(TokenToMel(replace(reduced("chatterbox"), cfm_guidance_end=0.5)))
    schedule = model.schedule()
    assert schedule.guidance[:7] == pytest.approx([0.7] * 7)
    assert schedule.guidance[7:] == [0.0] * 3
    with torch.inference_mode():
        case = part(CFM["chatterbox"], "given")
        shorter = solve(model, case, case["z"], schedule)
    assert 0 < (shorter - case["out"]).abs().max() < 1


# Tokens to mel


@pytest.mark.parametrize(
    ("case", "seed"), [("even", 1020), ("odd", 1021), ("shortest", 1022), ("odd3", 1023)]
)
def test_recorded_chatterbox(chatterbox, case, seed):
    golden = part(FLOW["chatterbox"], case)
    voice = voice_of(golden, FLOW["chatterbox"])
    mel, frames = chatterbox.generate(golden["tokens"], voice, generator=seeded(seed))
    close(mel, golden["mel"], 5e-5)
    assert frames.tolist() == [golden["mel"].shape[2]]
    given = chatterbox.prepare(golden["tokens"], voice)
    close(given.speaker, FLOW["chatterbox"]["spk80"], 1e-6)
    if "mu" in golden:
        close(given.mu, golden["mu"], 1e-5)
        close(fresh_noise(20, 80, seeded(seed)).T[None], golden["z"], 0)
    if "mel_not_final" in golden:
        mel, _ = chatterbox.generate(golden["tokens"], voice, finalize=False, generator=seeded(1030))
        close(mel, golden["mel_not_final"], 5e-5)


@pytest.mark.parametrize(("case", "seed"), [("even", 1041), ("odd", 1043), ("shortest", 1045)])
@pytest.mark.parametrize("steps", [1, 2])
def test_recorded_meanflow(turbo, case, seed, steps):
    golden = part(FLOW["meanflow"], case)
    voice = voice_of(golden, FLOW["meanflow"])
    generator = seeded(seed + steps - 1)
    mel, _ = turbo.generate(golden["tokens"], voice, schedule=turbo.schedule(steps), generator=generator)
    close(mel, golden[f"mel_{steps}steps"], 5e-5)


@pytest.mark.parametrize("case", ["even", "odd", "long_mel", "shortest"])
@pytest.mark.parametrize("finalize", [True, False])
def test_recorded_cosyvoice2(cosyvoice2, case, finalize):
    golden = part(FLOW["cosyvoice2"], case)
    voice = voice_of(golden, FLOW["cosyvoice2"])
    for mask, chunks in (("full", None), ("chunk", cosyvoice2.config.chunks())):
        mel, _ = cosyvoice2.generate(golden["tokens"], voice, finalize=finalize, chunks=chunks)
        close(mel, golden[f"mel_{mask}" if finalize else f"mel_{mask}_not_final"], 5e-5)


def three_voices():
    odd, even = part(FLOW["chatterbox"], "odd"), part(FLOW["chatterbox"], "even")
    speaker = FLOW["chatterbox"]["embedding"][0].float()
    return [
        Voice(odd["prompt_token"][0], odd["prompt_feat"][0], speaker),
        Voice(even["prompt_token"][0], even["prompt_feat"][0], speaker.flip(0)),
        Voice(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 80), speaker.roll(7)),
    ]


@pytest.mark.parametrize("dialect", ["chatterbox", "turbo", "cosyvoice2"])
@pytest.mark.parametrize("chunks", [None, Chunks(5), Chunks(5, left=0, phase=1)])
@pytest.mark.parametrize("finalize", [True, False])
def test_ragged_batch_equals_singles(dialect, chunks, finalize, request):
    model = request.getfixturevalue(dialect)
    tokens = [torch.randint(6561, (n,), generator=seeded(n)) for n in (4, 13, 9)]
    voices, options = three_voices(), {"finalize": finalize, "chunks": chunks}
    together, frames = model.generate(tokens, voices, generator=[seeded(i) for i in range(3)], **options)
    for row, (ids, voice) in enumerate(zip(tokens, voices, strict=True)):
        alone, _ = model.generate(ids, voice, generator=seeded(row), **options)
        assert frames[row] == alone.shape[2]
        close(together[row : row + 1, :, : frames[row]], alone, 1e-5)
        assert not together[row, :, frames[row] :].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_ids(dtype, cosyvoice2):
    """Only 846 of 6561 ids survive a trip through bfloat16, 3689 one through float16."""
    golden = part(FLOW["cosyvoice2"], "even")
    voice = voice_of(golden, FLOW["cosyvoice2"])
    half = fill(TokenToMel(reduced("cosyvoice2"))).to(dtype)
    assert torch.equal(half.cut_prompt(voice).tokens, voice.tokens)
    assert voice.mel.dtype == torch.float32  # the caller's voice is left as it was
    mel, _ = half.generate(golden["tokens"], voice)
    assert mel.dtype == torch.float32
    assert (mel - golden["mel_full"]).std() < 0.05 * golden["mel_full"].std()


def test_published_names_go_both_ways():
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


def test_bad_input(cosyvoice2, turbo):
    voice = three_voices()[0]
    good = torch.arange(6)
    for tokens in (good[:0], [], good.float(), torch.tensor([6561]), torch.tensor([-1]), [good, good[:0]]):
        refused(TokensError, ".", cosyvoice2.generate, tokens, voice)
    refused(TokensError, "finalize", cosyvoice2.generate, good[:3], voice, finalize=False)
    for bad in (
        replace(voice, mel=torch.zeros(10, 79)),
        replace(voice, mel=torch.full((10, 80), torch.nan)),
        replace(voice, speaker=torch.zeros(191)),
        replace(voice, tokens=torch.zeros(1, 5, dtype=torch.int64)),
    ):
        refused(AudioError, ".", cosyvoice2.generate, good, bad)
    refused(AudioError, "leaves nothing", turbo.generate, good, replace(voice, mel=torch.zeros(40, 80)))
    refused(ConfigError, "voices", cosyvoice2.generate, [good, good], [voice])
    refused(ConfigError, "generators", lambda: turbo.generate([good, good], voice, generator=[seeded(0)]))
    refused(ConfigError, "Euler", turbo.schedule, solver="midpoint")


@pytest.mark.slow
def test_recorded_full_size():
    golden = load_file(HERE / "e2e_full.safetensors")
    ref = part(golden, "ref")
    voice = Voice(ref["prompt_token"][0], ref["prompt_feat"][0], ref["embedding"][0])
    flow = fill(TokenToMel(DIALECTS["cosyvoice2"]))
    for name, chunks in (("full", None), ("chunk", flow.config.chunks())):
        mel, _ = flow.generate(golden["cosyvoice2/tokens"], voice, chunks=chunks)
        close(mel[:, ::2], golden[f"cosyvoice2/mel_{name}_sub"], 1e-4)
    flow.config = DIALECTS["chatterbox"]
    mel, _ = flow.generate(golden["tokens"], voice, generator=seeded(1800))
    close(mel, golden["mel"], 1e-4)
    turbo = fill(TokenToMel(DIALECTS["chatterbox-turbo"]))
    mel, _ = turbo.generate(golden["tokens"], voice, generator=seeded(1900))
    close(mel, golden["meanflow/mel"], 1e-4)
