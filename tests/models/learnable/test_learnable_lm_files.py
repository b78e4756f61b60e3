"""Files of Learnable-Speech's language model: published names both ways, other releases, what is refused."""

from dataclasses import replace

import lm_cases
import pytest
import torch
from conftest import close, refused, seeded
from golden.weights import fill_
from lm_cases import EMBEDDING, GOLDEN, HEADS, SALT, TIED, TINY, batch, published_state
from safetensors.torch import save_file
from speakers import qwen2

import vokens
from vokens import checkpoint
from vokens.errors import CheckpointError, ConfigError
from vokens.lm.decode import decode
from vokens.lm.sampling import GREEDY
from vokens.models.learnable import LearnableLM, LearnableLMConfig
from vokens.models.learnable.loss import label_loss

lm, corrected = lm_cases.lm, lm_cases.corrected


def test_published_names_go_both_ways(lm, tmp_path):
    state = published_state()
    back = lm.to_published()
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], value) for name, value in state.items())
    torch.save(state | {"epoch": 1, "step": 2}, tmp_path / "llm.pt")
    loaded = vokens.load(tmp_path / "llm.pt", config=HEADS)
    assert isinstance(loaded, LearnableLM)
    assert loaded.config == lm.config
    lm.save_pretrained(tmp_path / "ours")
    assert vokens.load(tmp_path / "ours").fingerprint == lm.fingerprint
    refused(CheckpointError, ".", LearnableLM.from_published, state | {"extra": torch.zeros(1)}, HEADS)


def test_heads_are_asked_for_and_never_guessed(lm):
    state = published_state()
    for config, lacking in ((None, "num_attention_heads"), ({"num_attention_heads": 2}, "speaker_heads")):
        said = rf"give config=\{{'{lacking}': n\}}"
        refused(CheckpointError, said, LearnableLM.from_published, state, config)
    assert LearnableLM.from_published(state, lm.config).config == lm.config


def test_a_network_that_the_published_code_is_not_keeps_its_own_layout(lm):
    changed = replace(lm.config, positions="progress", pace=4.0)
    said = r"positions = 'progress': save this model with save_pretrained"
    refused(CheckpointError, said, LearnableLM(changed).to_published)


def test_a_file_in_the_published_layout_holds_its_config(tmp_path):
    """12 heads of 8 in a backbone 96 wide: of what the shapes say, any number of heads would do."""
    sizes = replace(TINY, width=96, heads=12, kv_heads=4)
    model = LearnableLM(LearnableLMConfig(sizes, None, speech_tokens=61, speech_per_text=(1.0, 3.0)))
    checkpoint.save_torch(tmp_path / "llm.pt", model.to_published() | {"epoch": 1}, model.description())
    moved = (tmp_path / "llm.pt").rename(tmp_path / "elsewhere.pt")
    again = vokens.load(moved)
    assert again.config == model.config
    assert again.fingerprint == model.fingerprint
    plain = torch.load(moved, weights_only=True)  # as published code reads it
    assert plain.pop("epoch") == 1
    assert plain.keys() == model.to_published().keys()
    torch.save(plain, moved)  # without the config, nothing is guessed
    refused(CheckpointError, "num_attention_heads", vokens.load, moved)


def test_cosyvoice_weights_open_and_start_ours(corrected, tmp_path):
    state = {k: v for k, v in published_state().items() if not k.startswith(("speaker", "spk"))}
    plain = LearnableLM.from_published(state, HEADS)
    assert plain.config.speaker is None
    close(label_loss(*plain(**batch())), GOLDEN["uni.nospk.loss"])
    torch.save(state, tmp_path / "llm.pt")
    model = LearnableLM(corrected.config)
    before = model.speaker_project.weight.clone()
    model.warm_start(tmp_path / "llm.pt")
    assert torch.equal(model.head.weight, plain.head.weight)
    assert torch.equal(model.speaker_project.weight, before)
    folder = tmp_path / "qwen2"
    folder.mkdir()
    words = {k.removeprefix("llm."): v for k, v in state.items() if k.startswith("llm.") and k != TIED}
    words = {name.removeprefix("model."): value.contiguous() for name, value in words.items()}
    save_file(words, folder / "model.safetensors")
    model = LearnableLM(corrected.config).warm_start(folder)
    assert torch.equal(model.backbone.state_dict()["norm.weight"], plain.backbone.state_dict()["norm.weight"])


OF_THIRD = {"tokens": "speech_tokenizer_v3_25hz", "release": "cosyvoice3"}
THIRD = LearnableLMConfig(TINY, None, speech_tokens=61, **OF_THIRD)


