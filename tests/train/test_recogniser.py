"""Training S3Tokenizer by recognition: it learns through both quantizers, resumes, and leaves an exact tokenizer."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import refused
from training import SPOKEN, VQ, Build, spoken

import vokens
from vokens import checkpoint
from vokens.errors import CheckpointError, ConfigError
from vokens.models.s3tokenizer import S3Tokenizer, S3TokenizerConfig
from vokens.models.s3tokenizer.recogniser import HeadConfig, Recogniser
from vokens.packed import pack, unpack
from vokens.quantize.fsq import FiniteScalarQuantizer
from vokens.quantize.vq import UnitVectorLearner
from vokens.text.transcripts import frames_needed, normalise, read, spell
from vokens.train.data import read_clips
from vokens.train.tasks.recogniser import attention, ctc
from vokens.train.utterances import AugmentConfig, masked

TASK, RATE = "recogniser", 16000
SMALL = S3TokenizerConfig(20, 32, 2, 1, quantizer="fsq", codebook_size=81, memory_taps=3)
ALPHABET = " 'abcdefghijklmnopqrstuvwxyz"


@pytest.mark.parametrize("quantizer", [(), VQ], ids=["fsq", "vq"])
def test_recognition_is_learned_through_the_quantizer(trainer_for: Build, quantizer: tuple[str, ...]) -> None:
    """All texts in every batch, spoken as they are: of six seeds the worst reaches 0.07 where 0.3 is asked."""
    plain = ("data.seconds=6.0", "augment.speeds=[1.0]", "augment.bands=0", "optim.schedule=constant")
    trainer = trainer_for(*quantizer, *plain, "steps=160", "fit_codebooks=40")
    found = [trainer.train_step()["ctc"] for _ in range(160)]
    assert found[-1] < 0.2 * found[0]
    measured = trainer.validate()
    assert measured["valid/cer"] < 0.3
    assert measured["valid/cer_unquantized"] < 0.6
    assert measured["valid/bits"] > 2


def test_what_stands_on_a_frozen_trunk_learns(trainer_for: Build, tmp_path: Path) -> None:
    """Whisper's layout at a tiny size: the trunk stays as its file has it, in 255 steps for each output, and the
    tokenizer that is written encodes what training saw."""
    whole = S3TokenizerConfig(40, 32, 2, 1, 1, "sinusoid", 1500, 0, 2, codebook_size=625, fsq_levels=5)
    torch.manual_seed(0)
    names = {"encoder.norm": "encoder.ln_post", "encoder.positions": "encoder.positional_embedding"}
    state = {}
    for name, value in S3Tokenizer(whole).state_dict().items():
        if name.startswith("encoder.") and not name.startswith("encoder.merge"):
            stem = next((s for s in names if name.startswith(s)), name)
            state[name.replace(stem, names.get(stem, stem))] = value
    checkpoint.save_safetensors(tmp_path / "whisper.safetensors", state)
    sizes = "model={n_mels=40, width=32, heads=2, layers=1, memory_taps=0, first_stride=1, merge=2, "
    sizes += 'positions="sinusoid", codebook_size=625, fsq_levels=5}'
    changes = (
        f"trunk={tmp_path / 'whisper.safetensors'}",
        sizes,
        "losses={ctc=1.0, trunk=1.0}",
        "head.emissions=2",
    )
    trainer = trainer_for(*changes, "fit_codebooks=3")
    kept = [place for place, text in enumerate(trainer.train.texts) if not text]
    assert kept, "speech without a text in the alphabet teaches by the trunk alone"
    found = [trainer.train_step()["ctc"] for _ in range(40)]
    assert found[-1] < found[0]
    weight = trainer.model.encoder.blocks[0].mlp[0].weight
    before = state["encoder.blocks.0.mlp.0.weight"]
    step = before.abs().amax(1, keepdim=True) / 127
    assert 0 < ((weight - before) / step).abs().max() < 0.6
    again = unpack(pack({"weight": weight.detach()}), "here")["weight"]
    assert torch.equal(again, weight)
    trainer.save()
    start = f"init={trainer.out / 'recogniser.safetensors'}"
    frozen = (*changes, start, "freeze_tokenizer=true", f"out={tmp_path / 'above'}")
    above, deeper = trainer_for(*frozen), trainer_for(*frozen, "head.layers=3")
    values = torch.randn(2, 7, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 7, dtype=torch.bool)
    states = [each.model.eval().recognise(each.model.expand(values), mask) for each in (above, deeper)]
    assert torch.equal(*states), "blocks that are added begin as the identity"
    above.model.train()
    gaps = trainer_for(*frozen, f"out={tmp_path / 'gaps'}", "augment.bands=0", "augment.gap_share=0.4")
    none = trainer_for(*frozen, f"out={tmp_path / 'none'}", "augment.bands=0", "augment.gaps=0")
    above.train_step()
    assert gaps.train_step()["ctc"] != none.train_step()["ctc"], "features of the trunk are masked, too"
    codec = trainer.final_model()
    assert above.final_model().fingerprint == codec.fingerprint
    wave = torch.from_numpy(spoken(SPOKEN[0]))
    alone = codec.encode(wave, sample_rate=RATE)
    assert (alone.frame_rate, alone.codebook_sizes) == (25, (625,))
    both = codec.encode([wave, torch.from_numpy(spoken(SPOKEN[1]))], sample_rate=RATE)
    assert torch.equal(both.codes[0, :, : alone.codes.shape[2]], alone.codes[0])


def test_all_losses_fall(trainer_for: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    class Tones:
        """A teacher whose features are the wave's levels in frames of 20 ms."""

        name, width, grid = "tones", 3, (0.02, 0.01)

        def features(self, wave: np.ndarray) -> np.ndarray:
            level = np.abs(wave[: len(wave) // 320 * 320]).reshape(-1, 320).mean(1)
            return np.stack([level, level**2, 1 - level], 1)

    monkeypatch.setattr("vokens.train.tasks.recogniser.load_teacher", lambda *_: Tones())
    losses = "losses={ctc=1.0, commit=0.25, attention=0.5, distill=1.0, distill_before=1.0}"
    changes = (*VQ[:2], losses, "head.decoder_layers=1", "teacher.kind=hubert", "teacher.loss=t_axis")
    trainer = trainer_for(*changes, "optim.schedule=constant")
    found = [trainer.train_step() for _ in range(40)]
    for name in ("ctc", "attention", "distill"):
        assert np.mean([f[name] for f in found[-5:]]) < 0.8 * np.mean([f[name] for f in found[:5]]), name
    assert 0 < found[-1]["commit"] < 4


@pytest.mark.parametrize("quantizer", [(), VQ], ids=["fsq", "vq"])
def test_the_trained_tokenizer_is_exact(
    finished: Build, trainer_for: Build, quantizer: tuple[str, ...]
) -> None:
    if quantizer:
        trainer = trainer_for(*quantizer, "fit_codebooks=3")
        trainer.run()
    else:
        trainer = finished(TASK)
    codec = vokens.load(trainer.out / "codec")
    assert (codec.system, codec.frame_rate) == ("s3tokenizer", 50)
    waves = [spoken(text) for text in SPOKEN]
    together = codec.encode(waves, RATE)
    for place, wave in enumerate(waves):
        assert torch.equal(together[place].codes, codec.encode(wave, RATE).codes)
    # The recogniser beside it chooses the same ids.
    model = Recogniser.open(trainer.out / "recogniser.safetensors")
    with torch.inference_mode():
        for rows, batch in trainer.valid["valid"].fixed():
            mel, frames, _ = trainer._inputs(batch)
            codes = model(mel, frames).codes
            for place, row in enumerate(rows):
                clip = codec.encode(batch.wave[place, : batch.lengths[place]], RATE)
                assert torch.equal(clip.codes[0, 0], codes[place, : int(clip.lengths)]), row
    refused(CheckpointError, "no recogniser", Recogniser.open, trainer.out / "codec/model.safetensors")


def test_other_rows_and_padding_change_nothing() -> None:
    model = Recogniser(SMALL, HeadConfig(decoder_layers=1)).eval()
    mel, texts = torch.randn(2, 20, 61), torch.tensor([[3, 4, 5], [6, 0, 0]])
    with torch.inference_mode():
        both = model(mel, torch.tensor([61, 30]), texts)
        alone = model(mel[1:, :, :30], torch.tensor([30]), texts[1:])
    assert both.frames.tolist() == [32, 16]  # ceil(61 / 4) and ceil(30 / 4) tokens, two emissions each
    assert torch.equal(both.codes[1, :8], alone.codes[0])
    torch.testing.assert_close(both.ctc[1, :16], alone.ctc[0], atol=1e-5, rtol=0)
    assert both.spelling is not None
    assert alone.spelling is not None
    torch.testing.assert_close(both.spelling[1], alone.spelling[0], atol=1e-5, rtol=0)


def test_the_attention_decoder_does_not_look_ahead() -> None:
    model = Recogniser(SMALL, HeadConfig(decoder_layers=1)).eval()
    mel, lengths = torch.randn(1, 20, 40), torch.tensor([40])
    with torch.inference_mode():
        a = model(mel, lengths, torch.tensor([[3, 4, 5, 6]])).spelling
        b = model(mel, lengths, torch.tensor([[3, 4, 9, 9]])).spelling
    torch.testing.assert_close(a[:, :3], b[:, :3])
    assert not torch.allclose(a[:, 3:], b[:, 3:])


def test_losses_of_certain_answers() -> None:
    model = Recogniser(SMALL, HeadConfig(emissions=1))
    found = model(torch.randn(1, 20, 20), torch.tensor([20]))
    texts = torch.tensor([[3, 3]])
    path = torch.tensor([[3, 3, 0, 3, 0]])
    sure = 50.0 * torch.nn.functional.one_hot(path, 29)
    found = type(found)(sure, torch.tensor([5]), found.codes, found.commit, None, None, None)
    assert ctc(found, texts, torch.tensor([2])) < 1e-3
    assert read(path[0].tolist(), ALPHABET) == "aa"
    spelling = 50.0 * torch.nn.functional.one_hot(torch.tensor([[3, 3, 0]]), 29)
    assert attention(spelling, texts, torch.tensor([2]), smoothing=0.0) < 1e-3
    other = torch.tensor([[3, 0]]), torch.tensor([1])  # one character, then the end
    assert attention(spelling, *other, smoothing=0.0) > 10


def test_codewords_follow_what_chooses_them() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.nn.functional.normalize(torch.randn(8, 6, generator=generator), dim=-1)
    learner = UnitVectorLearner(6, 24)
    x = (centres[torch.arange(64) % 8] * 5 + 0.05 * torch.randn(64, 6, generator=generator))[None]
    inside = torch.ones(1, 64, dtype=torch.bool)
    learner.fit(x[0], generator)
    for _ in range(5):
        values, ids, distance = learner(x.requires_grad_(), inside, generator)
    assert distance < 0.02
    assert len(ids.unique()) >= 8
    values.sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    before = learner.codebook.embed.clone()
    learner(x * -1, torch.zeros(1, 64, dtype=torch.bool) | (torch.arange(64) < 0), generator, rounding=False)
    assert torch.equal(learner.codebook.embed, before)
    padded = torch.cat([x, torch.full((1, 10, 6), 9.0)], 1)
    longer = torch.nn.functional.pad(inside, (0, 10))
    again = UnitVectorLearner(6, 24)
    again.load_state_dict(learner.state_dict())
    learner(x, inside, torch.Generator().manual_seed(1))
    again(padded, longer, torch.Generator().manual_seed(1))
    assert torch.equal(learner.codebook.embed, again.codebook.embed)  # padding teaches nothing


def test_fsq_starts_with_all_levels_in_use() -> None:
    mixed = torch.randn(4000, 12) @ torch.randn(12, 12) + 3
    quantizer = FiniteScalarQuantizer(12, 4)
    quantizer.fit(mixed)
    digits = quantizer.digits(quantizer.encode(mixed)[0])
    for level in (-1, 0, 1):
        assert ((digits == level).float().mean(0) - 1 / 3).abs().max() < 0.04


def test_after_its_start_the_bottleneck_gives_back_most_of_the_states() -> None:
    config = S3TokenizerConfig(20, 32, 2, 1, quantizer="vq", codebook_size=64, memory_taps=3)
    model = Recogniser(config, HeadConfig())
    states = (torch.randn(8, 32)[torch.arange(800) % 8] + 0.1 * torch.randn(800, 32)) * 4
    model.fit(states, torch.Generator().manual_seed(0))
    values, _, _ = model._quantize(states[None], torch.ones(1, 800, dtype=torch.bool), True, None)
    wanted = torch.nn.functional.layer_norm(states, (32,))
    assert (model.expand(values)[0] - wanted).square().mean() < 0.05


def test_clips_by_language_and_text(data_of: Build) -> None:
    manifest = data_of(TASK)["train"]
    assert len(read_clips(manifest)) == 8
    assert {clip.language for clip in read_clips(manifest, language="en")} == {"en"}
    assert all(clip.text for clip in read_clips(manifest, with_text=True))
    refused(ConfigError, "language 'fr'", read_clips, manifest, language="fr")


def test_texts_become_symbols_and_back() -> None:
    assert normalise("Well-known, isn’t  it?") == "well known isn't it"
    symbols = spell("It's — so.", ALPHABET)
    assert symbols is not None
    assert "".join(ALPHABET[s - 1] for s in symbols) == "it's so"
    assert spell("Grüße", ALPHABET) is None
    assert spell("...", ALPHABET) is None
    assert frames_needed(spell("deed", ALPHABET) or []) == 5


def test_unfit_utterances_are_left_out_and_counted(
    trainer_for: Build, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = trainer_for()
    assert len(trainer.train.clips) == len(SPOKEN)
    said = capsys.readouterr().out
    assert "4 of 6" in said  # German and a clip without text are not asked for
    assert "1 need other characters" in said
    assert "1 are too" in said


def seeded(seeds: range) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_masks_hide_their_share() -> None:
    mel = torch.randn(16, 40, 200)
    frames = torch.full((16,), 200)
    augment = AugmentConfig(bands=1, band_share=0.5, gaps=0)
    out = masked(mel, frames, augment, seeded(range(16)))
    hidden = (out != mel).float().mean((1, 2))
    assert hidden.max() <= 0.55
    assert 0.1 < hidden.mean() < 0.4
    assert torch.equal(out, masked(mel, frames, augment, seeded(range(16))))
    some = masked(mel[9:], frames[9:], augment, seeded(range(9, 16)))
    assert torch.equal(out[9:], some)  # a row is its own
    assert torch.equal(masked(mel, frames, AugmentConfig(bands=0, gaps=0), seeded(range(16))), mel)
