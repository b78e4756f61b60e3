"""SLMTokBench: the probe and its likelihoods, the models that judge, and a run that is repeated and resumed."""

import dataclasses
import itertools
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import refused
from corpora import write_jsonl

from vokens.bench.evaluators import open_recogniser, open_speaker_model
from vokens.bench.metrics import cosine
from vokens.bench.options import SlmTok
from vokens.bench.tasks.information import barber_agakov
from vokens.bench.tasks.probe import (
    ALPHABET,
    Probe,
    ctc_scores,
    fits,
    log_likelihoods,
    train_probe,
    transcribe,
    turned,
)
from vokens.bench.tasks.slmtok import alignment, run
from vokens.errors import ConfigError, DownloadError, NotInstalled
from vokens.text.transcripts import spell
from vokens.tokens import Tokens

RATE = 16000
SMALL = SlmTok(out=Path(), probe_steps=150, probe_seconds=4.0, probe_width=16, pairs=8)
LETTERS = 8
TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
TINY |= {"conv_dim": (8,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}


def some_tokens(lengths: list[int], sizes: tuple[int, ...] = (7, 5), frame_rate: float = 50.0) -> Tokens:
    draw = torch.Generator().manual_seed(0)
    shape = len(lengths), max(lengths)
    codes = torch.stack([torch.randint(size, shape, generator=draw) for size in sizes], 1)
    frames = torch.tensor(lengths)
    samples = (frames * RATE / frame_rate).long()
    return Tokens(codes, frames, samples, "some", "", RATE, frame_rate, sizes)


def read_aloud(count: int, seed: int) -> tuple[Tokens, list[list[int]]]:
    """A tokenizer whose first codebook spells the text, a frame a letter, and whose second is noise."""
    draw = torch.Generator().manual_seed(seed)
    turns = torch.randint(1, 5, (count, LETTERS), generator=draw)
    first = turns.cumsum(1) % 5 + 3  # never the same letter twice in a row
    noise = torch.randint(8, first.shape, generator=draw)
    lengths = torch.full((count,), LETTERS)
    codes = torch.stack([first, noise], 1)
    return Tokens(codes, lengths, lengths * 640, "spelling", "", RATE, 25.0, (8, 8)), first.tolist()


def test_rows_are_as_if_alone():
    tokens = some_tokens([31, 8, 1, 20])
    torch.manual_seed(0)
    probe = Probe(tokens.codebook_sizes, 50.0, 16).eval()
    together = probe(tokens.codes, tokens.lengths)
    for row, item in enumerate(tokens):
        alone = probe(item.codes, item.lengths)[0]
        assert len(alone) == int(probe.frames(item.lengths)) == -(-int(item.lengths) // 2) * 2
        torch.testing.assert_close(together[row, : len(alone)], alone, atol=1e-6, rtol=0)


def test_turned_reverses_each_row_within_its_length():
    x = torch.arange(5.0).expand(2, -1)[..., None]
    assert turned(x, torch.tensor([5, 3]))[..., 0].tolist() == [[4, 3, 2, 1, 0], [2, 1, 0, 3, 4]]


@pytest.mark.parametrize(
    ("frame_rate", "stack", "emissions"), [(75, 3, 2), (50, 2, 2), (25, 1, 2), (12.5, 1, 4), (8.333, 1, 7)]
)
def test_every_frame_rate_gives_fifty_emissions_a_second(frame_rate, stack, emissions):
    probe = Probe((4,), frame_rate, 8)
    assert (probe.stack, probe.emissions) == (stack, emissions)
    assert frame_rate / stack * emissions >= 50


def test_likelihoods_are_a_distribution_over_texts():
    """So that their mean is a cross entropy, and the lower bound a bound. 3 frames, a blank and 2 symbols."""
    frames = torch.randn(1, 3, 3, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    texts = [list(text) for length in range(4) for text in itertools.product((1, 2), repeat=length)]
    scores = ctc_scores(frames.expand(len(texts), -1, -1), torch.full((len(texts),), 3), texts)
    assert float(scores.exp().sum()) == pytest.approx(1, abs=1e-6)


def test_what_does_not_fit_is_impossible():
    tokens = some_tokens([4, 8])
    probe = Probe(tokens.codebook_sizes, 50.0, 8).eval()
    texts = [[1, 2, 3, 4, 5], [1, 1, 2, 3, 3]]
    expected = [[fits(text, int(item.lengths), 50.0) for text in texts] for item in tokens]
    assert expected == [[False, False], [True, True]]
    everyone = torch.tensor([[0, 1], [0, 1]])
    scores = log_likelihoods(probe, tokens, texts, everyone)
    assert scores.isfinite().tolist() == expected
    assert torch.equal(scores.diagonal(), log_likelihoods(probe, tokens, texts))


def test_training_is_a_function_of_its_arguments():
    tokens, texts = read_aloud(12, 0)
    short = dataclasses.replace(SMALL, probe_steps=3)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one = train_probe(tokens, texts, short).state_dict()
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(6)
    two = train_probe(tokens, texts, short).state_dict()
    other = train_probe(tokens, texts, dataclasses.replace(short, seed=1)).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["out.weight"], other["out.weight"])


def test_tokens_that_spell_are_told_from_noise(monkeypatch):
    """The first letter is one of 5, each next one of the 4 others: ln 5 + 7 ln 4 nats, all in the first codebook."""
    monkeypatch.setattr("vokens.bench.tasks.probe.LEARNING_RATE", 2e-2)
    truth = math.log(5) + (LETTERS - 1) * math.log(4)
    train, texts = read_aloud(100, 1)
    test, said = read_aloud(30, 2)
    first, noise = (
        alignment((train.select(*span), texts), (test.select(*span), said), SMALL)
        for span in ((0, 1), (1, 2))
    )
    likelihood = torch.tensor([first["likelihood"], noise["likelihood"]])
    lower = barber_agakov(likelihood, torch.tensor(-truth)).mean(1).tolist()
    assert 0.9 * truth < lower[0] < truth
    assert lower[1] < 0
    assert np.mean(first["vclub"]) > truth
    assert abs(np.mean(noise["vclub"])) < 0.5
    assert sum(first["character_edits"]) == 0
    assert sum(noise["character_edits"]) > 0.8 * sum(noise["characters"])
    # The character model's excess is in both lower bounds, and in their difference no more.
    assert np.mean(first["prior"]) < -truth
    difference = np.mean(first["lower"]) - np.mean(noise["lower"])
    assert difference == pytest.approx(lower[0] - lower[1], rel=1e-5)


def test_reading_is_the_same_in_any_batch():
    tokens = some_tokens([31, 8, 1, 20])
    torch.manual_seed(0)
    probe = Probe(tokens.codebook_sizes, 50.0, 16).eval()
    decoded = transcribe(probe, tokens)
    assert decoded == transcribe(probe, tokens, rows_at_once=1) == transcribe(probe, tokens, rows_at_once=3)
    assert any(decoded)


@pytest.fixture(scope="module")
def whisper(tmp_path_factory) -> Path:
    """A multilingual Whisper of a few thousand random weights, which spells with letters."""
    tf = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("whisper")
    marks = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|translate|>"]
    words = ["Ġ", *ALPHABET[1:], *marks, "<|notimestamps|>"]
    tokenizer = tf.WhisperTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[])
    ids = {"pad_token_id": 28, "bos_token_id": 28, "eos_token_id": 28, "decoder_start_token_id": 29}
    sizes = {f"{side}_{what}": size for side in ("encoder", "decoder") for what, size in
             {"layers": 1, "attention_heads": 2, "ffn_dim": 16}.items()}  # fmt: skip
    torch.manual_seed(0)
    model = tf.WhisperForConditionalGeneration(
        tf.WhisperConfig(vocab_size=len(words), d_model=16, max_target_positions=64, **sizes, **ids)
    )
    model.generation_config = tf.GenerationConfig(
        is_multilingual=True, lang_to_id={"<|en|>": 30}, task_to_id={"transcribe": 31, "translate": 32},
        no_timestamps_token_id=33, max_length=12, **ids,
    )  # fmt: skip
    model.save_pretrained(folder)
    tf.WhisperProcessor(tf.WhisperFeatureExtractor(), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def wavlm(tmp_path_factory) -> Path:
    tf = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("wavlm")
    xvector = {"tdnn_dim": (8,) * 4 + (24,), "xvector_output_dim": 12}
    torch.manual_seed(0)
    tf.WavLMForXVector(tf.WavLMConfig(**TINY, **xvector)).save_pretrained(folder)
    tf.Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder)
    return folder


def sounds(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, int(seconds * RATE)).astype(np.float32)


def test_whisper_hears_pieces_of_thirty_seconds(whisper):
    ears = open_recogniser(f"whisper:{whisper}")
    wave = sounds(31)
    decoded = ears.transcribe(wave)
    assert set(decoded) <= set(ALPHABET)
    assert decoded == f"{ears.transcribe(wave[: 30 * RATE])} {ears.transcribe(wave[30 * RATE :])}"


def test_wav2vec2_reads_its_best_symbols(tmp_path):
    tf = pytest.importorskip("transformers")
    symbols = ["<pad>", "|", *ALPHABET[1:], "<s>", "</s>", "<unk>"]
    (tmp_path / "vocab.json").write_text(json.dumps({symbol: i for i, symbol in enumerate(symbols)}))
    tokenizer = tf.Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"), pad_token="<pad>")
    torch.manual_seed(0)
    config = tf.Wav2Vec2Config(vocab_size=len(symbols), pad_token_id=0, **TINY)
    model = tf.Wav2Vec2ForCTC(config).eval()
    model.save_pretrained(tmp_path)
    extractor = tf.Wav2Vec2FeatureExtractor()
    tf.Wav2Vec2Processor(extractor, tokenizer).save_pretrained(tmp_path)
    wave = sounds(1)
    given = extractor(wave, sampling_rate=RATE, return_tensors="pt").input_values
    with torch.no_grad():
        best = model(given).logits.argmax(-1)[0].tolist()
    merged = [symbols[symbol] for symbol, _ in itertools.groupby(best) if 1 <= symbol < 29]
    by_hand = "".join(merged).replace("|", " ")
    assert open_recogniser(f"wav2vec2:{tmp_path}").transcribe(wave) == " ".join(by_hand.split())


def test_wavlm_voices(wavlm):
    voices = open_speaker_model(f"wavlm:{wavlm}")
    voice = voices.embed(sounds(2))
    assert voice.shape == (12,)
    np.testing.assert_array_equal(voice, voices.embed(sounds(2)))
    assert cosine(voice, voices.embed(sounds(2, seed=1))) < 0.9999


@pytest.mark.parametrize("name", ["whisper", "whisper:", "moonshine", "", "wavlm:x"])
def test_unknown_recognisers(name):
    refused(ConfigError, r"moonshine-tiny-en, .*whisper:ID", open_recogniser, name)


def test_a_model_that_is_not_there(tmp_path):
    pytest.importorskip("transformers")
    refused(DownloadError, "a folder with its files", open_speaker_model, f"wavlm:{tmp_path}")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder, lines = tmp_path_factory.mktemp("corpus"), []
    for i, split in enumerate(["train"] * 4 + ["test"] * 3):
        soundfile.write(folder / f"{i}.wav", sounds(1.0 + 0.1 * i, i), RATE)
        line = {
            "id": f"r{i}",
            "path": f"{i}.wav",
            "split": split,
            "language": "en",
            "duration": 1.0 + 0.1 * i,
        }
        lines.append(line | {"text": ["A man", "the sea", "one, two", "no"][i % 4]})
    write_jsonl(folder / "manifest.jsonl", lines)
    return folder


def asked(corpus: Path, codec: Path, out: Path, whisper: Path, wavlm: Path, **changes) -> SlmTok:
    base = SlmTok(
        models=str(codec), data=corpus, out=out, probe_steps=3, probe_seconds=3.0, probe_width=8, pairs=2,
        resynthesised=2, recogniser=f"whisper:{whisper}", speaker=f"wavlm:{wavlm}",
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


def test_a_run_is_repeated_and_resumed(corpus, tiny_codec_folder, whisper, wavlm, tmp_path, capsys):
    options = asked(corpus, tiny_codec_folder, tmp_path / "one", whisper, wavlm)
    assert run(options) == 0
    lines, summary = ((tmp_path / "one" / f"slmtok{suffix}").read_bytes() for suffix in (".jsonl", ".json"))
    rows = json.loads(summary)["rows"]
    assert [row["row"] for row in rows] == ["original", "mini 1", "mini 1-4"]
    assert [row["files"] for row in rows] == [2, 3, 3]
    assert ["probe-cer" in row["metric"] for row in rows] == [False, True, True]
    assert rows[0]["metric"]["speaker"]["value"] == 1
    assert rows[1]["metric"]["mi-vclub"]["n"] == 3
    assert rows[1]["metric"]["wer"]["n"] == 2
    assert "probe-cer %" in capsys.readouterr().out

    assert run(dataclasses.replace(options, out=tmp_path / "two")) == 0
    assert (tmp_path / "two" / "slmtok.jsonl").read_bytes() == lines
    kept = lines.splitlines(keepends=True)[:3]  # the original, and a probe
    (tmp_path / "two" / "slmtok.jsonl").write_bytes(b"".join(kept) + b'{"row": "mini 1", "id"')
    assert run(dataclasses.replace(options, out=tmp_path / "two")) == 0
    assert (tmp_path / "two" / "slmtok.jsonl").read_bytes() == lines
    assert (tmp_path / "two" / "slmtok.json").read_bytes() == summary
    refused(ConfigError, "another --out", lambda: run(dataclasses.replace(options, probe_steps=4)))


def test_parts_are_left_out(corpus, tiny_codec_folder, whisper, wavlm, tmp_path):
    options = asked(corpus, tiny_codec_folder, tmp_path, whisper, wavlm, codebooks="3-3", resynthesised=0)
    assert run(options) == 0
    rows = json.loads((tmp_path / "slmtok.json").read_text())["rows"]
    assert [row["row"] for row in rows] == ["mini 3"]
    assert "wer" not in rows[0]["metric"]


def test_without_evaluators_and_with_a_broken_file_the_rest_is_measured(
    corpus, tiny_codec_folder, tmp_path, capsys
):
    data = tmp_path / "data"
    shutil.copytree(corpus, data)
    broken = json.loads((data / "manifest.jsonl").read_text().splitlines()[0])
    (data / broken["path"]).write_text("<html>")
    options = asked(data, tiny_codec_folder, tmp_path, "", "", codebooks="1", evaluators=tmp_path)
    options = dataclasses.replace(options, recogniser="moonshine-tiny-en", speaker="campplus-zh-en")
    assert run(options) == 1
    said = capsys.readouterr().err
    assert "slmtok leaves out: the resynthesis (" in said
    assert "lacks moonshine-tiny-en, campplus-zh-en: docs/jobs/metrics.md" in said
    assert f"vokens: {broken['id']}: " in said
    (row,) = json.loads((tmp_path / "slmtok.json").read_text())["rows"]
    assert "probe-cer" in row["metric"]
    refused(NotInstalled, "campplus-zh-en", lambda: run(dataclasses.replace(options, probe_steps=0)))


def test_what_cannot_be_measured(corpus, tiny_codec_folder, whisper, wavlm, tmp_path):
    options = asked(corpus, tiny_codec_folder, tmp_path, whisper, wavlm)
    with pytest.raises(ConfigError, match=r"trains a recogniser.*--train-split"):
        run(dataclasses.replace(options, train_split="nowhere"))
    refused(ConfigError, "split=test", lambda: run(dataclasses.replace(options, data=None)))
    refused(ConfigError, "--pairs is 0", dataclasses.replace, options, pairs=0)
    refused(ConfigError, "nothing to measure", dataclasses.replace, options, probe_steps=0, resynthesised=0)
    assert spell("Straße", ALPHABET) is None
    assert spell("Übung", ALPHABET) == spell("ubung", ALPHABET)  # accents alone are left out
