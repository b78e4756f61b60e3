"""SoCodec against recorded outputs of its release (commit 3d35a24) with fairseq's HuBERT, stage by stage."""

import functools
import json
import re
from pathlib import Path

import pytest
import torch
from golden.weights import fill_
from safetensors.torch import load_file
from torch import Tensor

from vokens.models.socodec import SoCodec, SoCodecConfig
from vokens.models.socodec import checkpoint as layout
from vokens.models.socodec.hubert import normalised
from vokens.models.socodec.vocoder import low_pass

pytest.importorskip("transformers")

GOLDEN = Path(__file__).parents[2] / "golden" / "socodec"
CONFIG = json.loads((GOLDEN / "config.json").read_text())
ANALYZER_KEYS, VOCODER_KEYS = json.loads((GOLDEN / "keys.json").read_text()).values()
HUBERT_KEYS = json.loads((GOLDEN / "hubert_keys.json").read_text())["fairseq_to_transformers"]
HUBERT = {"width": 64, "layers": 3, "heads": 4, "hidden": 128, "conv_width": 16}
SPEAKER = {"channels": (16, 16, 16, 16, 48), "attention": 8, "squeeze": 8}
SMALL = SoCodecConfig(
    **{"width": 64, "codebook_dim": 8, "vocoder_width": 64},
    **{f"hubert_{name}": value for name, value in HUBERT.items()},
    **{f"speaker_{name}": value for name, value in SPEAKER.items()},
)

State = dict[str, Tensor]


@functools.lru_cache(1)
def published_weights(config: SoCodecConfig, salt: str = "golden") -> tuple[State, State, State | None]:
    """Weights of a recorded case: a function of their published names."""
    with torch.device("meta"):
        parts = SoCodec(config).to_published()
    filled = []
    for part, rules in zip(parts, ("analyzer", "vocoder", "hubert"), strict=True):
        if part is None:
            filled.append(None)
            continue
        state = fill_({name: torch.empty(value.shape) for name, value in part.items()}, salt)
        for name, value in state.items():
            if name.endswith("inited"):
                value.fill_(1.0)
            elif name.endswith(".filter"):
                value.copy_(torch.tensor(low_pass()).view(1, 1, -1))
            for pattern, rule in CONFIG["overrides"][rules].items():
                if re.fullmatch(pattern, name):
                    value.mul_(rule.get("mul", 1.0)).add_(rule.get("add", 0.0))
        filled.append(state)
    return tuple(filled)


@functools.cache
def small() -> SoCodec:
    return SoCodec.from_weights(*published_weights(SMALL), config=SMALL)


@functools.cache
def golden(name: str) -> State:
    return load_file(GOLDEN / f"{name}.safetensors")


def wave(pcm: Tensor) -> Tensor:
    return pcm.float() / 32768


