"""Language models against closed forms and a second implementation; rates against arithmetic."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import soundfile
import torch
from conftest import refused

from vokens.bench.options import Speed
from vokens.bench.results import Results, Row
from vokens.bench.tasks import lm, speed, tokens
from vokens.bench.tasks.information import KneserNey
from vokens.bench.tasks.items import NoRecordings
from vokens.data.items import Clip
from vokens.tokens import Tokens


def make(codes: np.ndarray, size: int, rate: float = 50.0) -> Tokens:
    """Tokens of one recording with codes (K, T)."""
    actual = torch.from_numpy(codes)[None]
    frames = torch.tensor([codes.shape[1]])
    samples = (frames * 16000 / rate).long()
    return Tokens(actual, frames, samples, "demo", "", 16000, rate, (size,) * len(codes))


def by_the_paper(
    sequences: list[list[int]], size: int, order: int, context: Sequence[int], code: int
) -> float:
    """Chen and Goodman (1998), eq. 15 to 17, counted anew at each call."""
    padded = [[size] * (order - 1) + sequence for sequence in sequences]

    def grams(length: int) -> list[tuple[int, ...]]:
        return [tuple(s[i : i + length]) for s in padded for i in range(order - length, len(s) - length + 1)]

    def count(gram: tuple[int, ...]) -> int:
        if len(gram) == order:
            return grams(order).count(gram)
        longer = {g for g in kept(len(gram) + 1) if g[1:] == gram}
        return len(longer)

    def kept(length: int) -> set[tuple[int, ...]]:
        actual = set(grams(order))
        return {gram[order - length :] for gram in actual}

    def probability(context: tuple[int, ...], code: int) -> float:
        length = len(context) + 1
        counts = {gram: count(gram) for gram in kept(length)}
        ones, twos = (list(counts.values()).count(k) for k in (1, 2))
        discount = ones / (ones + 2 * twos) if ones else 0.5
        lower = probability(context[1:], code) if context else 1 / size
        follow = {gram[-1]: n for gram, n in counts.items() if gram[:-1] == context}
        if not follow:
            return lower
        share = max(follow.get(code, 0) - discount, 0) + discount * len(follow) * lower
        return share / sum(follow.values())

    return probability(tuple(context), code)


def test_kneser_ney_is_that_of_the_paper_and_sums_to_one() -> None:
    draw = np.random.default_rng(0)
    sequences = [draw.integers(0, 4, n).tolist() for n in (9, 14, 1)]
    for order in (1, 2, 3):
        model = KneserNey(sequences, 5, order)
        for context in ((5, 5), (5, 1), (0, 1), (3, 2), (4, 4)):
            context = context[2 - (order - 1) :]
            actual = [model.probability(code, context) for code in range(5)]
            assert sum(actual) == pytest.approx(1, abs=1e-12)
            expected = [by_the_paper(sequences, 5, order, context, code) for code in range(5)]
            assert actual == pytest.approx(expected, abs=1e-12)


def test_kneser_ney_finds_the_entropy_of_a_markov_chain() -> None:
    draw = np.random.default_rng(0)
    stay = 0.9
    moves = draw.random(20000) > stay
    chain = (np.cumsum(moves) % 2).tolist()
    expected = -(stay * math.log2(stay) + (1 - stay) * math.log2(1 - stay))
    bits = KneserNey([chain[:16000]], 2).bits(chain[16000:])
    assert bits.mean() == pytest.approx(expected, rel=0.05)
    uniform = KneserNey([draw.integers(0, 8, 16000).tolist()], 8).bits(draw.integers(0, 8, 2000).tolist())
    assert uniform.mean() == pytest.approx(3, rel=0.02)


def test_parts_are_disjoint_and_whole_and_stay() -> None:
    ids = [f"u{i}" for i in range(25)]
    parts = lm.divide(ids)
    assert sorted(parts.train + parts.valid + parts.test) == list(range(25))
    assert (len(parts.valid), len(parts.test)) == (2, 2)
    turned = lm.divide(ids[::-1])
    assert {ids[::-1][i] for i in turned.test} == {ids[i] for i in parts.test}


def test_transformer_repeats_itself_and_learns_across_codebooks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WIDTH": 32, "LAYERS": 1, "HEADS": 2, "STEP_SECONDS": 6.0, "RATE": 1e-2}.items():
        monkeypatch.setattr(lm, name, value)
    draw = np.random.default_rng(0)
    some = []
    for _ in range(20):
        first = draw.integers(0, 8, (1, 60))
        some.append(make(np.concatenate([first, (first + 3) % 8]), 8))  # the second says what the first said
    parts = lm.divide([str(i) for i in range(20)])
    state = torch.get_rng_state()
    bits = lm.transformer_bits(some, parts, 60, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    frames = 60 * len(parts.test)
    assert bits[0] / frames == pytest.approx(3, rel=0.15)  # nothing to be known of it
    assert bits[1] / frames < 0.6  # known from the first
    short = [lm.transformer_bits(some, parts, 3, seed=seed) for seed in (0, 0, 1)]
    assert short[0] == short[1] != short[2]
    apart = lm.ngram_bits(some, parts)
    assert apart[1] / frames == pytest.approx(3, rel=0.1)  # codebooks apart know nothing of each other


def test_rates_of_uniform_and_of_constant_codes() -> None:
    uniform = np.tile(np.arange(16), 10)
    row = tokens.summary_row(Row("x", "x"), [make(np.stack([uniform, uniform * 0]), 16)], None)
    values = {name: actual["value"] for name, actual in row["metric"].items()}
    assert values["token-rate"] == 100
    assert values["bitrate-nominal"] == pytest.approx(50 * 8 / 1000)
    assert values["bitrate-effective"] == pytest.approx(50 * 4 / 1000)
    assert (values["used/codebook 1"], values["used/codebook 2"]) == (100, 6.25)
    assert (values["perplexity/codebook 1"], values["perplexity/codebook 2"]) == (16, 1)
    learnt = {"ngram_bits": [100.0, 50.0], "transformer_bits": [80.0, 0.0], "test_recordings": 1,
              "test_frames": 100, "test_seconds": 2.0}  # fmt: skip
    row = tokens.summary_row(Row("x", "x"), [make(uniform[None], 16)], learnt | {"ngram_bits": [100.0]})
    assert row["metric"]["ngram"]["value"] == 50
    assert row["metric"]["transformer-code/codebook 1"]["value"] == 0.8


def test_speed_measures_what_it_says(tiny_codec_folder, tmp_path) -> None:
    options = Speed(models=str(tiny_codec_folder), out=tmp_path, repeats=2)
    bench = speed.Bench(str(tiny_codec_folder), options, np.full(4000, 0.01, np.float32))
    line = bench.time(0.6, 3)
    assert line["seconds"] == pytest.approx(1.8)
    assert len(line["encode_seconds"]) == len(line["decode_seconds"]) == 2
    times, bytes_more = bench._repeat(lambda: np.ones(10_000_000))
    assert len(times) == 2
    assert 8e7 <= bytes_more + 2**22 <= 2e8  # the array, and what other work has kept since loading
    line |= {"encode_seconds": [0.1, 0.9, 0.2], "decode_seconds": [], "decode_bytes": None}
    row = speed.summary_row(Row("x", "x"), 2**21, {"0.6 s × 3": line}, 1, 0.25)
    assert (row["files"], row["seconds"]) == (1, 0.25)  # of recordings, whatever was repeated
    assert row["metric"]["encode/0.6 s × 3"]["value"] == 9
    assert row["metric"]["memory-load"]["value"] == 2
    assert not any(name.startswith("decode") for name in row["metric"])


def test_speed_leaves_out_what_cannot_be_read(tmp_path, capsys) -> None:
    soundfile.write(tmp_path / "a.wav", np.full(4000, 0.01), 16000)
    items = [Clip(name, tmp_path / name) for name in ("missing.wav", "a.wav", "again.wav")]
    results = Results(Speed(out=tmp_path), "speed")
    wave, used = speed.speech_of(items, 0.2, results)
    assert (len(wave), used) == (4000, 1)
    assert capsys.readouterr().err.startswith("vokens: missing.wav: cannot open")
    refused(NoRecordings, "none of 1", speed.speech_of, items[:1], 0.2, results)


@pytest.mark.slow  # a fresh process imports torch
def test_speed_in_a_process_of_its_own(tiny_codec_folder, tmp_path) -> None:
    options = Speed(models=str(tiny_codec_folder), out=tmp_path, durations="0.5", batches="1,2", repeats=1)
    assert speed.run(options) == 0
    before = (tmp_path / "speed.jsonl").read_bytes()
    assert speed.run(options) == 0  # nothing is measured again
    assert (tmp_path / "speed.jsonl").read_bytes() == before
