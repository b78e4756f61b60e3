"""Learnable-Speech's second stage: recorded outputs of the published code, both ratios, batches, prompts, streams,
published weights both ways."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import close, refused, seeded
from golden.weights import tensor
from s3gen_weights import sizes
from safetensors.torch import load_file

import vokens
from vokens.checkpoint import save_safetensors
from vokens.errors import AudioError, CheckpointError, ConfigError, TokensError
from vokens.flow import objective
from vokens.models.dacvae import DACVAE, DACVAEConfig
from vokens.models.learnable import SpeakerConfig
from vokens.models.learnable.flow import LearnableFlow
from vokens.models.learnable.flow_checkpoint import configure, read_start
from vokens.models.learnable.flow_config import LearnableFlowConfig, latent_flow
from vokens.models.s3gen.flow import Voice
from vokens.nn.masks import padding_mask
from vokens.nn.streaming import Chunks, Context

HERE = Path(__file__).parents[2] / "golden/learnable"
TINY = load_file(HERE / "flow_tiny.safetensors")
SETTINGS = json.loads((HERE / "config.json").read_text())["speech"]["cases"]
HEADS = {"decoder_num_heads": 2, "decoder_attention_head_dim": 16, "speaker_heads": 4, "chunk_size": 3}
TINY_SIZES = latent_flow(**sizes(64, 4, 96, 2, 1, 64, 1, 2, 2, 16, 3))


def golden_state(model: LearnableFlow, case: str) -> dict[str, torch.Tensor]:
    """Weights under the published names."""
    state = {name: tensor(name, tuple(value.shape)) for name, value in model.to_published().items()}
    for rule in SETTINGS[case]["overrides"]:
        for name in state:
            if re.search(rule["pattern"], name):
                state[name] = state[name] * rule["mul"]
    return state


@pytest.fixture(scope="module")
def tiny() -> LearnableFlow:
    speaker = SpeakerConfig(width=128, layers=2, heads=4, published=True)
    model = LearnableFlow(LearnableFlowConfig(TINY_SIZES, speaker))
    return LearnableFlow.from_published(golden_state(model, "flow_tiny"), HEADS)


def random_flow(
    ratio: int, dim: int = 6, sampling: dict[str, Any] | None = None, **settings: Any
) -> LearnableFlow:
    torch.manual_seed(0)
    sizes = {"mel_bins": dim, "token_mel_ratio": ratio, "speaker_embed_dim": 8, "vocab_size": 20}
    config = replace(TINY_SIZES, **sizes, **(sampling or {}))
    return LearnableFlow(LearnableFlowConfig(config, None, **settings)).eval().requires_grad_(False)


def speakers(model: LearnableFlow) -> torch.Tensor:
    assert model.speaker_encoder is not None
    return model.speaker_encoder.many(TINY["reference_mels"])


@torch.inference_mode()
def test_recorded_encoder_and_speaker(tiny):
    """Row 0 has no padding. In the published code the look-ahead of shorter rows reads the norm's bias beyond their
    end, so that padding changes them by up to 0.4; ours does not."""
    net = tiny.network
    encoded = net.encoder(net.embedding(TINY["token"].long()), TINY["token_len"].long())
    close(encoded[0], TINY["encoder"][0])
    close(net.project(encoded)[0], TINY["mu"][0])
    close(speakers(tiny), TINY["speaker_embedding"])
    close(net.embed_speaker(speakers(tiny)), TINY["spk"])


LENGTHS = 2 * TINY["token_len"].long()


@pytest.mark.parametrize("streaming", [0, 1])
@torch.inference_mode()
def test_recorded_estimator(tiny, streaming):
    estimator = tiny.network.estimator
    context = Context.of(TINY["mu"], lengths=LENGTHS, chunks=Chunks(6) if streaming else None)
    conditions = estimator.conditions(TINY["mu"], TINY["spk"], TINY["latent"])
    shifts = estimator.shifts(torch.tensor([0.0, 0.5, 1.0]))
    found = estimator(TINY["est.x"].transpose(1, 2), shifts, conditions, context)
    close(found.transpose(1, 2), TINY[f"est.out.streaming{streaming}"])


@pytest.mark.parametrize("case", ["plain", "plain_knn", "contrastive"])
def test_recorded_training_losses(tiny, case):
    """Losses and gradients of the published training step from its own draws, given mu."""
    net, latent = tiny.network.requires_grad_(True), TINY["latent"]
    draws = {
        name.removeprefix(f"{case}."): value for name, value in TINY.items() if name.startswith(f"{case}.")
    }
    mask = TINY["mask"].transpose(1, 2)
    noise = draws["noise"]
    if "knn.index" in draws:
        noise = noise[torch.arange(3), draws["knn.index"]]
    t = objective.cosine_time(draws["t_raw"])
    close(t, draws["t"])
    x, velocity = objective.straight_path(latent, noise.transpose(1, 2), t)
    keep = (draws["cfg_uniform"] > 0.2).float()[:, None]
    mu = TINY["mu"].clone().requires_grad_()
    vectors = torch.nn.functional.normalize(speakers(tiny).detach(), dim=1)
    given = latent * padding_mask(draws["cond_frames"], 14)[..., None]
    conditions = net.estimator.conditions(
        mu * keep[..., None], net.speaker(vectors) * keep, given * keep[..., None]
    )
    context = Context.of(x, lengths=LENGTHS)
    found = net.estimator(x, net.estimator.shifts(t), conditions, context)
    close((found * mask).transpose(1, 2), draws["pred"])
    loss = objective.squared_error(found, velocity, mask)
    if case == "contrastive":
        close(loss, draws["positive"])
        # Padded frames of partners count.
        negative = objective.squared_error(found, velocity[draws["perm"]], mask)
        close(negative, draws["negative"])
        loss = loss - 0.05 * negative
    close(loss, draws["loss"])
    net.zero_grad()
    loss.backward()
    close(net.estimator.out.weight.grad, draws["grad/decoder.estimator.final_proj.weight"], 1e-4)
    close(net.speaker.bias.grad, draws["grad/spk_embed_affine_layer.bias"], 1e-4)
    close(mu.grad.sum((0, 1)), draws["grad/encoder_proj.bias"], 1e-4)
    net.requires_grad_(False)


def test_recorded_choice_of_noise():
    """Half precision and padding change the published choice in two of six rows."""

    def nearest(mask: torch.Tensor) -> torch.Tensor:
        ranks = [objective._rank(TINY["knn8.x1"], noise, mask) for noise in TINY["knn8.noise"].unbind(1)]
        return torch.stack(ranks).argmin(0)

    assert torch.equal(nearest(TINY["knn8.mask"]), TINY["knn8.index_masked_fp32"])
    assert torch.equal(nearest(torch.ones_like(TINY["knn8.mask"])), TINY["knn8.index_reference"])


def prompted(model: LearnableFlow) -> tuple[torch.Tensor, Voice]:
    tokens, latents = TINY["token"][0].long(), TINY["latent"][0]
    return tokens[2:], Voice(tokens[:2], latents[:4], TINY["speaker_embedding"][0])


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("finalize", [False, True])
@torch.inference_mode()
def test_recorded_inference(tiny, streaming, finalize):
    tokens, voice = prompted(tiny)
    chunks = tiny.config.flow.chunks() if streaming else None
    frames = 2 * (7 if finalize else 4)
    noise = [TINY["inference.rand_noise"][0, :, :frames].T]
    found, _ = tiny.network.generate(tokens, voice, finalize=finalize, chunks=chunks, noise=noise)
    close(found, TINY[f"inference.streaming{int(streaming)}.finalize{int(finalize)}"], 2e-5)


def test_recorded_inference_through_generate(tiny):
    tokens, voice = prompted(tiny)
    options = {"prompt_tokens": voice.tokens, "prompt_latents": voice.mel.T, "seed": 0}
    for chunked in (False, True):
        found = tiny.generate(tokens, voice.speaker[None], chunked=chunked, **options)
        close(found[0][None], TINY[f"inference.streaming{int(chunked)}.finalize1"], 2e-5)
    vector = 3 * TINY["speaker_embedding"][:1]
    latents = tiny.generate(TINY["token"][0], vector, seed=0)[0]
    close(latents[None], TINY["inference.embedding_no_prompt"], 2e-5)


@pytest.mark.slow
@torch.inference_mode()
def test_recorded_full_size():
    golden = load_file(HERE / "flow_full.safetensors")
    model = LearnableFlow(LearnableFlowConfig())
    model = LearnableFlow.from_published(golden_state(model, "flow_full"))
    assert model.config == LearnableFlowConfig()
    assert sum(value.numel() for value in model.parameters()) == 118_999_216
    tokens, net = golden["token"].long(), model.network
    encoded = net.encoder(net.embedding(tokens))
    close(encoded[..., ::16], golden["encoder.every16"])
    close(net.project(encoded), golden["mu"])
    assert model.speaker_encoder is not None
    vector = model.speaker_encoder.many(golden["reference_mels"])
    close(net.embed_speaker(vector), golden["spk"])
    prompt = {"prompt_tokens": tokens[0, :2], "prompt_latents": golden["prompt_latent"][0].T}
    found = model.generate(tokens[0, 2:], vector, seed=0, **prompt)
    close(found[0][None], golden["inference"], 2e-5)


SPEAKER = torch.randn(3, 8, generator=seeded(1))
ROWS = [torch.arange(n) % 20 for n in (5, 11, 8)]


@pytest.mark.parametrize("ratio", [2, 3])
def test_a_batch_gives_what_each_row_gives_alone(ratio):
    flow = random_flow(ratio)
    prompt = {"prompt_tokens": ROWS[0][:3], "prompt_latents": torch.randn(6, 3 * ratio)}
    for options in ({}, prompt, {"chunked": True, **prompt}):
        found = flow.generate(ROWS, SPEAKER, seed=3, steps=3, **options)
        for row, vector, latents in zip(ROWS, SPEAKER, found, strict=True):
            assert latents.shape == (6, ratio * len(row))
            alone = flow.generate([row], vector[None], seed=3, steps=3, **options)
            torch.testing.assert_close(latents, alone[0], atol=2e-5, rtol=1e-5)


def test_noise_is_of_the_generator():
    flow = random_flow(2)
    each = [seeded(row) for row in range(3)]
    found = flow.generate(ROWS, SPEAKER, steps=2, generator=each)
    alone = flow.generate(ROWS[1], SPEAKER[1:2], steps=2, generator=seeded(1))
    torch.testing.assert_close(found[1], alone[0], atol=2e-5, rtol=1e-5)
    assert not torch.equal(alone[0], flow.generate(ROWS[1], SPEAKER[1:2], steps=2, generator=seeded(2))[0])


def test_the_temperature_scales_the_noise_of_guided_dims():
    cooled = random_flow(2, sampling={"cfm_temperature": 0.5, "cfm_guidance_from": 2})
    plain = random_flow(2, sampling={"cfm_guidance_from": 2})
    assert (
        cooled.fingerprint
        != plain.fingerprint
        == random_flow(2, sampling={"cfm_guidance_from": 2}).fingerprint
    )
    voice = Voice(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 6), SPEAKER[0])
    noise = torch.randn(22, 6, generator=seeded(4))
    scaled = torch.cat([noise[:, :2], noise[:, 2:] / 2], 1)
    ours, _ = cooled.network.generate(ROWS[1], voice, noise=[noise])
    theirs, _ = plain.network.generate(ROWS[1], voice, noise=[scaled])
    torch.testing.assert_close(ours, theirs)
    refused(ConfigError, "cfm_temperature=-1", random_flow, 2, sampling={"cfm_temperature": -1.0})


@pytest.mark.parametrize("ratio", [2, 3])
@pytest.mark.parametrize("pieces", [[1] * 11, [4, 0, 7], [11]])
def test_streams_are_the_whole_under_the_same_mask(ratio, pieces):
    sampling = {"cfm_temperature": 0.5, "cfm_guidance_from": 2}
    flow = random_flow(ratio, mean=(1.0,) * 6, std=(2.0,) * 6, sampling=sampling)
    prompt = {"prompt_tokens": ROWS[0][:4], "prompt_latents": torch.randn(6, 4 * ratio)}
    whole = flow.generate(ROWS[1], SPEAKER[:1], chunked=True, seed=5, steps=3, **prompt)[0]
    parts = list(flow.stream(ROWS[1].split(pieces), SPEAKER[:1], seed=5, steps=3, **prompt))
    assert len(parts) > 1
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=2e-5, rtol=1e-5)


def test_latents_are_in_the_autoencoders_units():
    plain = random_flow(2)
    mean, std = tuple(float(i) for i in range(6)), tuple(0.5 + i for i in range(6))
    scaled = random_flow(2, mean=mean, std=std)
    prompt = torch.randn(6, 6)
    theirs = plain.generate(ROWS[1], SPEAKER[:1], seed=0, prompt_tokens=ROWS[0][:3], prompt_latents=prompt)[0]
    shift, scale = torch.tensor(mean)[:, None], torch.tensor(std)[:, None]
    options = {"prompt_tokens": ROWS[0][:3], "prompt_latents": prompt * scale + shift}
    ours = scaled.generate(ROWS[1], SPEAKER[:1], seed=0, **options)[0]
    torch.testing.assert_close(ours, theirs * scale + shift, atol=1e-4, rtol=1e-5)


def test_the_autoencoder_decodes_what_is_packed():
    torch.manual_seed(0)
    rates = {"encoder_rates": (4, 120), "decoder_rates": (120, 4)}
    vae = DACVAE(DACVAEConfig(**rates, encoder_dim=2, decoder_dim=8, latent_dim=6)).eval()
    flow = random_flow(2, latents=vae.name, latents_fingerprint=vae.fingerprint)
    waves = vae.decode(flow.pack(flow.generate(ROWS, SPEAKER, seed=0, steps=1)))
    assert [len(wave) for wave in waves] == [960 * len(row) for row in ROWS]
    other = random_flow(2, latents=vae.name, latents_fingerprint="0" * 16)
    with pytest.raises(TokensError, match="other weights"):
        vae.decode(other.pack(other.generate(ROWS[0], SPEAKER[:1], seed=0, steps=1)))


def test_published_weights_both_ways(tiny, tmp_path):
    state = tiny.to_published()
    keys = json.loads((HERE / "flow80_keys.json").read_text())
    assert {re.sub(r"\.\d+(?=\.)", ".N", name) for name in state} == set(keys)
    save_safetensors(tmp_path / "stage2.safetensors", state)
    again = vokens.load(tmp_path / "stage2.safetensors", config=HEADS)
    assert (again.system, again.name) == ("learnable_flow", "stage2")
    assert again.config == tiny.config
    for name, value in state.items():
        assert torch.equal(again.to_published()[name], value), name
    for change in ({"extra.weight": torch.zeros(1)}, {"encoder_proj.bias": None}):
        damaged = {name: value for name, value in (state | change).items() if value is not None}
        refused(CheckpointError, ".", LearnableFlow.from_published, damaged, HEADS)


def test_saved_folders_open_the_same(tiny, tmp_path):
    tiny.save_pretrained(tmp_path / "flow")
    again = vokens.load(tmp_path / "flow")
    assert isinstance(again, LearnableFlow)
    assert again.fingerprint == tiny.fingerprint
    vector = again.voice(torch.randn(30_000), sample_rate=24000)
    assert vector.shape == (1, 192)
    assert torch.allclose(vector.norm(), torch.tensor(1.0))


def test_a_published_mel_flow_is_a_start(tiny, tmp_path):
    flow = {k: v for k, v in tiny.to_published().items() if not k.startswith("speaker_encoder")}
    save_safetensors(tmp_path / "flow.safetensors", flow)
    tiny.save_pretrained(tmp_path / "ours")
    tiny.network.save_pretrained(tmp_path / "s3gen")
    for source in ("flow.safetensors", "ours", "s3gen"):
        state = read_start(tmp_path / source)
        assert state.keys() == tiny.network.state_dict().keys()
        assert all(torch.equal(state[name], value) for name, value in tiny.network.state_dict().items())
    save_safetensors(tmp_path / "other.safetensors", {"weight": torch.zeros(2)})
    refused(CheckpointError, "no start", read_start, tmp_path / "other.safetensors")
    heads = {"decoder_num_heads": 2}
    assert configure(flow, heads).speaker is None
    assert configure(flow, heads).flow.decoder_attention_head_dim == 16
    for config, lacking in ((None, "decoder_num_heads"), (heads, "speaker_heads")):
        refused(CheckpointError, rf"give config=\{{'{lacking}': n\}}", configure, tiny.to_published(), config)


def test_bad_inputs_are_named(tiny):
    flow, one = random_flow(2), {"speaker": SPEAKER[:1]}
    for kind, words, ids, options in (
        (TokensError, "0 to 19", [25], one),
        (TokensError, "integers", [], one),
        (AudioError, "speaker", [1], {"speaker": SPEAKER[:2]}),
        (ConfigError, "both", [1], one | {"prompt_tokens": [1]}),
        (ConfigError, "seed", [1], one | {"seed": 1, "generator": torch.Generator()}),
        (
            AudioError,
            "prompt_latents",
            [1],
            one | {"prompt_tokens": [1], "prompt_latents": torch.zeros(2, 5)},
        ),
    ):
        refused(kind, words, flow.generate, ids, **options)
    refused(ConfigError, "speaker encoder", lambda: flow.voice(torch.zeros(100), sample_rate=24000))
    refused(ConfigError, "std", LearnableFlowConfig, mean=(0.0,) * 80, std=(0.0,) * 80)
    refused(ConfigError, "numbers", LearnableFlowConfig, mean=(0.0,), std=(1.0,))
