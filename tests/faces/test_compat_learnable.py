"""Learnable-Speech's scripts by their flags: what they write, what they leave alone, that both stages train on it and
their weights open under the published names, and that wrong calls are explained."""

import json
import math
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import build_tiny_s3tokenizer, refused, speechlike
from training import build_vae, cache_in

import vokens
from vokens.compat import s3tokenizer
from vokens.compat.learnable_speech import latents as extraction
from vokens.compat.learnable_speech import settings
from vokens.compat.learnable_speech.__main__ import main
from vokens.compat.learnable_speech.index import KINDS, SPLITS, split
from vokens.compat.learnable_speech.train import batches_of_epoch
from vokens.errors import ConfigError, TokensError
from vokens.models.dacvae import DACVAE, DACVAEConfig
from vokens.models.learnable import LearnableLM
from vokens.train.config import read_recipe, trainer_of
from vokens.train.flow_data import FlowCrops
from vokens.train.published_files import PublishedFiles, is_published, ratio_of, read_items, read_tokens

RATE = 24000
SECONDS = (1.4, 0.9, 1.1)
NAMES = ("ann/a_1.wav", "ann/a_2.wav", "bob/a_1.wav")  # two of one name
CONFIG = """
__set_seed1: !apply:random.seed [7]
token_latent_ratio: 3
spk_embed_dim: 12
chunk_size: 5
llm: !new:cosyvoice.llm.llm.Qwen2LM
  lsm_weight: 0
  mix_ratio: [3, 4]
  sampling: !name:os.system
    command: "echo never run"
flow: !new:cosyvoice.flow.flow.CausalMaskedDiffWithXvec
  input_size: 32
  output_size: 80
  spk_embed_dim: !ref <spk_embed_dim>
  speaker_encoder_path: "/nowhere/llm.pt"
  pre_lookahead_len: 3
  encoder: !new:cosyvoice.transformer.upsample_encoder.UpsampleConformerEncoder
    attention_heads: 2
    linear_units: 32
    num_blocks: 1
    num_up_blocks: 1
  decoder: !new:cosyvoice.flow.flow_matching.CausalConditionalCFM
    cfm_params: !new:omegaconf.DictConfig
      content:
        t_scheduler: cosine
        training_cfg_rate: 0.1
        inference_cfg_rate: 0.5
        use_immiscible: true
        immiscible_k: 4
        use_contrastive_fm: true
        contrastive_lambda: 0.05
    estimator: !new:cosyvoice.flow.decoder.CausalConditionalDecoder
      channels: [48]
      attention_head_dim: 16
      n_blocks: 1
      num_mid_blocks: 1
      num_heads: 2
batch: !name:cosyvoice.dataset.processor.batch
  batch_type: dynamic
  max_frames_in_batch: 1500
train_conf:
  optim: adam
  optim_conf:
    lr: 0.001
  scheduler: constantlr
  scheduler_conf:
    warmup_steps: 1
  max_epoch: 2
  grad_clip: 1
  accum_grad: 1
  log_interval: 1
  save_per_step: -1
"""
SIZES = ("backbone.width=64", "backbone.hidden=64", "backbone.layers=1", "backbone.heads=1", "backbone.kv_heads=1",
         "speaker.width=16", "speaker.layers=1", "speaker.heads=8", "front_end=characters")  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three recordings with texts, extracted by the commands, and an index of them."""
    folder = tmp_path_factory.mktemp("learnable")
    for number, (name, seconds) in enumerate(zip(NAMES, SECONDS, strict=True)):
        path = folder / "speech" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, speechlike(int(seconds * RATE), number, RATE), RATE)
        path.with_suffix(".txt").write_text(f" text {'abc'[number]}\nof two lines \n")
    build_tiny_s3tokenizer().save_pretrained(folder / "s3")
    build_vae(480).save_pretrained(folder / "vae")
    (folder / "config.yaml").write_text(CONFIG)
    assert main(["extract_fsq", "--root_path", str(folder / "speech"), *tokenizer(folder)]) == 0
    assert main(["extract_dac_latents", "--root_path", str(folder / "speech"), *autoencoder(folder)]) == 0
    assert main(["create_data_list", "--src_dir", str(folder / "speech"), "--output_dir", str(folder)]) == 0
    return folder


def tokenizer(folder: Path) -> list[str]:
    return ["--model", str(folder / "s3"), "--device", "cpu", "--batch_size", "2"]


def autoencoder(folder: Path, out: str = "dac") -> list[str]:
    places = f"--output_dir {folder / out} --checkpoint {folder}/vae --tmp_dir {folder}/tmp"
    return [*places.split(), "--num_gpus", "0", "--num_decode_samples", "1"]


def train(folder: Path, model: str, out: Path, *more: str) -> int:
    data = f"--train_data {folder}/data.list --cv_data {folder}/data.list --num_workers 1 --prefetch 100"
    line = f"train --train_engine torch_ddp --config {folder}/config.yaml {data} --model {model} --model_dir {out}"
    ignored = "--pin_memory --use_amp --comet_disabled --deepspeed.save_states model_only"
    return main([*line.split(), *ignored.split(), *more, "--set", "threads=1"])


def changed(*changes: str) -> list[str]:
    return [part for change in changes for part in ("--set", change)]


def copy(source: Path, target: Path) -> None:
    """Copy the files of an utterance."""
    for ending in (".wav", ".txt", "_fsq.pt", "_latent2x.pt"):
        Path(f"{target}{ending}").write_bytes(Path(f"{source}{ending}").read_bytes())


def test_ids_as_published(dataset):
    codec = vokens.load(dataset / "s3")
    for name, seconds in zip(NAMES, SECONDS, strict=True):
        wav = dataset / "speech" / name
        ids = torch.load(wav.with_name(f"{wav.stem}_fsq.pt"), weights_only=True)
        assert (ids.shape, ids.device.type) == ((math.ceil(25 * seconds),), "cpu")
        assert not ids.is_floating_point()
        assert ids.untyped_storage().nbytes() == ids.nbytes  # its own numbers and no others
        wave = s3tokenizer.load_audio(str(wav))  # at 16 kHz as that package resamples
        assert torch.equal(ids, codec.encode(wave, 16000).codes[0, 0])


def test_latents_as_published(dataset):
    vae = vokens.load(dataset / "vae")
    for name, seconds in zip(NAMES, SECONDS, strict=True):
        wav = dataset / "speech" / name
        actual = torch.load(wav.with_name(f"{wav.stem}_latent2x.pt"), weights_only=True)
        samples = int(seconds * RATE)
        frames = extraction.frames_of(samples, vae.config.encoder_rates)
        assert {name: actual.pop(name) for name in [*actual] if name not in ("z", "mu", "logs")} == {
            "sample_rate": RATE, "original_samples": samples, "original_duration": pytest.approx(seconds),
            "latent_shape": [6, frames], "compression_ratio": samples // frames, "original_path": str(wav),
        }  # fmt: skip
        shapes = {name: value.shape for name, value in actual.items()}
        assert shapes == dict.fromkeys(("z", "mu", "logs"), (6, frames))
        wave = torch.from_numpy(vokens.audio.load(wav, RATE)[0])
        mean, _log_std = vae.posterior_of(wave[None, None])
        torch.testing.assert_close(actual["mu"], mean[0], atol=1e-6, rtol=1e-5)
        draw = ((actual["z"] - actual["mu"]) / actual["logs"].exp()).flatten()
        assert abs(float(draw.mean())) < 0.3
        assert 0.8 < float(draw.std()) < 1.2
    summary = json.loads((dataset / "dac/summary.json").read_text())
    assert (summary["total_files"], summary["failed_files"], summary["decode_samples"]) == (3, 0, 1)
    assert not (dataset / "dac/metadata_gpu0.json").exists()
    assert len(list((dataset / "tmp").rglob("*_reconstructed.wav"))) == 1


@pytest.mark.parametrize("rates", [(2, 4, 5, 8), (2, 3, 4, 4, 5)])
def test_frames_of_the_published_networks(rates):
    hop, shortest = (320, 312) if len(rates) == 4 else (480, 382)
    for samples in (shortest - 1, shortest, 4 * hop, 24319, 24320):
        assert extraction.frames_of(samples, rates) == (samples - shortest) // hop + 1
    sizes = {"encoder_dim": 1, "decoder_dim": 32, "latent_dim": 4}
    vae = DACVAE(DACVAEConfig(encoder_rates=rates, decoder_rates=rates[::-1], **sizes))
    wave = torch.randn(3 * hop + 101, generator=torch.Generator().manual_seed(0))
    assert extraction.posterior(vae, wave)[0].shape[1] == extraction.frames_of(len(wave), rates)


def test_windows_of_a_long_recording_are_the_whole(dataset, monkeypatch):
    vae = vokens.load(dataset / "vae")
    wave = torch.from_numpy(speechlike(RATE + 77, 3, RATE))
    whole = extraction.posterior(vae, wave)
    monkeypatch.setattr("vokens.models.dacvae.model.WINDOW_SECONDS", 0.2)
    for part, complete in zip(extraction.posterior(vae, wave), whole, strict=True):
        torch.testing.assert_close(part, complete, atol=1e-6, rtol=1e-5)


def test_extraction_goes_on_and_removes_nothing(dataset, tmp_path):
    wavs = [tmp_path / f"{number}.wav" for number in range(3)]
    for number, wav in enumerate(wavs[:2]):
        soundfile.write(wav, speechlike(RATE, number, RATE), RATE)
    wavs[2].write_bytes(b"no sound")
    old = tmp_path / "0_latent.pt"
    old.write_bytes(b"of an older run")
    listing = tmp_path / "files.txt"
    listing.write_text(f"# two\n{wavs[0]}\n\n{wavs[2]}\n")
    (tmp_path / "vae").symlink_to(dataset / "vae")
    flags = [*autoencoder(tmp_path, "out"), "--file_list", str(listing)]  # no --root_path
    assert main(["extract_dac_latents", *flags]) == 1
    (lost,) = json.loads((tmp_path / "out/failed_files.json").read_text())
    assert lost["path"] == str(wavs[2])
    first = tmp_path / "0_latent2x.pt"
    written, age = first.read_bytes(), first.stat().st_mtime_ns
    listing.write_text(f"{wavs[0]}\n{wavs[1]}\n")
    assert main(["extract_dac_latents", *flags, "--skip_existing", "--clean_tmp"]) == 0
    assert first.stat().st_mtime_ns == age
    assert old.read_bytes() == b"of an older run"
    metadata = json.loads((tmp_path / "out/metadata.json").read_text())
    assert {row["path"] for row in metadata["files"]} == {str(wavs[0]), str(wavs[1])}
    assert not (tmp_path / "out/failed_files.json").exists()
    assert main(["extract_dac_latents", *flags]) == 0
    assert torch.equal(*(torch.load(file, weights_only=True)["z"] for file in (first, first)))
    assert torch.load(first, weights_only=True)["z"].numpy().tobytes() in written  # the same draw again


def test_resyntheses_below_the_root_are_not_recordings(dataset, tmp_path):
    soundfile.write(tmp_path / "0.wav", speechlike(RATE // 2, 0, RATE), RATE)
    (tmp_path / "vae").symlink_to(dataset / "vae")
    for _ in range(2):
        assert main(["extract_dac_latents", "--root_path", str(tmp_path), *autoencoder(tmp_path)]) == 0
        assert json.loads((tmp_path / "dac/summary.json").read_text())["total_files"] == 1
    assert list(tmp_path.glob("tmp/gpu_0/0/*.wav"))


@pytest.mark.slow
def test_extraction_by_two_processes(dataset, tmp_path):
    for number in range(3):
        soundfile.write(tmp_path / f"{number}.wav", speechlike(RATE // 2, number, RATE), RATE)
    (tmp_path / "vae").symlink_to(dataset / "vae")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    command += ["-m", "vokens.compat.learnable_speech", "extract_dac_latents", "--root_path", str(tmp_path)]
    subprocess.run([*command, *autoencoder(tmp_path)], check=True)
    assert len(list(tmp_path.glob("*_latent2x.pt"))) == 3
    assert json.loads((tmp_path / "dac/summary.json").read_text())["total_files"] == 3


def test_an_index_holds_equal_names_and_both_suffixes(dataset, tmp_path):
    index = json.loads((dataset / "train_index.json").read_text())
    assert {"version", "created", "statistics", "data"} == set(index)
    assert [row["utt"] for row in index["data"]] == ["ann/a_1", "bob/a_1", "ann/a_2"]
    for row in index["data"]:
        assert set(row) == {"utt", "spk", "wav", "text_path", "token_path", "latent_path", "wav_size", "txt_size",
                            "token_size", "latent_size", "mtime"}  # fmt: skip
        assert Path(row["latent_path"]).name.endswith("_latent2x.pt")
        assert row["spk"] == "a"
        assert row["wav_size"] == Path(row["wav"]).stat().st_size
    facts = index["statistics"]
    assert (facts["total_files"], facts["num_speakers"], facts["speakers"]) == (3, 1, {"a": 3})
    sizes = (row[f"{kind}_size"] for row in index["data"] for kind in KINDS)
    assert facts["total_size_gb"] == pytest.approx(sum(sizes) / 2**30)
    for ending in (".wav", ".txt", "_fsq.pt", "_latent.pt"):
        (tmp_path / f"old{ending}").write_bytes(b"1")
    (tmp_path / "lacks.wav").write_bytes(b"1")
    assert main(["generate_json_index", "--input", str(tmp_path), "--output", str(tmp_path / "i.json")]) == 0
    (row,) = json.loads((tmp_path / "i.json").read_text())["data"]
    assert (row["utt"], row["spk"], Path(row["latent_path"]).name) == ("old", "default", "old_latent.pt")


def test_splits_are_the_published_ones(dataset, tmp_path):
    rows = [{"utt": f"{number:02d}"} for number in range(23)]
    actual = split(rows, (0.9, 0.05, 0.05))
    expected = list(rows)
    random.seed(42)
    random.shuffle(expected)
    assert [*actual["train"], *actual["val"], *actual["test"]] == expected
    assert [len(actual[name]) for name in SPLITS] == [20, 1, 2]
    flags = f"--src_dir {dataset}/speech --output_dir {tmp_path} --split 0.4 0.3 0.3"
    assert main(["create_data_list", *flags.split()]) == 0
    parts = [json.loads((tmp_path / f"train_index_{name}.json").read_text()) for name in SPLITS]
    assert [(part["split"], len(part["data"])) for part in parts] == [(name, 1) for name in SPLITS]
    assert (tmp_path / "data.list").read_text().strip() == str(tmp_path / "train_index_train.json")
    assert len({item.utt for name in SPLITS for item in read_items(tmp_path / f"{name}.list")}) == 3


def test_sources_of_all_kinds_name_the_same_files(dataset, tmp_path):
    wavs = sorted((dataset / "speech").rglob("*.wav"))
    (tmp_path / "files.txt").write_text("".join(f"{wav}\n" for wav in wavs))
    expected = sorted(item.files for item in read_items(dataset / "train_index.json"))
    for line in ("files.txt", str(dataset / "speech"), str(dataset / "train_index.json")):
        (tmp_path / "data.list").write_text(f"# a source\n{line}\n")
        assert sorted(item.files for item in read_items(tmp_path / "data.list")) == expected


def test_validation_names_what_is_wrong(dataset, tmp_path, capsys):
    assert main(["validate_data", "--src_dir", str(dataset / "speech")]) == 0
    assert "3 of 3 recordings" in capsys.readouterr().out
    source = dataset / "speech/ann/a_1"
    for name in ("good", "short", "ids", "text", "latents"):
        copy(source, tmp_path / name)
    torch.save(torch.arange(3), tmp_path / "short_fsq.pt")
    torch.save(torch.full((35,), 6561), tmp_path / "ids_fsq.pt")
    (tmp_path / "text.txt").write_text(" \n")
    unfit = {"z": torch.full((6, 70), float("nan")), "sample_rate": RATE}
    torch.save(unfit, tmp_path / "latents_latent2x.pt")
    assert main(["validate_data", "--src_dir", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert "1 of 5 recordings" in said.out
    for name, fault in (("short", "3 ids"), ("ids", "6561"), ("text", "no text"), ("latents", "finite")):
        assert any(name in line and fault in line for line in said.err.splitlines())


def test_files_are_read_and_aligned(dataset, tmp_path):
    files = PublishedFiles(dataset / "data.list")
    assert [clip.text for clip in files.clips] == [f"text {name}of two lines" for name in "acb"]
    assert {clip.speaker for clip in files.clips} == {"a"}
    tokens, latents = files.tokens(cache_in(tmp_path)), files.latents(cache_in(tmp_path))
    assert ratio_of(tokens, latents) == 2
    for number, item in enumerate(files.items):
        z = torch.load(item.latent_path, weights_only=True)["z"]
        np.testing.assert_allclose(latents[number], z.T.numpy(), atol=2e-3)
    voices = files.latents(cache_in(tmp_path))
    crops = FlowCrops(tokens, latents, voices, ratio=2, crop=100, batch_size=1, seed=0)
    for number in range(3):
        assert crops.sizes[number] == min(len(latents[number]) // 2, len(tokens[number]))
    torch.save(list(range(5)), tmp_path / "list_fsq.pt")
    assert read_tokens(tmp_path / "list_fsq.pt").tolist() == [0, 1, 2, 3, 4]
    torch.save({"a": 1}, tmp_path / "none_fsq.pt")
    refused(TokensError, "one row of whole numbers", read_tokens, tmp_path / "none_fsq.pt")


def test_a_manifest_is_no_index(dataset, tmp_path):
    """NeMo's manifests are called *.json too."""
    manifest = tmp_path / "manifest.json"
    manifest.write_text('{"audio_filepath": "a.wav", "text": "a"}\n{"audio_filepath": "b.wav"}\n')
    assert not is_published(manifest)
    manifest.write_text('{"version": "1.0", "data": []}')
    assert is_published(manifest)
    assert is_published(dataset / "train_index.json")


