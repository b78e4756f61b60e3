"""Whisper as an ASR model: the network of transformers, greedy in bounded time, what it must not write."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import refused

pytest.importorskip("tokenizers")

from tokenizers import Tokenizer, models, pre_tokenizers

from vokens.bench.evaluators import open_recogniser
from vokens.bench.evaluators.whisper import Whisper, WhisperNetwork
from vokens.checkpoint import save_safetensors
from vokens.errors import AudioError, CheckpointError, NotInstalled
from vokens.evaluator_files import find_evaluator

MARKS = ["endoftext", "startoftranscript", "en", "de", "transcribe", "notimestamps"]
WORDS = ["quiet", "the", "sea", *(f"<|{mark}|>" for mark in MARKS), "<|0.00|>"]
# transformers' names -> OpenAI's, of tensors inside a layer and around all
NAMES = [
    (r"(encoder|decoder)\.layers\.", r"\1.blocks."),
    (r"\.encoder_attn_layer_norm\.", ".cross_attn_ln."),
    (r"\.self_attn_layer_norm\.", ".attn_ln."),
    (r"\.final_layer_norm\.", ".mlp_ln."),
    (r"\.encoder_attn\.", ".cross_attn."),
    (r"\.self_attn\.", ".attn."),
    (r"\.(q|k|v)_proj\.", lambda m: {"q": ".query.", "k": ".key.", "v": ".value."}[m[1]]),
    (r"\.out_proj\.", ".out."),
    (r"\.fc1\.", ".mlp.0."),
    (r"\.fc2\.", ".mlp.2."),
    (r"^encoder\.layer_norm\.", "encoder.ln_post."),
    (r"^decoder\.layer_norm\.", "decoder.ln."),
    (r"embed_positions\.weight", "positional_embedding"),
    (r"embed_tokens\.", "token_embedding."),
]


def renamed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    actual = {}
    for name, value in state.items():
        for pattern, ours in NAMES:
            name = re.sub(pattern, ours, name)
        actual[name] = value
    return actual


def small_state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    network = WhisperNetwork(80, 64, 1, len(WORDS), 16)
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    state = network.state_dict()
    names = {"encoder.positions": "encoder.positional_embedding"}
    return {names.get(name, name.replace("ln_post", "encoder.ln_post")): v for name, v in state.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole folder, small and random."""
    save_safetensors(tmp_path / "model.safetensors", {k: v.half() for k, v in small_state().items()})
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "quiet"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(WORDS[3:])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    config = {"suppress_ids": [0, 4, 5, 6, 7, 8], "suppress_ids_begin": [3]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


@torch.inference_mode()
def test_the_network_is_that_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"d_model": 64, "encoder_attention_heads": 1, "decoder_attention_heads": 1, "num_mel_bins": 80}
    layers = {"encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 256, "decoder_ffn_dim": 256}
    ids = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0, "decoder_start_token_id": 1}
    config = transformers.WhisperConfig(vocab_size=40, max_target_positions=16, **sizes, **layers, **ids)
    torch.manual_seed(0)
    theirs = transformers.WhisperModel(config).eval()
    for weight in theirs.parameters():
        weight.normal_(0, 0.1)
    ours = WhisperNetwork.of(renamed(theirs.state_dict()), "here")
    mel, text = torch.randn(1, 80, 3000), torch.tensor([1, 5, 7, 9, 11])
    states = ours.states(mel)
    expected = theirs(mel, decoder_input_ids=text[None])
    torch.testing.assert_close(states, expected.encoder_last_hidden_state, atol=2e-4, rtol=1e-4)
    scores = expected.last_hidden_state[0] @ theirs.decoder.embed_tokens.weight.T
    cached: list[dict] = [{}, {}]
    for piece, at in ((text[:2], 1), (text[2:3], 2), (text[3:], 4)):
        torch.testing.assert_close(ours.decoder(piece, states, cached), scores[at], atol=2e-4, rtol=1e-4)


def test_words_come_in_bounded_time_and_never_what_is_suppressed(folder: Path) -> None:
    whisper = Whisper(folder)
    wave = np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)
    words = whisper.transcribe(wave).split()
    assert set(words) <= {"the", "sea"}
    assert 1 <= len(words) <= 8  # half of the positions
    assert whisper.transcribe(wave).split() == words
    assert len(whisper.transcribe(np.concatenate([wave] * 31)).split()) <= 16  # two windows
    assert isinstance(open_recogniser("whisper-base", _named(folder)), Whisper)


def test_the_encoder_hears_the_published_log_mel(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was scaled twice once, and the ASR model then looped over clear speech."""
    heard = []
    whisper = Whisper(folder)
    states = whisper.network.states
    monkeypatch.setattr(whisper.network, "states", lambda mel: heard.append(mel) or states(mel))
    wave = np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)
    whisper.transcribe(wave)
    extractor = pytest.importorskip("transformers").WhisperFeatureExtractor()
    expected = extractor(wave, sampling_rate=16000, return_tensors="pt").input_features
    torch.testing.assert_close(heard[0], expected, atol=1e-3, rtol=0)


def _named(folder: Path) -> Path:
    home = folder / "evaluators"
    home.mkdir()
    (home / "whisper-base").symlink_to(folder)
    return home


def test_what_cannot_be_used_is_named(folder: Path, tmp_path: Path) -> None:
    whisper = Whisper(folder)
    for wave in (np.zeros(0, np.float32), np.zeros((2, 16000), np.float32)):
        refused(AudioError, "mono wave", whisper.transcribe, wave)
    refused(CheckpointError, "has no", Whisper, folder, "fr")
    save_safetensors(folder / "model.safetensors", {"weight": torch.zeros(1)})
    refused(CheckpointError, "OpenAI's names", Whisper, folder)
    (folder / "config.json").unlink()
    refused(NotInstalled, r"config\.json.*docs/jobs/metrics\.md", Whisper, folder)


@pytest.mark.evaluators
def test_the_published_weights_read_a_sentence() -> None:
    from importlib.resources import files

    from vokens import audio

    wave, rate = audio.load((files("vokens") / "samples/english.flac").read_bytes())
    words = Whisper(find_evaluator("whisper-base")).transcribe(audio.resample(wave, rate, 16000))
    assert len(words.split()) > 5