@pytest.fixture(scope="module")
def third() -> LearnableLM:
    """As its llm.pt gives it."""
    state = {name: value.clone() for name, value in LearnableLM(THIRD).to_published().items()}
    state = fill_(state, SALT)
    state[EMBEDDING] = state[TIED].mul_(8)
    state["speech_embedding.weight"] *= 8
    return LearnableLM.from_published(state, HEADS)


def test_the_third_release_is_told_by_its_names_and_strict(third, tmp_path):
    assert third.config == THIRD
    assert third.name == "cosyvoice3"
    state = third.to_published()
    assert "llm_embedding.weight" not in state
    assert state["llm_decoder.weight"].shape == state["speech_embedding.weight"].shape == (261, 64)
    torch.save(state | {"epoch": 1, "step": 2}, tmp_path / "llm.pt")
    again = vokens.load(tmp_path / "llm.pt", config=HEADS)
    assert again.config == THIRD
    assert again.fingerprint == third.fingerprint
    for changed in (state | {"llm_decoder.bias": torch.zeros(261)}, state | {"x": torch.zeros(1)}):
        refused(CheckpointError, ".", LearnableLM.from_published, changed, HEADS)
    third.save_pretrained(tmp_path / "ours")
    assert vokens.load(tmp_path / "ours").fingerprint == third.fingerprint
    refused(ConfigError, "cosyvoice2 or cosyvoice3", LearnableLMConfig, release="cosyvoice4")


def test_the_third_release_reads_and_asks_as_published(third):
    """Start 61, end 62, task 63 and "more text" 64 are rows of the speech tokens' table; the head has no bias."""
    state, given = third.to_published(), batch()
    text, speech = given["text"][:1, :12], given["speech"][:1, :20]
    speech_table = state["speech_embedding.weight"]
    rows = [speech_table[61:62], state[EMBEDDING][text[0]], speech_table[63:64], speech_table[speech[0]]]
    pytest.importorskip("transformers")
    network = qwen2(TINY, rope_theta=1e6)
    below = "llm.model.model."
    network.load_state_dict({k.removeprefix(below): v for k, v in state.items() if k.startswith(below)})
    hidden = network(inputs_embeds=torch.cat(rows)[None], use_cache=False).last_hidden_state
    scores, target = third(text, torch.tensor([12]), speech, torch.tensor([20]))
    close(scores, hidden @ state["llm_decoder.weight"].T)
    assert target[0].tolist() == [-1] * 13 + speech[0].tolist() + [62]
    longer = given["speech"][:1].repeat(1, 2)[:, :60]
    mixed = third(text, torch.tensor([12]), longer, torch.tensor([60]), bistream=True)[1][0].tolist()
    assert (mixed.count(64), mixed[-1]) == (2, 62)
    said = third.generate([text[0]], generator=seeded(0), limits=(3, 30))[0]
    assert 3 <= len(said) <= 30
    assert int(said.max()) < 61


def no_step(last: torch.Tensor) -> torch.Tensor:
    raise AssertionError("a step was taken behind the last token")


@pytest.mark.parametrize("first", [61, 62, 63, 100])
def test_nothing_but_the_end_ends_the_third_release(third, first):
    """Of the 200 ids behind the codes the end alone can be drawn, and only where it may come."""
    scores = torch.zeros(261)
    scores[first] = 50.0
    options = {"end": 62, "generators": [None]}
    for least, tokens in ((0, [] if first == 62 else [[0]]), (1, [[0]])):
        logits = third.drawable(scores[None].clone())
        assert list(decode(logits, no_step, GREEDY, limits=[(least, 1)], **options)) == tokens


def test_training_starts_from_the_third_release_and_never_mixes(third, corrected, tmp_path):
    torch.save(third.to_published(), tmp_path / "llm.pt")
    hears = replace(THIRD, speaker=corrected.config.speaker)
    started = LearnableLM(hears).warm_start(tmp_path / "llm.pt")
    assert torch.equal(started.head.weight, third.head.weight)
    assert torch.equal(started.speech_embedding.weight, third.speech_embedding.weight)
    loss = label_loss(*started(**batch(), speaker=started.speaker_of(GOLDEN["reference_mels"])))
    loss.backward()
    assert started.speech_embedding.weight.grad[[61, 63]].abs().sum() > 0
    started.save_pretrained(tmp_path / "ours")
    assert torch.equal(LearnableLM(hears).warm_start(tmp_path / "ours").head.weight, started.head.weight)
    for config, said in (
        (corrected.config, r"llm\.pt is of cosyvoice3.*set model\.release"),
        (replace(THIRD, tokens="speech_tokenizer_v2_25hz"), "learns those of speech_tokenizer_v2_25hz"),
    ):
        refused(CheckpointError, said, LearnableLM(config).warm_start, tmp_path / "llm.pt")
