"""Tiny runs of every task: their recipes, their data, and what every trainer must hold."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import build_tiny_s3tokenizer, speechlike
from s3gen_weights import sizes

from vokens import checkpoint
from vokens.data.items import CodecInfo, Row
from vokens.data.outputs import get_output
from vokens.models.dacvae import DACVAE, DACVAEConfig
from vokens.nn.campplus import CAMPPlus
from vokens.train.config import DataConfig, read_recipe, trainer_of
from vokens.train.loop import Trainer

Build = Callable[..., Any]

COMMON = {"name": "tiny", "steps": 3, "threads": 1, "log_every": 1, "validate_every": 3, "save_every": 100}
CROPS = {"seconds": 0.12, "batch_size": 2}
STFT = {"network": "stft", "latent_dim": 6, "expansion": 2, "encoder_layers": 1, "decoder_layers": 1}
SMALL = sizes(32, 2, 32, 1, 1, 48, 1, 1, 2, 16, 5)  # of a flow
ADAM = {"learning_rate": 2e-3, "betas": [0.8, 0.99], "schedule": "constant"}
FLOW_RUN = {
    "ema": 0.9,
    "data": {"seconds": 0.8, "batch_size": 2},
    "optim": {"learning_rate": 5e-3, "schedule": "constant", "clip": 5.0},
}
LM_RUN = {
    **{"steps": 4, "validate_every": 2},
    "optim": {**ADAM, "learning_rate": 5e-3, "betas": [0.9, 0.98], "warmup": 10, "clip": 1.0},
}
RECIPES: dict[str, dict[str, Any]] = {
    "codec": {
        **{"system": "mini", "steps": 6, "ema": 0.9, "mel": "dac", "codebook_dropout": 0.5},
        "losses": {"wave": 1.0, "mel": 1.0, "stft": 0.5, "commit": 0.25, "adversarial": 1.0, "feature": 1.0},
        "model": {
            **{"width": 16, "latent_dim": 8, "codebook_size": 16, "encoder_layers": 1, "decoder_layers": 1},
            **{"semantic_dim": 8, "num_codebooks": 2},
        },
        "data": {"seconds": 0.2, "batch_size": 4},
        "adversarial": {
            **{"kinds": ["mstft"], "filters": 2, "windows": [256, 128], "loss": "hinge"},
            **{"feature": "normalised", "start": 2},
        },
        "optim": {"learning_rate": 1e-3, "warmup": 2, "clip": 1.0},
    },
    "recogniser": {
        **{"steps": 6, "validate_every": 6, "ema": 0.9},
        "model": {
            **{"n_mels": 40, "width": 32, "heads": 2, "layers": 1, "memory_taps": 7, "first_stride": 1},
            **{"quantizer": "fsq", "codebook_size": 81},
        },
        "head": {"layers": 1, "emissions": 1},
        "augment": {"bands": 1, "gaps": 1},
        "data": {"language": "en", "seconds": 3.0, "shortest": 0.3, "longest": 2.0},
        "optim": {"learning_rate": 5e-3, "warmup": 10, "clip": 1.0},
    },
    "dacvae": {
        **{"ema": 0.9, "mel_windows": [256, 1024], "model": {**STFT, "width": 32}, "data": CROPS},
        "discriminators": {"divisor": 32, "channels": 2, "windows": [512], "start": 2},
        "losses": {"mel": 1.0, "spectrum": 1.0, "kl": 1e-3, "adversarial": 0.1, "feature": 0.1},
        "optim": ADAM,
    },
    "vocoder": {
        "ema": 0.9,
        "model": {
            **{"base_channels": 16, "nb_harmonics": 2, "f0_predictor_cond_channels": 24},
            **{"resblock_kernel_sizes": [3], "resblock_dilation_sizes": [[1]]},
            **{"source_resblock_kernel_sizes": [3] * 3, "source_resblock_dilation_sizes": [[1]] * 3},
        },
        "data": CROPS,
        "discriminators": {"divisor": 32, "channels": 2, "start": 2},
        "optim": ADAM,
    },
    "flow_autoencoder": {
        **{"ema": 0.9, "model": {"flow_width": 32, "flow_layers": 1}, "data": CROPS},
        "optim": {"learning_rate": 3e-3, "schedule": "constant"},
    },
    "flow": FLOW_RUN | {"model": {**SMALL, "vocab_size": 81, "noise": "fresh"}},
    "learnable_flow": FLOW_RUN | {"model": SMALL},
    "socodec": {
        **{"steps": 6, "ema": 0.9, "fit_codebooks": 2, "vocoder_seconds": 0.1},
        "model": {
            **{"features": "mel", "hubert_width": 16, "width": 32, "groups": 4, "codebook_size": 8},
            **{"codebook_dim": 4, "speaker_channels": [8, 8, 8, 8, 16], "speaker_attention": 8},
            **{"speaker_squeeze": 4, "vocoder_width": 32},
        },
        "data": {"seconds": 0.72, "batch_size": 3},
        "mel_discriminator": {"channels": 2, "start": 3},
        "wave_discriminator": {"divisor": 32, "channels": 2, "start": 3},
        "losses": {
            **{"commit": 1.0, "mel": 1.0, "mel_l1": 1.0, "mel_adversarial": 0.1, "mel_feature": 0.1},
            **{"wave_mel": 1.0, "wave_stft": 1.0, "wave_adversarial": 0.1, "wave_feature": 0.1},
        },
        "optim": {**ADAM, "learning_rate": 3e-3, "clip": 5.0},
    },
    "token_lm": {
        **{"model": {"width": 32, "layers": 2, "heads": 2}, "data": {"batch_frames": 60}},
        "optim": {"learning_rate": 1e-2, "schedule": "constant"},
    },
    "learnable_lm": LM_RUN
    | {
        "model": {
            **{"front_end": "characters", "mix": [3, 4], "speech_per_text": [1.0, 6.0]},
            "backbone": {"width": 48, "hidden": 96, "layers": 2, "heads": 4, "kv_heads": 2},
            "speaker": {"width": 16, "layers": 1, "heads": 2, "embed_dim": 8},
        }
    },
    "uslm": LM_RUN
    | {
        "model": {
            **{"front_end": "characters", "text_symbols": 64, "width": 48, "heads": 4, "layers": 2},
            **{"feedforward": 96, "dropout": 0.0},
        }
    },
}


DAC = (  # settings of another network of DAC-VAE
    "model={latent_dim=6, encoder_dim=2, encoder_rates=[8, 60], decoder_dim=16, decoder_rates=[60, 8], "
    "conv_slope=0.1}"
)
PULSES = ("model.pulses=true", "model.latent_dim=20", "losses={mel=1.0, kl=0.0}")
VQ = ("model.quantizer=vq", "model.codebook_size=32", "losses={ctc=1.0, commit=0.25}")
ALIGNED = ("model.positions=aligned", "bistream=0.0")
FINISHED = {  # changes for a run to its end; 3e-3 leaves layers of SoCodec that amplify rounding
    "recogniser": ("fit_codebooks=3",),
    "socodec": ("steps=4", "validate_every=4", "optim.learning_rate=1e-4"),
    "learnable_lm": ("best=valid/nats",),
    "uslm": ("best=valid/first",),
}


def toml(settings: dict[str, Any]) -> str:
    """TOML of plain values and tables; json writes each value alike."""
    tables = {name: value for name, value in settings.items() if isinstance(value, dict)}
    lines = [f"{name} = {json.dumps(value)}\n" for name, value in settings.items() if name not in tables]
    dotted = {f"{name}.{key}": value for name, table in tables.items() for key, value in table.items()}
    return "".join(lines) + (toml(dotted) if dotted else "")


def write_recipe(task: str, folder: Path, places: dict[str, Path]) -> Path:
    """A task's recipe on this data, for a run in folder/run."""
    recipe = {"task": task, "out": str(folder / "run"), **COMMON, **RECIPES[task]}
    data = {name: str(place) for name, place in places.items()}
    if "autoencoder" in data:
        recipe["autoencoder"] = data.pop("autoencoder")
    recipe["data"] = recipe.get("data", {}) | data
    path = folder / f"{task}.toml"
    path.write_text(toml(recipe))
    return path