def test_new_ids_are_read_anew(dataset, tmp_path):
    copy(dataset / "speech/ann/a_1", tmp_path / "x")
    (tmp_path / "data.list").write_text(f"{tmp_path}\n")
    before = PublishedFiles(tmp_path / "data.list").tokens(cache_in(tmp_path))[0]
    torch.save(torch.zeros(35, dtype=torch.int32), tmp_path / "x_fsq.pt")
    after = PublishedFiles(tmp_path / "data.list").tokens(cache_in(tmp_path))[0]
    assert before.any()
    assert not after.any()


def test_config_yaml_is_read_and_not_run(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG + "\nsum: !ref <chunk_size> * 2\nagain: !ref <flow[encoder][linear_units]>\n")
    values = settings.read_yaml(path)
    assert values["flow"]["spk_embed_dim"] == 12
    assert (values["sum"], values["again"]) == ("<chunk_size> * 2", 32)
    assert settings.common(values)["seed"] == 7
    flow = settings.flow(values)
    assert (flow["noise_pairing"], flow["candidates"], flow["contrastive"]) == ("knn", 4, 0.05)
    assert flow["model"]["decoder_channels"] == 48
    path.write_text("a: !!python/object/apply:os.system [echo]\n")
    refused(ConfigError, "not YAML", settings.read_yaml, path)


