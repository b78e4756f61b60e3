"""USLM: the published networks' numbers and codes, cache = whole pass, batches as singles."""

import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import conftest
import pytest
import torch
from conftest import refused, seeded
from golden.weights import fill_, tensor
from safetensors.torch import load_file

import vokens
from vokens.errors import CheckpointError, ConfigError, TokensError
from vokens.lm.cache import KVCache
from vokens.lm.sampling import GREEDY, SamplingParams, keep_likeliest
from vokens.models.speechtokenizer import SpeechTokenizer, SpeechTokenizerConfig
from vokens.models.uslm import USLM, USLMConfig
from vokens.models.uslm.loss import next_code, next_code_loss, stage_loss

GOLDEN = Path(__file__).parents[2] / "golden/uslm"
FACTS = json.loads((GOLDEN / "config.json").read_text())
PUBLISHED = USLMConfig(front_end="espeak", published_stop=True, published_targets=True)
TINY = replace(PUBLISHED, width=64, heads=4, layers=2, feedforward=256)


def weights(config: USLMConfig, eos_scale: float = 1.0) -> dict[str, torch.Tensor]:
    """A golden case's weights under their published names."""
    with torch.device("meta"):
        shapes = USLM(config).to_published()
    state = fill_({name: torch.empty(value.shape) for name, value in shapes.items()}, FACTS["salt"])
    for name, value in state.items():
        rule = next((rule for rule in FACTS["overrides"] if re.search(rule["pattern"], name)), None)
        if rule:
            value.mul_(rule.get("mul", 1.0)).add_(rule.get("add", 0.0))
    for name, other in FACTS["tied"].items():
        if name != "note":
            state[name].copy_(state[other])
    state["ar_predict_layer.weight"][config.end] *= eos_scale
    return state


close = partial(conftest.close, bound=2e-5)


def load(name: str) -> dict[str, torch.Tensor]:
    tensors = load_file(GOLDEN / name).items()
    return {key: value.long() if value.dtype == torch.int32 else value for key, value in tensors}


@pytest.fixture(scope="module")
def golden():
    return load("tiny.safetensors")


@pytest.fixture(scope="module")
def published():
    return USLM.from_published(weights(TINY), {"heads": 4})


@pytest.fixture(scope="module")
def ending():
    """The case that reaches its end, with our own stop rule too."""
    return USLM.from_published(weights(TINY, 3.5), {"heads": 4})