def error(value: Tensor, wanted: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    assert value.shape == wanted.shape
    return float((value - wanted).abs().max() / wanted.abs().max().clamp(min=1e-9))


def difference(value: Tensor, wanted: Tensor) -> float:
    assert value.shape == wanted.shape
    return float((value - wanted).abs().max())


def test_published_names_and_shapes_of_the_release() -> None:
    with torch.device("meta"):
        analyzer, vocoder, hubert = SoCodec(SoCodecConfig()).to_published()
    for state, keys in ((analyzer, ANALYZER_KEYS), (vocoder, VOCODER_KEYS)):
        assert {name: [list(value.shape), "float32"] for name, value in state.items()} == keys
    unused = (None, "masked_spec_embed")
    wanted = {name: shape for name, (ours, shape) in HUBERT_KEYS.items() if ours not in unused}
    assert {name: list(value.shape) for name, value in hubert.items()} == wanted


def test_the_low_pass_filter() -> None:
    assert difference(torch.tensor(low_pass()), golden("parts")["aa.filter"].flatten()) <= 1e-7


HUBERT_LENGTHS = CONFIG["cases"]["hubert_small"]["lengths"]


def features(*waves: Tensor) -> tuple[Tensor, list[int]]:
    frames = [-(-len(item) // 320) for item in waves]
    spans = [normalised(item)[: 320 * count + 80] for item, count in zip(waves, frames, strict=True)]
    return small().hubert(spans, frames), frames


@pytest.mark.parametrize("samples", HUBERT_LENGTHS)
@torch.inference_mode()
def test_hubert_as_fairseq(samples: int) -> None:
    found, _ = features(wave(golden("hubert_small")[f"single{samples}.pcm"]))
    assert difference(found[0], golden("hubert_small")[f"single{samples}.features"]) <= 1e-5


@torch.inference_mode()
def test_hubert_in_a_ragged_batch() -> None:
    data = golden("hubert_small")
    rows = zip(data["ragged.pcm"], data["ragged.lens"].tolist(), strict=True)
    waves = [wave(pcm)[:size] for pcm, size in rows]
    found, frames = features(*waves)
    assert frames == data["ragged.frames"].tolist()
    for row, size in enumerate(frames):
        assert difference(found[row, :size], data["ragged.features"][row, :size]) <= 1e-5


@torch.inference_mode()
def test_hubert_of_silence_and_its_scaling() -> None:
    data = golden("hubert_small")
    assert difference(features(torch.zeros(1920))[0][0], data["silence1920.features"]) <= 1e-5
    assert difference(normalised(wave(data["stage.pcm"]))[::8], data["stage.normalised"]) <= 1e-5
    assert difference(features(wave(data["stage.pcm"]))[0][0], data["stage.features"][0, :6]) <= 1e-5


def test_mel() -> None:
    data = golden("mel")
    for samples in CONFIG["cases"]["mel"]["lengths"]:
        if samples >= 800:
            mel = small().log_mel(wave(data[f"noise{samples}.pcm"]))
            assert difference(mel.T[None], data[f"noise{samples}.mel"]) <= 1e-5
    assert difference(small().log_mel(torch.zeros(1920)).T[None], data["silence1920.mel"]) <= 1e-5


@torch.inference_mode()
def test_speaker() -> None:
    data, speaker = golden("parts"), small().speaker
    mel = data["speaker.mel"].float().transpose(1, 2)
    assert error(speaker(mel), data["speaker.out"]) <= 1e-5
    assert error(speaker(mel[:1, :, :5]), data["speaker.short5"]) <= 1e-5
    gates = []
    for i, block in enumerate(speaker.blocks):
        outputs = speaker._trunk(mel[:1], gates)
        assert error(outputs[-1], data[f"speaker.block{i}"]) <= 1e-5
        gates.append(block.gate(block.branch(outputs[-1]).mean(2, keepdim=True)))
    assert error(speaker._trunk(mel[:1], gates)[-1], data["speaker.block3"]) <= 1e-5
    assert error(speaker._joined(mel[:1], gates), data["speaker.mfa"]) <= 1e-5


@torch.inference_mode()
def test_every_stage() -> None:
    data, codec = golden("codec_small"), small()
    sound = torch.nn.functional.pad(wave(data["stage.pcm"]), (0, 760))
    assert difference(codec.log_mel(sound).T[None], data["stage.mel"]) <= 1e-5
    assert difference(features(sound)[0], data["stage.ssl"]) <= 1e-5
    latent = codec.encoder(data["stage.ssl"].transpose(1, 2)).transpose(1, 2)
    assert error(latent, data["stage.enc"]) <= 1e-5
    assert error(codec.codebooks.project_in(latent), data["stage.z"]) <= 1e-5
    codes = codec.codebooks.encode(latent)
    assert torch.equal(codes.transpose(1, 2), data["stage.codes"].long())
    quantized = codec.codebooks.decode(codes)
    assert error(quantized, data["stage.quant"]) <= 1e-5
    voice = codec.voice(sound)
    assert error(voice, data["stage.spk"]) <= 1e-5
    h1 = codec.semantic_decoder.hidden(quantized.transpose(1, 2) + voice[..., None])
    assert error(h1.transpose(1, 2), data["stage.h1"]) <= 1e-5
    assert error(codec.semantic_decoder.last(h1).transpose(1, 2), data["stage.ssl_pred"]) <= 1e-5
    h2 = codec.mel_decoder.hidden(h1 + voice[..., None])
    assert error(h2.transpose(1, 2), data["stage.h2"]) <= 1e-5
    mel = codec.decode_mel(codes, voice)
    assert error(mel.transpose(1, 2), data["stage.mel_pred"]) <= 1e-5
    assert difference(codec.vocode(mel[0])[None, None], data["stage.wav"]) <= 1e-4


@pytest.mark.parametrize("streams", [1, 2, 3, 4])
@torch.inference_mode()
def test_prefixes(streams: int) -> None:
    data, codec = golden("codec_small"), small()
    codes = data["stage.codes"].long().transpose(1, 2)[:, :streams]
    assert error(codec.codebooks.decode(codes), data[f"prefix{streams}.quant"]) <= 1e-5
    mel = codec.decode_mel(codes, data["stage.spk"])
    assert error(mel.transpose(1, 2), data[f"prefix{streams}.mel_pred"]) <= 1e-5


@torch.inference_mode()
def test_thirteen_tokens() -> None:
    data, codec = golden("codec_small"), small()
    tokens = codec.encode(wave(data["long.pcm"]), 16000)
    assert torch.equal(tokens.codes.transpose(1, 2), data["long.codes"].long())
    assert error(tokens.global_vector, data["long.spk"]) <= 1e-5
    mel = codec.decode_mel(tokens.codes, tokens.global_vector).transpose(1, 2)
    assert error(mel[:, ::4], data["long.mel_pred"]) <= 1e-5


@pytest.mark.parametrize("samples", CONFIG["cases"]["codec_small"]["lengths"])
def test_whole_codec(samples: int) -> None:
    data, codec = golden("codec_small"), small()
    tokens = codec.encode(wave(data[f"len{samples}.pcm"]), 16000)
    assert torch.equal(tokens.codes[0].T, data[f"len{samples}.1d.codes"].long())
    assert error(tokens.global_vector[0], data[f"len{samples}.1d.spk"]) <= 1e-5
    sound = torch.from_numpy(codec.decode(tokens)[0])
    if f"len{samples}.1d.wav" in data:
        assert difference(sound, data[f"len{samples}.1d.wav"][:samples]) <= 1e-4


@torch.inference_mode()
def test_vocoder() -> None:
    data, vocoder = golden("parts"), small().vocoder
    mel = data["vocoder.mel"].transpose(1, 2)
    x = vocoder.first(mel)
    assert error(x, data["vocoder.conv_pre"]) <= 1e-5
    x = vocoder.ups[0](x)
    assert error(x, data["vocoder.ups0"]) <= 1e-5
    assert error(vocoder.blocks[0](x), data["vocoder.res0"]) <= 1e-5
    assert error(vocoder.blocks[2](x), data["vocoder.res2"]) <= 1e-5
    assert difference(vocoder(mel)[:, None], data["vocoder.wav"]) <= 1e-4
    assert difference(vocoder(mel[..., :1])[:, None], data["vocoder.frame1.wav"]) <= 1e-4
    assert difference(vocoder.activation(data["vocoder.ups4"]), vocoder.activation(data["vocoder.ups4"])) == 0


@torch.inference_mode()
def test_snake_between_filters() -> None:
    data, activation = golden("parts"), small().vocoder.activation
    assert error(activation(data["aa.in"]), data["aa.out"]) <= 1e-5
    assert error(activation(data["aa.in1"]), data["aa.out1"]) <= 1e-5


@pytest.mark.slow
@torch.inference_mode()
def test_released_sizes() -> None:
    config = SoCodecConfig(hubert=False)
    codec, data = SoCodec.from_weights(*published_weights(config)), golden("full_codec")
    latent = codec.encoder(data["ssl"].float().transpose(1, 2)).transpose(1, 2)
    assert error(latent[..., ::16], data["enc"]) <= 1e-5
    assert error(codec.codebooks.project_in(latent)[..., ::16], data["z"]) <= 1e-5
    codes = codec.codebooks.encode(latent)
    assert torch.equal(codes.transpose(1, 2), data["codes"].long())
    assert error(codec.codebooks.decode(codes)[..., ::16], data["quant"]) <= 1e-5
    voice = codec.speaker(data["mel"].float().transpose(1, 2))
    assert error(voice, data["spk"]) <= 1e-5
    mel = codec.decode_mel(codes, voice)
    assert error(mel.transpose(1, 2), data["mel_pred"]) <= 1e-5
    assert difference(codec.vocoder(mel[..., :9])[:, None], data["wav"]) <= 1e-4


@pytest.mark.slow
@torch.inference_mode()
def test_released_hubert() -> None:
    from vokens.models.socodec.hubert import Hubert

    config = SoCodecConfig()
    with torch.device("meta"):
        hubert = Hubert(config)
    names = layout.hubert_to_fairseq({f"hubert.{k}": v for k, v in hubert.state_dict().items()})
    state = fill_({name: torch.empty(value.shape) for name, value in names.items()})
    ours = {name.removeprefix("hubert."): value for name, value in layout.hubert_to_ours(state).items()}
    hubert.to_empty(device="cpu").load_state_dict(ours)
    data = golden("full_hubert")
    found = hubert.eval()([normalised(wave(data["pcm"]))[: 3840 + 80]], [12])
    assert difference(found[0, :, ::8], data["features"]) <= 1e-5
