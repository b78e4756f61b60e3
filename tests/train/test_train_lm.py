"""Training text to tokens, by both models: what was learned by heart is said again, runs resume, preferences are
followed, references come from where they should."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import refused
from torch import Tensor
from training import ALIGNED, TEXTS, Build, cache_in, extract, losses_of

import vokens
from vokens.errors import ConfigError, MissingExtra, TokensError
from vokens.lm.sampling import GREEDY
from vokens.tokens import Tokens
from vokens.train.data import Clip
from vokens.train.loop import Trainer
from vokens.train.rows import cached_rows
from vokens.train.state import Best
from vokens.train.tasks.learnable_lm import References


def learned(trainer: Trainer, steps: int) -> dict[str, float]:
    values: dict[str, float] = {}
    for _ in range(steps):
        values = trainer.train_step()
    return values


def codes_of(trainer: Trainer, row: int) -> Tensor:
    return torch.from_numpy(trainer.corpus.codes(row).astype(np.int64))


def test_texts_learned_by_heart_are_said_again_in_both_orders(trainer) -> None:
    run = trainer("learnable_lm", "steps=80", "optim.schedule=cosine")
    learned(run, 80)
    measured = run.validate()
    assert measured["valid/nats"] < 0.1
    assert measured["valid/nats_bistream"] < 0.1
    assert measured["valid/accuracy"] == 1
    assert measured["valid/perplexity"] == pytest.approx(np.exp(measured["valid/nats"]))
    lm = run.final_model()
    voices = torch.cat([lm.voice(run.corpus.clips[row].path) for row in range(8)])
    said = lm.generate(TEXTS, speaker=voices, sampler=GREEDY)
    for row in range(8):
        assert torch.equal(said[row], codes_of(run, row)[:, 0])
    ids = lm.ids(TEXTS[3])
    streamed = lm.stream_text([ids[:2], ids[2:]], speaker=voices[3:4], sampler=GREEDY)
    assert list(streamed) == codes_of(run, 3)[:, 0].tolist()


def test_texts_are_said_by_the_durations_that_were_learned(trainer) -> None:
    run = trainer("learnable_lm", *ALIGNED, "steps=80", "optim.schedule=cosine")
    values = learned(run, 80)
    assert values["durations"] < 0.5  # 1 - ln 1 + ... of durations of about 3, well told; 2 at first
    measured = run.validate()
    assert measured["valid/nats"] < 0.1
    assert measured["valid/nats_other_text"] > 1
    assert "valid/nats_bistream" not in measured
    lm = run.final_model()
    voices = torch.cat([lm.voice(run.corpus.clips[row].path) for row in range(8)])
    said = lm.generate(TEXTS, speaker=voices, sampler=GREEDY)
    for row in range(8):
        assert abs(len(said[row]) - len(codes_of(run, row))) <= 2


def test_uslm_says_all_codebooks_of_what_it_learned_by_heart(trainer) -> None:
    run = trainer("uslm", "steps=80", "optim.schedule=cosine")
    learned(run, 80)
    measured = run.validate()
    assert measured["valid/first"] < 0.1
    assert measured["valid/stage_1_accuracy"] == measured["valid/stage_2_accuracy"] == 1
    said = run.final_model().generate(TEXTS, sampling=GREEDY)
    assert (said.model, said.fingerprint, said.frame_rate) == ("tiny", "f00d", 50)
    for row in range(8):
        assert torch.equal(said.codes[row, :, : said.lengths[row]].T, codes_of(run, row))


def test_the_networks_of_uslm_train_apart(trainer, tmp_path: Path) -> None:
    first = trainer("uslm", "networks=ar", f"out={tmp_path / 'ar'}")
    start = {name: value.clone() for name, value in first.model.state_dict().items()}
    assert set(learned(first, 3)) == {"first", "gradient"}
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, start[name]) == (".nar." in name), name
    first.save()
    second = trainer("uslm", "networks=nar", f"init={tmp_path / 'ar/lm'}")
    assert set(learned(second, 3)) == {"stage_1", "stage_drawn", "gradient"}
    for name, value in second.final_model().ar.state_dict().items():
        assert torch.equal(value, first.model.lm.ar.state_dict()[name])


@pytest.mark.parametrize("task", ["learnable_lm", "uslm"])
def test_a_run_keeps_its_best(finished: Build, task: str) -> None:
    run = finished(task)
    measure = run.config.best
    assert vokens.load(run.out / "lm").config.front_end == "characters"
    measured = {line["step"]: line[measure] for line in losses_of(run.out) if measure in line}
    (kept,) = (run.out / "best").glob("step_*")
    assert int(kept.name.removeprefix("step_")) == min(measured, key=lambda step: measured[step])
    assert vokens.load(kept).name == "tiny"


@pytest.mark.parametrize(("sign", "stay"), [("", [1, 3]), ("-", [2, 4])])
def test_the_best_are_ranked(tmp_path: Path, sign: str, stay: list[int]) -> None:
    best = Best(tmp_path / "best", sign + "value", 2)
    for step, value in enumerate([0.1, 0.4, 0.2, 0.3], start=1):
        best.offer(step, {"value": value}, lambda folder: folder.mkdir(parents=True))
    assert sorted(best.measures()) == stay
    assert sorted(int(path.name[5:]) for path in best.folder.glob("step_*")) == stay
    refused(ConfigError, "measures other", best.offer, 5, {"other": 1.0}, lambda folder: None)


def test_references_are_of_the_same_speaker_but_another_utterance(tmp_path: Path) -> None:
    clips = [Clip(str(i), Path(f"{i}.wav"), text, speaker=f"voice{i % 2}") for i, text in enumerate(TEXTS)]
    clips[0] = Clip("0", Path("0.wav"), TEXTS[0], speaker="alone")

    def constant(path: Path) -> np.ndarray:
        number = int(path.stem)
        return np.full((24000 * (number > 0) + 12000, 1), number + 1, np.int16)

    paths = [clip.path for clip in clips]
    references = References(clips, cached_rows(cache_in(tmp_path), "pcm", paths, constant, "making"))
    heard: list[Tensor] = []
    references.mel.register_forward_pre_hook(lambda _, given: heard.append(given[0]))
    for seed in range(12):
        mel, span = references.draw(4, np.random.default_rng(seed))
        assert span is None
        assert mel is not None
        assert mel.shape[1] == len(heard[-1]) // 480 >= 25
        assert (heard[-1] * 32768).unique().tolist() in ([3], [7])
    _, span = references.draw(0, np.random.default_rng(0))
    assert heard[-1][0] * 32768 == 1
    assert span is not None
    assert span[1] - span[0] == pytest.approx(0.5 / 3)  # a third of the utterance at most


def test_what_the_own_reference_was_cut_from_is_not_asked(trainer, tmp_path: Path) -> None:
    data = extract(tmp_path / "strangers", (40,), 25.0, speakers=False)
    run = trainer("learnable_lm", f"data.train={data}", f"data.valid={data}")
    batch = run.train.batch(0)
    draws = [np.random.default_rng(row) for row in batch.rows]
    voices = run._voices(run.references, batch, draws, 0.0)
    hidden = (~voices.loss_mask).sum(1)
    assert bool((hidden > 0).all())
    _, target, _ = run.model(batch, voices)
    assert len(target) == int(batch.lengths.sum()) + len(batch.rows) - int(
        sum((~row[:n]).sum() for row, n in zip(voices.loss_mask, batch.lengths, strict=True))
    )


def test_what_is_silenced_is_not_read_but_asked(trainer) -> None:
    run = trainer("learnable_lm", "token_dropout=0.5")
    batch = run.train.batch(0)
    draws = [np.random.default_rng(row) for row in batch.rows]
    voices = run._voices(run.references, batch, draws, 0.0, run.config.token_dropout)
    assert 0.3 < voices.dropout_mask.float().mean() < 0.7
    scores, target, _ = run.model(batch, voices)
    changed = replace(
        batch, codes=torch.where(voices.dropout_mask[..., None], (batch.codes + 1) % 11, batch.codes)
    )
    others, wanted, _ = run.model(changed, voices)
    assert torch.equal(scores, others)
    assert not torch.equal(target, wanted)


def test_losses_may_be_of_utterances(trainer) -> None:
    """Without length normalisation the loss is the sum over targets by the number of utterances."""
    mean = trainer("learnable_lm", "bistream=0.0").train_step()["loss"]
    run = trainer("learnable_lm", "bistream=0.0", "length_normalised=false")
    rows = run.train.batch(0).rows
    targets = sum(len(codes_of(run, row)) + 1 for row in rows)
    assert run.train_step()["loss"] == pytest.approx(mean * targets / len(rows), rel=1e-5)


@pytest.fixture
def pairs(data_of: Build, tmp_path: Path) -> Path:
    """The learned tokens against as many others, and the other way round for no text."""
    draw, lines = np.random.default_rng(5), []
    for i, text in enumerate(TEXTS):
        for name in ("chosen", "rejected"):
            codes = torch.from_numpy(draw.integers(0, 40, (1, 1, 14 + i % 3)))
            count = torch.tensor([codes.shape[2]])
            facts = ("tiny", "f00d", 16000, 25.0, (40,))
            Tokens(codes, count, count * 640, *facts).save(tmp_path / f"{name}{i}.vok")
        voice = str(data_of("learnable_lm")["train"] / f"speech/{i}.wav")
        lines.append(
            {"text": text, "chosen": f"chosen{i}.vok", "rejected": f"rejected{i}.vok", "path": voice}
        )
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_preferences_are_learned_and_the_reference_stays(trainer, pairs: Path, tmp_path: Path) -> None:
    start = trainer("learnable_lm", f"out={tmp_path / 'start'}")
    learned(start, 2)
    start.save()
    folder = tmp_path / "start/lm"
    settings = (
        f"init={folder}",
        f"preference.reference={folder}",
        "preference.beta=0.1",
        "preference.supervised=0.0",
    )
    run = trainer("learnable_lm", f"data.train={pairs}", "data.valid=", *settings)
    before = {name: value.clone() for name, value in run.reference.state_dict().items()}
    assert run.train_step()["preference"] == pytest.approx(np.log(2), abs=1e-5)
    last = learned(run, 30)
    assert last["preferred"] == 1
    assert last["preference"] < 0.2
    for name, value in run.reference.state_dict().items():
        assert torch.equal(value, before[name])


def test_simpo_needs_no_reference(trainer, pairs: Path) -> None:
    run = trainer(
        "learnable_lm",
        f"data.train={pairs}",
        "data.valid=",
        "preference.beta=2.0",
        "preference.per_token=true",
    )
    assert run.reference is None
    assert learned(run, 40)["preferred"] == 1


def test_wrong_tokens_are_named(trainer, data_of: Build, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="3 codebooks"):
        trainer("learnable_lm", f"data.train={data_of('uslm')['train']}")
    other = extract(tmp_path / "other", (32, 32, 32), 50.0)
    facts = json.loads((other / "run.json").read_text())
    (other / "run.json").write_text(json.dumps(facts | {"fingerprint": "beef"}))
    refused(ConfigError, "different codecs", trainer, "uslm", f"data.valid={other}")
    (tmp_path / "pairs.jsonl").write_text('{"text": "a", "chosen": "x.vok"}\n')
    with pytest.raises((ConfigError, TokensError), match=r"line 1|x\.vok"):
        trainer("learnable_lm", f"data.train={tmp_path / 'pairs.jsonl'}", "preference.beta=0.1")


def test_a_best_that_is_not_measured_is_named(trainer) -> None:
    refused(ConfigError, "measures valid/first", lambda: trainer("uslm", "best=valid/nothing").run())


def test_trackers_are_optional(trainer, monkeypatch) -> None:
    monkeypatch.setattr("vokens.train.loop.find_spec", lambda name: None)
    refused(MissingExtra, "wandb", trainer, "uslm", "tracker=wandb")


def test_curves_go_to_wandb(trainer, monkeypatch, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    trainer("uslm", "tracker=wandb").run()
    assert list((tmp_path / "run").glob("wandb/offline-run-*/*.wandb"))
