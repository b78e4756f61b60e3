"""Small language models of Learnable-Speech, and the published arrays for them."""

import json
from pathlib import Path

import pytest
import torch
from golden.weights import fill_
from safetensors.torch import load_file

from vokens.models.learnable import LearnableLM, LearnableLMConfig, Qwen2Sizes, SpeakerConfig

FOLDER = Path(__file__).parents[2] / "golden/learnable"
SPEECH = json.loads((FOLDER / "config.json").read_text())["speech"]
SALT = SPEECH["salt"]
GOLDEN = load_file(FOLDER / "lm_tiny.safetensors")
HEADS = {"num_attention_heads": 4, "speaker_heads": 4, "max_position_embeddings": 512}
TINY = Qwen2Sizes(120, 64, 128, 2, 4, 2, 512)
EMBEDDING, TIED = "llm.model.model.embed_tokens.weight", "llm.model.lm_head.weight"


@pytest.fixture(scope="module")
def lm() -> LearnableLM:
    return LearnableLM.from_published(published_state(), HEADS)


@pytest.fixture(scope="module")
def corrected() -> LearnableLM:
    """A model with the faults of published ones mended, whose weights all change its output."""
    torch.manual_seed(0)
    speaker = SpeakerConfig(n_mels=80, width=32, layers=2, heads=2, embed_dim=12)
    config = LearnableLMConfig(TINY, speaker, speech_tokens=61, speech_per_text=(2.0, 6.0))
    model = LearnableLM(config).eval().requires_grad_(False)
    for name, weight in model.named_parameters():
        if name.startswith("speaker_encoder") and "out" in name:
            weight.normal_(0, 0.2)
    model.head.weight.normal_(0, 1.0)
    return model


def published_state() -> dict[str, torch.Tensor]:
    speaker = SpeakerConfig(width=128, layers=2, heads=4, published=True)
    model = LearnableLM(LearnableLMConfig(TINY, speaker, speech_tokens=61))
    state = fill_({name: value.clone() for name, value in model.to_published().items()}, SALT)
    state[TIED] *= 8.0
    state[EMBEDDING] = state[TIED].clone()
    for name in ("llm_embedding.weight", "speech_embedding.weight"):
        state[name] *= 8.0
    return state


def batch() -> dict[str, torch.Tensor]:
    names = ("text", "text_lengths", "speech", "speech_lengths")
    keys = ("text_token", "text_token_len", "speech_token", "speech_token_len")
    return {name: GOLDEN[key].long() for name, key in zip(names, keys, strict=True)}