def build(recipe: Path, *changes: str) -> Trainer[Any, Any]:
    config = read_recipe(recipe, changes)
    return trainer_of(config.task)(config)


SPEECH = {  # task: sampling rate and seconds of its recordings; the last is shorter than any crop of most
    "codec": (16000, tuple(0.375 + 0.1875 * i for i in range(6))),
    "socodec": (16000, (1.0, 0.72, 0.25)),
    "learnable_flow": (24000, (1.4, 0.6, 1.0)),
    **dict.fromkeys(("dacvae", "vocoder", "flow_autoencoder"), (24000, (1.0, 0.6, 0.0625))),
}
TEXTS = ["one", "two birds", "three", "four cats", "five", "six dogs", "seven", "eight"]
SPOKEN = ("abba cab", "deed a fee", "face bad", "cafe")


def write_data(task: str, folder: Path) -> dict[str, Path]:
    """Small data of a task, by the settings that name it."""
    make = {"token_lm": token_corpus, "recogniser": tones, "flow": halting_speech}
    corpora = {"learnable_lm": ((40,), 25.0), "uslm": ((32, 32, 32), 50.0)}
    if task in SPEECH:
        data = write_speech(folder / "speech", *SPEECH[task])
    else:
        data = extract(folder / "tokens", *corpora[task]) if task in corpora else make[task](folder / "data")
    places = {"train": data, "valid": data, "cache": folder / "cache"}
    if task == "flow_autoencoder":
        torch.manual_seed(1)
        vae = DACVAE(DACVAEConfig(**STFT, n_fft=240, width=16, mean=(0.5,) * 6, std=(2.0,) * 6))
        places["autoencoder"] = vae.save_pretrained(folder / "vae")
    if task in ("flow", "learnable_flow"):
        places["tokenizer"] = build_tiny_s3tokenizer().save_pretrained(folder / "tokenizer")
        torch.manual_seed(0)
        places["speaker"] = folder / "campplus.safetensors"
        checkpoint.save_safetensors(places["speaker"], CAMPPlus().state_dict())
    if task == "learnable_flow":
        places["latents"] = build_vae(480).save_pretrained(folder / "latents")
        build_vae(320, mean=(1.0,) * 6, std=(2.0,) * 6).save_pretrained(folder / "latents75")
    return places