def test_both_stages_train_on_the_files(dataset, tmp_path, capsys):
    """The published line: two steps of each stage, weights under the published names, going on where it stopped."""
    llm, flow = tmp_path / "llm", tmp_path / "flow"
    sizes = changed(*(f"model.{size}" for size in SIZES))
    assert train(dataset, "llm", llm, *sizes) == 0  # two epochs of one batch
    error = capsys.readouterr().err
    assert "--prefetch" in error
    assert "--deepspeed.save_states" in error
    weights = llm / "epoch_2_step_2.pt"
    state = torch.load(weights, weights_only=True)
    assert (state["epoch"], state["step"]) == (2, 2)
    assert state["llm_decoder.weight"].shape == (6564, 64)
    lm = vokens.load(llm / "lm")
    assert isinstance(lm, LearnableLM)
    assert (lm.config.speaker.published, lm.config.mix) == (True, (3, 4))
    opened = vokens.load(weights)
    assert opened.config == lm.config  # heads too, of which the published layout says nothing
    for name, value in lm.state_dict().items():
        assert torch.equal(opened.state_dict()[name], value), name
    assert train(dataset, "llm", llm, *sizes, *changed("steps=3")) == 0
    lines = [json.loads(line)["step"] for line in (llm / "metrics.jsonl").read_text().splitlines()]
    assert sorted(set(lines)) == [1, 2, 3]  # it went on

    assert train(dataset, "flow", flow, *changed("steps=2", f"data.speaker={weights}")) == 0
    assert "output_size" in capsys.readouterr().err  # 80 in the config, 6 in the files
    trained = vokens.load(flow / "flow")
    assert (trained.ratio, trained.latent_dim, trained.config.frame_rate) == (2, 6, 50.0)
    assert (trained.config.mean, trained.config.flow.cfm_inference_cfg_rate) == ((), 0.5)
    state = torch.load(next(flow.glob("epoch_*_step_2.pt")), weights_only=True)
    assert state["speaker_encoder.init.weight"].shape == (16, 80, 1)
    assert {"epoch", "step", "input_embedding.weight", "encoder_proj.weight"} <= set(state)

    changes = [f"data.speaker={weights}", "threads=1", f"out={tmp_path / 'again'}"]
    config = read_recipe(flow / "recipe.toml", changes)
    trainer = trainer_of(config.task)(config)  # the recipe that the line became
    assert batches_of_epoch(trainer) == 1
    assert trainer.train_step()["flow"] < 1e3


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("extract_dac_latents --output_dir OUT --checkpoint VAE", "--root_path"),
        ("extract_dac_latents --output_dir OUT --checkpoint S3 --root_path SPEECH", "a DAC-VAE"),
        ("generate_json_index --input OUT --output OUT/i.json", "names no recording"),
        ("generate_json_index --input SPEECH --output OUT/i.json --split 1 1 1", "shares of 1"),
        ("generate_json_index --input nowhere", "neither a folder"),
        ("train --model llm", "--qwen_pretrain_path"),
        ("train --model flow", "speaker_encoder_path"),
        ("train --model flow --config DATA/wrong.yaml", "'fast'"),
        ("train --model llm --qwen_pretrain_path OUT", "config.json"),
        ("train --model llm --dpo --set model.front_end=characters", "--ref_model"),
    ],
)
def test_wrong_calls_are_explained(dataset, tmp_path, line, reason, capsys):
    (dataset / "wrong.yaml").write_text(CONFIG.replace("lr: 0.001", "lr: fast"))
    if line.startswith("train"):
        line = line.replace("train ", "train --config DATA/config.yaml ")
        line += " --train_data DATA/data.list --cv_data DATA/data.list --model_dir OUT/run"
    places = {"OUT": tmp_path, "VAE": dataset / "vae", "S3": dataset / "s3", "SPEECH": dataset / "speech"}
    for name, place in (places | {"DATA": dataset}).items():
        line = line.replace(name, str(place))
    assert main(line.split()) == 2
    assert reason in capsys.readouterr().err


def test_commands_are_listed(capsys):
    assert main(["--help"]) == 0
    assert "generate_json_index" in capsys.readouterr().out
    assert main(["no_such"]) == 2
