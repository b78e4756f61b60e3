"""Training SoCodec: streams fall into order, resuming changes nothing, codebooks learn as recorded, folders open."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import speechlike
from safetensors.torch import load_file
from torch.testing import assert_close
from training import Build

import vokens
from vokens.models.socodec import SoCodec, SoCodecConfig
from vokens.models.socodec.learner import voice_clips
from vokens.models.socodec.vocoder import SnakeBeta
from vokens.quantize.product import ProductQuantizer
from vokens.quantize.rvq import EuclideanCodebook

GOLDEN = Path(__file__).parents[1] / "golden" / "socodec" / "parts.safetensors"
TASK = "socodec"
ANALYZER = "losses={commit=0.2, mel=1.0, mel_l1=1.0}"


def tones(samples: int, seed: int) -> np.ndarray:
    """Every 120 ms, six tones that are there or not: 6 bits, of which a code of 4 knows 2."""
    draw = np.random.default_rng(seed)
    time = np.arange(samples) / 16000
    there = draw.random((6, -(-samples // 1920))).repeat(1920, 1)[:, :samples] < 0.5
    waves = 0.1 * np.sin(
        2 * np.pi * np.array([[250.0], [500.0], [900.0], [1600.0], [2600.0], [4500.0]]) * time
    )
    return (there * waves).sum(0) + 1e-3 * draw.standard_normal(samples)


def test_a_step_of_the_codebooks_as_recorded() -> None:
    golden = {k: v for k, v in load_file(GOLDEN).items() if k.startswith("ema.")}
    quantizer = ProductQuantizer(8, 1, digits=1, dim=8, dead_share=0.0).train()
    for linear in (quantizer.project_in, quantizer.project_out):
        torch.nn.init.eye_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
    book = quantizer.codebooks[0]
    assert isinstance(book, EuclideanCodebook)
    names = ("inited", "cluster_size", "embed", "embed_avg")
    book.load_state_dict({name: golden[f"ema.before.{name}"] for name in names})
    found = quantizer(golden["ema.x"])
    assert torch.equal(found.codes[:, 0], golden["ema.index"].long())
    assert_close(found.latent, golden["ema.quantize"], rtol=1e-5, atol=1e-6)
    assert_close(found.commit, golden["ema.loss"][0], rtol=1e-5, atol=1e-6)
    for name in names:
        assert_close(getattr(book, name), golden[f"ema.after.{name}"], rtol=1e-5, atol=1e-6)


def test_what_is_kept_equals_decoding_its_codes() -> None:
    quantizer = ProductQuantizer(12, 4, codebook_size=8, dim=3)
    latent = torch.randn(4, 50, 12, generator=torch.Generator().manual_seed(0))
    quantizer.fit(latent.flatten(0, 1), torch.Generator().manual_seed(0))
    keep = torch.tensor([1, 2, 3, 4])
    found = quantizer.eval()(latent, keep=keep)
    assert torch.equal(found.codes, quantizer.encode(latent))
    for row, streams in enumerate(keep.tolist()):
        wanted = quantizer.decode(found.codes[row : row + 1, :streams])
        assert_close(found.latent[row], wanted[0], rtol=1e-5, atol=1e-5)


def test_the_activation_has_the_gradient_of_differences() -> None:
    snake = SnakeBeta(2).double()
    torch.nn.init.normal_(snake.alpha, std=0.3, generator=torch.Generator().manual_seed(0))
    for columns in (1, 4, 9):
        x = torch.randn(1, 2, columns, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(snake, (x,))
        with torch.no_grad():
            assert_close(snake(x), snake(x.detach().requires_grad_()).detach())


def test_dropped_streams_fall_into_order() -> None:
    def distances(dropout: bool) -> list[float]:
        """Of vectors with one wide direction and ever narrower ones, from 1, 2, 3, 4 streams."""
        chance = torch.Generator().manual_seed(0)
        torch.manual_seed(0)
        quantizer = ProductQuantizer(8, 4, codebook_size=4, dim=2, digits=1).train()
        x = torch.randn(256, 1, 8, generator=chance) * 0.6 ** torch.arange(8)
        quantizer.fit(x.flatten(0, 1), chance)
        optimizer = torch.optim.Adam(quantizer.parameters(), lr=1e-2)
        for _ in range(300):
            keep = torch.randint(1, 5, (len(x),), generator=chance) if dropout else torch.full((len(x),), 4)
            found = quantizer(x, keep=keep, generator=chance)
            optimizer.zero_grad()
            ((found.latent - x).square().mean() + found.commit).backward()
            optimizer.step()
        codes = quantizer.encode(x)
        with torch.no_grad():
            return [float((quantizer.decode(codes[:, :k]) - x).square().mean()) for k in (1, 2, 3, 4)]

    ordered, plain = distances(dropout=True), distances(dropout=False)
    assert ordered[0] > ordered[1] > ordered[2] > ordered[3]
    assert ordered[0] < 0.8 * plain[0]
    assert ordered[1] < plain[1]


def test_the_start_lets_content_through(trainer_for: Build) -> None:
    """On the first batch what is decoded starts around the mean mel, and no layer's channel is lost or too loud."""
    trainer = trainer_for(ANALYZER)
    codec, batch = trainer.model.codec, trainer.train.batch(0)
    mel = trainer.spectrum(batch.wave)
    latent = codec.latent(batch.wave)
    assert_close(latent.std((0, 1)), torch.full((32,), 0.5), rtol=1e-3, atol=0)
    tokens = codec.codebooks.project_out(codec.codebooks.project_in(latent)).mT
    voice = codec.speaker(mel).unsqueeze(2)
    found = codec.mel_decoder(codec.semantic_decoder.hidden(tokens + voice) + voice)
    assert_close(found.mean((0, 2)), mel.mean((0, 2)), rtol=0, atol=1e-3)
    assert_close(found.std((0, 2)), torch.full((80,), 0.1), rtol=1e-3, atol=0)