def counts(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [torch.tensor([tensor.shape[1]] * len(tensor)) for tensor in tensors]


def stage_of(model: USLM, x: torch.Tensor, y: torch.Tensor, stage: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states and logits of a stage, from the codes before it."""
    speech = sum(
        (model.nar.embed(y[..., book], book) for book in range(1, stage)), model.nar.embed(y[..., 0], 0)
    )
    hidden = model.nar(x, counts(x)[0], speech, counts(y)[0], stage)
    return hidden, model.nar.logits(hidden[:, x.shape[1] :], stage)


@torch.inference_mode()
def test_first_network_matches(published, golden):
    x, y = golden["x"], golden["y"]
    close(published.ar.text_positions(published.ar.text(x)), golden["pos.ar_text"])
    close(published.ar.speech_positions(published.ar.speech(y[..., 0])), golden["pos.ar_audio"])
    hidden = published.ar(x, counts(x)[0], y[..., 0], counts(y)[0])
    logits = published.ar.predict(hidden[:, x.shape[1] :])
    close(hidden, golden["ar.hidden"])
    close(logits[..., ::8], golden["ar.logits.every8"])
    close(logits[:, -1], golden["ar.logits.last"])
    assert torch.equal(logits.argmax(-1), golden["ar.argmax"])


@torch.inference_mode()
@pytest.mark.parametrize("stage", range(1, 8))
def test_stages_match(published, golden, stage):
    hidden, logits = stage_of(published, golden["x"], golden["y"], stage)
    close(logits[..., ::32], golden[f"nar.{stage}.logits.every32"])
    assert torch.equal(logits.argmax(-1), golden[f"nar.{stage}.argmax"])
    if f"nar.{stage}.hidden" in golden:
        close(hidden, golden[f"nar.{stage}.hidden"])


@torch.inference_mode()
def test_losses_match(published, golden):
    batch = [golden[f"batch.{name}"] for name in ("x", "x_lens", "y", "y_lens")]
    first, counted = next_code_loss(published, batch)
    stages = [stage_loss(published, batch, stage)[0] for stage in range(1, 8)]
    two, both = (int(golden[f"batch.{name}_second_stage"]) for name in ("nar", "both"))
    close(first, golden["batch.loss_ar_sum"])
    close(stages[0] + stages[two - 1], golden["batch.loss_nar_sum"])
    close((first + stages[0] + stages[both - 1]) / 2, golden["batch.loss_both"])
    assert counted == int(golden["batch.y_lens"].sum())


@torch.inference_mode()
@pytest.mark.parametrize("case", ["cap", "eos"])
def test_greedy_codes_match(published, ending, golden, case):
    model = published if case == "cap" else ending
    x, prompt = golden[f"greedy.{case}.x"][0], golden[f"greedy.{case}.prompt"][0]
    assert torch.equal(model.speak([x], [prompt], [len(x)], GREEDY)[0], golden[f"greedy.{case}.out"][0])


@torch.inference_mode()
@pytest.mark.parametrize("mode", [1, 2])
def test_other_prefix_modes_match(golden, mode):
    model = USLM.from_published(weights(TINY, 3.5), {"heads": 4, "prefix_mode": mode})
    x, prompt = golden["greedy.eos.x"][0], golden["greedy.eos.prompt"][0]
    found = model.speak([x], [prompt], [len(x) - 2], GREEDY)[0]  # a prompt text of 2 symbols between its ends
    assert torch.equal(found, golden[f"greedy.eos.prefix_mode{mode}.out"][0])


@torch.inference_mode()
def test_sampled_codes_match(ending, golden):
    facts = FACTS["cases"]["tiny"]["sampled"]
    law = SamplingParams(facts["temperature"], facts["top_k"])
    x, prompt = golden["greedy.eos.x"][0], golden["greedy.eos.prompt"][0]
    found = ending.speak([x], [prompt], [len(x)], law, seeded(facts["seed"]))
    assert torch.equal(found[0], golden["sampled.out"][0])


def test_filters_and_draws_match(golden):
    logits = golden["filter.logits"]
    for name, law in {
        "off": (0, 1.0),
        "k5": (5, 1.0),
        "p0.7": (0, 0.7),
        "p0.01": (0, 0.01),
        "k10p0.6": (10, 0.6),
    }.items():
        assert torch.equal(keep_likeliest(logits, *law).isfinite(), golden[f"filter.{name}.keep"]), name
    for name, law in {"sample.k5.t0.8": SamplingParams(0.8, 5), "sample.off": SamplingParams()}.items():
        generator = seeded(FACTS["cases"]["tiny"]["sample_seeds"][name])
        drawn = [[law.draw(row, (), generator) for row in logits] for _ in range(16)]
        assert drawn == golden[name].tolist(), name


@torch.inference_mode()
@pytest.mark.parametrize("pace", [None, torch.tensor([2.5])])
def test_cache_is_the_whole_pass(published, golden, pace):
    x, codes = golden["x"], golden["y"][..., 0]
    whole = published.ar(x, counts(x)[0], codes, counts(codes)[0], pace=pace)[:, x.shape[1] :]
    cache = KVCache(TINY.layers)
    published.ar(x, counts(x)[0], codes[:, :3], torch.tensor([3]), cache, pace)
    for place in range(3, codes.shape[1]):
        at = torch.tensor([place])
        found = published.ar.step(codes[:, place], at, cache, pace)
        close(found, whole[:, place])


@pytest.fixture(scope="module")
def ours():
    """A model with our habits, which speaks without a prompt."""
    habits = {"front_end": "bytes", "published_stop": False, "published_targets": False}
    config = replace(TINY, **habits, frames_per_symbol=2)
    return USLM.from_published(weights(config, 3.0), config)


@torch.inference_mode()
def test_speech_beside_its_text_is_read_as_it_is_learned(ours):
    """An utterance said at the pace that it then has; half the pace stands elsewhere."""
    model = USLM(replace(ours.config, positions="progress", pace=2.0)).eval().requires_grad_(False)
    model.load_state_dict(ours.state_dict())
    ids = torch.tensor([[1, 9, 8, 7, 6, 2]])
    paces = torch.tensor([12 / 6])
    (said,) = model.continue_first(ids, counts(ids)[0], [ids[0, :0]], [12], GREEDY, pace=paces)
    codes = torch.stack([said] * TINY.num_codebooks, -1)[None]
    logits, _ = next_code(model, (ids, counts(ids)[0], codes, torch.tensor([len(said)])))
    assert len(said) == 12
    assert torch.equal(logits[0, :12, : TINY.codebook_size].argmax(-1), said)
    shorter, _ = next_code(model, (ids, counts(ids)[0], codes[:, :6], torch.tensor([6])))
    assert not torch.equal(shorter[0, 3], logits[0, 3])


@pytest.fixture(scope="module")
def codec():
    config = SpeechTokenizerConfig(n_filters=2, dimension=16, semantic_dim=16, lstm_layers=1)
    torch.manual_seed(0)
    return SpeechTokenizer(config).eval().requires_grad_(False)


@pytest.mark.parametrize(("mode", "pace"), [(0, 0.0), (1, 0.0), (2, 0.0), (0, 3.0)])
@pytest.mark.parametrize("law", [GREEDY, SamplingParams(0.9, top_k=50, top_p=0.9, repeats=2)])
def test_batch_is_single(ours, codec, mode, pace, law):
    positions = "progress" if pace else "sequence"
    model = USLM(replace(ours.config, prefix_mode=mode, positions=positions, pace=pace)).eval()
    model.load_state_dict(ours.state_dict())
    waves = [tensor(f"wave{n}", (n,)).clamp(-1, 1) for n in (3200, 640, 1500)]
    prompts = codec.encode(waves, 16000)
    texts, said = ["Hi.", "A longer text", "no"], ["one", "seven more", "x"]

    def generators(*seeds: int) -> list[torch.Generator]:
        return [seeded(seed) for seed in seeds]

    together = model.generate(texts, prompts, said, sampling=law, generator=generators(0, 1, 2))
    for row in range(3):
        alone = model.generate(texts[row], prompts[row], said[row], sampling=law, generator=generators(row))
        assert torch.equal(alone.codes, together[row].codes)


def test_a_voice_from_a_wave_to_a_wave(ours, codec):
    prompt = codec.encode(tensor("voice", (4000,)).clamp(-1, 1), 16000)
    tokens = ours.generate(["Hello", "you"], prompt, "hm", sampling=GREEDY)
    assert tokens.fingerprint == codec.fingerprint
    waves = codec.decode(tokens)
    assert [len(wave) for wave in waves] == (320 * tokens.lengths).tolist()
    assert int(tokens.lengths[1]) <= 2 * (3 + 2) + 1  # frames_per_symbol * (text and its two ends), and one


def test_limits(ours, published):
    x, prompt = torch.tensor([1, 87, 10, 11, 2]), torch.tensor([[3] * 8])
    long, short = (m.speak([x], [prompt], [3], GREEDY)[0] for m in (published, ours))
    assert 1 <= len(long) <= 16 * 5 + 1
    assert 1 <= len(short) <= 2 * 3 + 1
    assert len(ours.speak([x], [prompt], [3], GREEDY, max_frames=2)[0]) <= 2


@torch.inference_mode()
def test_losses_of_a_batch_are_the_sum_of_singles(ours, golden):
    x, x_lens, y, y_lens = (golden[f"batch.{name}"] for name in ("x", "x_lens", "y", "y_lens"))

    def losses(rows: slice, texts: int, frames: int) -> torch.Tensor:
        batch = x[rows, :texts], x_lens[rows], y[rows, :frames], y_lens[rows]
        return torch.tensor([next_code_loss(ours, batch), stage_loss(ours, batch, 3)])

    whole = losses(slice(0, 2), x.shape[1], y.shape[1])
    alone = sum(losses(slice(row, row + 1), int(x_lens[row]), int(y_lens[row])) for row in range(2))
    assert torch.allclose(whole, torch.as_tensor(alone), rtol=2e-5)
    assert whole[0, 1] == int((y_lens + 1).sum())


def test_published_layout_is_whole_and_two_way(published):
    keys = json.loads((GOLDEN / "keys.json").read_text())["USLM"]
    with torch.device("meta"):
        released = USLM(PUBLISHED)
    shapes = {name: list(value.shape) for name, value in released.to_published().items()}
    assert shapes == {name: shape for name, (shape, _) in keys.items()}
    assert sum(value.numel() for value in released.parameters()) == 367_386_628
    state = weights(TINY)
    back = published.to_published()
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_files_and_folders_open(published, tmp_path):
    torch.save({"model": published.to_published(), "epoch": 3}, tmp_path / "best.pt")
    opened = vokens.load(tmp_path / "best.pt", config={"heads": 4})
    folder = vokens.load(published.save_pretrained(tmp_path / "folder"))
    assert opened.fingerprint == folder.fingerprint == published.fingerprint


def test_foreign_weights_and_unknown_heads_are_refused():
    state = weights(TINY)
    missing = {name: value for name, value in state.items() if name != "nar_decoder.norm.norm.bias"}
    unexpected = state | {"ar_decoder.extra": torch.zeros(1)}
    untied = state | {"nar_predict_layers.0.weight": torch.zeros(1024, 64)}
    for wrong in (missing, unexpected, untied):
        refused(CheckpointError, ".", USLM.from_published, wrong, {"heads": 4})
    refused(CheckpointError, r"give config=\{'heads': n\}", USLM.from_published, state, None)
    assert USLM.from_published(state, TINY).config == TINY


@pytest.mark.slow
@torch.inference_mode()
def test_released_sizes_match():
    case = load("full.safetensors")
    model = USLM.from_published(weights(PUBLISHED))
    x, y = case["x"], case["y"]
    hidden = model.ar(x, counts(x)[0], y[..., 0], counts(y)[0])
    logits = model.ar.predict(hidden[:, x.shape[1] :])
    close(hidden[..., ::16], case["ar.hidden.every16"])
    close(logits[..., ::16], case["ar.logits.every16"])
    assert torch.equal(logits.argmax(-1), case["ar.argmax"])
    for stage in (1, 4, 7):
        hidden, logits = stage_of(model, x, y, stage)
        close(hidden[..., ::16], case[f"nar.{stage}.hidden.every16"])
        close(logits[..., ::32], case[f"nar.{stage}.logits.every32"])
        assert torch.equal(logits.argmax(-1), case[f"nar.{stage}.argmax"])


def test_requests_that_cannot_be_met(ours, published, codec):
    prompt = codec.encode(tensor("voice", (4000,)).clamp(-1, 1), 16000)
    refused(TokensError, "prompt of at least one frame", published.generate, "h|aɪ", spelling="phonemes")
    refused(TokensError, "all 8 codebooks", lambda: ours.generate("hi", prompt.select(0, 3)))
    other = USLM(replace(TINY, codec="another", fingerprint="f00d"))
    foreign = replace(prompt, fingerprint="beef")
    refused(TokensError, "another", other.generate, "h|aɪ", foreign, spelling="phonemes")
    refused(TokensError, "2 prompts", ours.generate, ["a", "b", "c"], vokens.Tokens.cat([prompt, prompt]))
    for texts, options in (
        ([], {}),
        ("  ", {}),
        ("a", {"prompt_text": ["b", "c"]}),
        ("a", {"max_frames": 0}),
        ("a", {"spelling": "klingon"}),
        (["a", "b"], {"generator": [torch.Generator()]}),
    ):
        refused(ConfigError, ".", ours.generate, texts, **options)
    for wrong in ({"heads": 5}, {"num_codebooks": 1}, {"prefix_mode": 4}, {"front_end": "x"}):
        refused(ConfigError, ".", replace, TINY, **wrong)
    refused(ConfigError, "text_symbols", lambda: USLM(replace(TINY, text_symbols=50)))


def test_a_codec_beside_it_keeps_its_config_and_is_told_apart(tmp_path: Path, published: USLM) -> None:
    torch.manual_seed(0)
    sizes = {"n_filters": 4, "dimension": 32, "semantic_dim": 24, "codebook_size": 32}
    codec = SpeechTokenizer(SpeechTokenizerConfig(**sizes))
    (tmp_path / "config.json").write_text(json.dumps(codec.config.to_published()))
    torch.save(codec.to_published(), tmp_path / "SpeechTokenizer.pt")
    torch.save(published.to_published(), tmp_path / "USLM.pt")
    refused(
        CheckpointError, "heads", vokens.load, tmp_path / "USLM.pt"
    )  # and no word of the codec's settings
    assert vokens.load(tmp_path / "USLM.pt", config={"heads": 4}).system == "uslm"
    assert vokens.load(tmp_path / "SpeechTokenizer.pt").config == codec.config
    said = r"SpeechTokenizer\.pt, USLM\.pt.*such as .*SpeechTokenizer\.pt"
    refused(CheckpointError, said, vokens.load, tmp_path)