def cache_in(folder: Path) -> DataConfig:
    """Where caches are made: folder/cache."""
    return DataConfig(cache=str(folder / "cache"))


def write_speech(folder: Path, rate: int, seconds: tuple[float, ...] = (1.0, 0.6, 0.0625)) -> Path:
    """Recordings of these lengths."""
    folder.mkdir(exist_ok=True)
    for i, length in enumerate(seconds):
        samples = speechlike(round(length * rate), seed=i, sample_rate=rate)
        soundfile.write(folder / f"{i}.wav", samples, rate)
    return folder


def halting_speech(folder: Path) -> Path:
    """Two voices with pauses of digital silence, of which a mean frame knows nothing; one shorter than a crop."""
    write_speech(folder, 24000, (1.4, 0.6))
    for i in range(2):
        wave, rate = soundfile.read(folder / f"{i}.wav")
        beat = np.arange(len(wave)) // 4800
        soundfile.write(folder / f"{i}.wav", np.where((beat + i) % 2, wave, 0), rate)
    return folder


def build_vae(hop: int, **settings: object) -> DACVAE:
    torch.manual_seed(0)
    rates = (8, hop // 8)
    sizes = {"encoder_dim": 2, "encoder_rates": rates, "decoder_dim": 8, "decoder_rates": rates[::-1]}
    return DACVAE(DACVAEConfig(**sizes, latent_dim=6, **settings))


def spoken(text: str) -> np.ndarray:
    """A letter is 0.12 s of its own tone, a blank is silence."""
    time = np.arange(int(0.12 * 16000)) / 16000
    tones = [np.sin(2 * np.pi * 200 * 2 ** ((ord(c) - 97) / 2) * time) * (c != " ") for c in text]
    wave = np.concatenate([tone * np.hanning(len(tone)) for tone in tones])
    noise = np.random.default_rng(len(text)).standard_normal(len(wave))
    return (0.3 * wave + 1e-3 * noise).astype(np.float32)


def tones(folder: Path) -> Path:
    """A manifest of `spoken` texts, and of recordings that a recogniser of English leaves out."""
    folder.mkdir()
    records = []
    for i, text in enumerate(SPOKEN):
        soundfile.write(folder / f"{i}.wav", spoken(text), 16000)
        records.append({"path": f"{i}.wav", "text": text.upper() + ".", "language": "en"})
    soundfile.write(folder / "more.wav", speechlike(16000), 16000)
    long = "far too much for a second " * 5
    for text, language in ((None, "en"), ("Grüße", "de"), ("7 up", "en"), (long, "en")):
        records.append({"path": "more.wav", "text": text, "language": language})
    path = folder / "manifest.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def token_corpus(folder: Path) -> Path:
    """Four utterances of three codebooks."""
    draw, sizes = torch.Generator().manual_seed(1), (7, 5, 6)
    codes = torch.stack([torch.randint(0, size, (4, 12), generator=draw) for size in sizes], 1)
    rows = [Row(str(i), codes[i, :, :n].numpy(), n * 1920, n * 0.12) for i, n in enumerate((12, 9, 5, 7))]
    return write_corpus(folder, rows, CodecInfo("tiny", "", 16000, 25 / 3, sizes))


def extract(folder: Path, sizes: tuple[int, ...], frame_rate: float, speakers: bool = True) -> Path:
    """Eight spoken texts: two speakers, sounds of 1 to 2 s."""
    draw, rows = np.random.default_rng(3), []
    (folder / "speech").mkdir(parents=True)
    for i, text in enumerate(TEXTS):
        codes = np.stack([draw.integers(0, size, 12 + i) for size in sizes])
        audio = folder / f"speech/{i}.wav"
        soundfile.write(audio, speechlike(24000 + 3000 * i, i, 24000), 24000)
        speaker = f"voice{i % 2}" if speakers else None
        rows.append(Row(str(i), codes, 320 * (12 + i), 0.5, str(audio), text, speaker, "en"))
    return write_corpus(folder, rows, CodecInfo("tiny", "f00d", 16000, frame_rate, sizes))


def write_corpus(folder: Path, rows: list[Row], facts: CodecInfo) -> Path:
    """As `vokens extract` writes it."""
    folder.mkdir(exist_ok=True)
    for file in get_output("npy").write(folder, 0, rows, facts):
        (folder / file.final).parent.mkdir(parents=True, exist_ok=True)
        (folder / file.path).rename(folder / file.final)
    (folder / "run.json").write_text(json.dumps({"format": "npy", **asdict(facts), "source": "somewhere"}))
    return folder


def losses_of(run: Path) -> list[dict[str, float]]:
    """The metrics of a run: values of its steps, and of its validations."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


class Given(Exception):
    """Raised with what a network was given, before it computes."""


def given(run: Trainer[Any, Any], step: int) -> list[torch.Tensor]:
    """Inputs of a trainer's network at a step: tensors, numbers and lists of them, also those of batches."""

    def note(_module: object, args: object, options: object) -> None:
        raise Given(list(_tensors((args, options))))

    run.step = step
    hook = run.module.register_forward_pre_hook(note, with_kwargs=True)
    with pytest.raises(Given) as seen:
        run.micro_step(0)
    hook.remove()
    return seen.value.args[0]


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list):
        yield torch.tensor(
            [each.initial_seed() if isinstance(each, torch.Generator) else each for each in value]
        )
    elif isinstance(value, (bool, int, float)):
        yield torch.tensor(value)
    elif isinstance(value, (dict, tuple)) or hasattr(value, "__dict__"):
        fields = value if isinstance(value, (dict, tuple)) else vars(value)
        for each in fields.values() if isinstance(fields, dict) else fields:
            yield from _tensors(each)