def test_streams_fall_into_order_and_the_mel_is_learned(trainer_for: Build, tmp_path: Path) -> None:
    folder = tmp_path / "tones"
    folder.mkdir()
    for i in range(6):
        soundfile.write(folder / f"{i}.wav", tones(2 * 16000, seed=i), 16000)
    changes = ("fit_codebooks=50", "ema=0.0", "data.batch_size=8", "data.seconds=0.48")
    changes += ("optim.learning_rate=2e-3",)
    sizes = ("model.codebook_size=2", "model.strides=[2]", "model.width=64", "model.hubert_width=32")
    trainer = trainer_for(ANALYZER, f"data.train={folder}", f"data.valid={folder}", *changes, *sizes)
    for _ in range(120):
        trainer.train_step()
    mel = trainer.spectrum(trainer.valid.fixed(range(6)).wave)
    mean = float((mel - mel.mean((0, 2), keepdim=True)).abs().mean())
    measured = trainer.validate()  # on the clips that it was trained on
    distance = [measured[f"valid/mel_{k}"] for k in (1, 2, 3, 4)]
    assert distance[0] < 0.85 * mean
    assert max(distance[1:]) < 0.95 * distance[0]  # tones have little to say to a third stream
    assert distance[3] < 0.7 * mean


def test_voices_are_clips_in_another_order() -> None:
    mel = torch.arange(400.0).expand(2, 3, 400)
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    clips = voice_clips(mel, torch.tensor([400, 90]), generators)
    assert clips.shape[2] >= 100
    assert clips[1].max() < 90
    assert len(clips[0, 0].unique()) >= 99
    assert (clips[0, 0].diff() != 1).any()


def test_a_ragged_batch_of_the_trained_codec_is_single(finished: Build) -> None:
    codec = vokens.load(finished(TASK).out / "codec")
    waves = [speechlike(n, seed=n) for n in (1, 1919, 1921, 9000)]
    together = codec.encode(waves, sample_rate=16000)
    sounds = codec.decode(together)
    for i, wave in enumerate(waves):
        alone = codec.encode(wave, sample_rate=16000)
        assert torch.equal(alone.codes[0], together.codes[i, :, : alone.lengths[0]])
        assert_close(torch.from_numpy(codec.decode(alone)[0]), torch.from_numpy(sounds[i]), rtol=0, atol=1e-5)
        assert len(sounds[i]) == len(wave)


def test_a_mel_gives_the_same_in_pieces_and_as_a_whole_and_as_in_training(trainer_for: Build) -> None:
    codec = trainer_for(ANALYZER).final_model()
    wave = torch.from_numpy(speechlike(1920 * 130, seed=3))  # longer than a piece of 128 tokens
    latent = codec.latent(wave[None])
    assert torch.equal(codec.tokenize([wave])[0], codec.codebooks.encode(latent)[0])


def test_a_single_stream_trains_and_encodes(trainer_for: Build) -> None:
    trainer = trainer_for(ANALYZER, "model.num_streams=1", "model.strides=[2]", "data.seconds=0.4")
    for _ in range(3):
        found = trainer.train_step()
    assert np.isfinite(found["mel"])
    tokens = trainer.final_model().encode(speechlike(8000, seed=1), sample_rate=16000)
    assert tokens.codes.shape == (1, 1, 13)  # 40 ms each
    assert tokens.codebook_sizes == (64,)


def test_the_published_encoder_is_trained_from_hubert(trainer_for: Build, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    sizes = {"hubert_layers": 1, "hubert_heads": 2, "hubert_hidden": 16, "hubert_conv_width": 8}
    hubert = SoCodec(SoCodecConfig(hubert_width=16, width=32, groups=4, vocoder_width=32, **sizes)).hubert
    assert hubert is not None
    hubert.model.save_pretrained(tmp_path / "hubert")
    changes = [
        "losses={semantic=1.0, mel=1.0, commit=1.0}",
        "model.features=hubert",
        f"hubert={tmp_path / 'hubert'}",
    ]
    trainer = trainer_for(*changes, *(f"model.{name}={value}" for name, value in sizes.items()))
    found = [trainer.train_step()["semantic"] for _ in range(12)]
    assert np.mean(found[-3:]) < np.mean(found[:3])
    codec = trainer.final_model()
    assert codec.hubert is not None
    assert torch.equal(codec.hubert.state_dict()["model.encoder.layer_norm.weight"], torch.ones(16))
    tokens = codec.encode(speechlike(4000, seed=1), sample_rate=16000)
    assert tokens.codes.shape == (1, 4, 3)
