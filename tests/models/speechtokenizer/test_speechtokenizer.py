"""SpeechTokenizer against recorded outputs of speechtokenizer 1.0.1, and its own laws: rows alone, spans, weights."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import refused, seeded
from golden.weights import fill_
from safetensors.torch import load_file, save_file
from torch import Tensor

import vokens
from vokens.compat.speechtokenizer import SpeechTokenizer as Published
from vokens.errors import CheckpointError, ConfigError
from vokens.models.speechtokenizer import SpeechTokenizer, SpeechTokenizerConfig, spans
from vokens.models.speechtokenizer import checkpoint as layout
from vokens.models.speechtokenizer.network import SEANet
from vokens.nn.lstm import SkipLSTM

GOLDEN = Path(__file__).parents[2] / "golden" / "speechtokenizer"
CONFIG = json.loads((GOLDEN / "config.json").read_text())
KEYS = json.loads((GOLDEN / "keys.json").read_text())
TINY = ("elu_tiny", "snake_tiny")
LENGTHS = (1, 2, 319, 320, 321, 640, 641, 1000, 2222)


def published_state(case: str, salt: str = "golden") -> dict[str, Tensor]:
    """Weights of a recorded case: a function of their published names."""
    settings = CONFIG["cases"][case]["config"]
    with torch.device("meta"):
        names = SpeechTokenizer(SpeechTokenizerConfig.from_published(settings)).add_weight_norm().state_dict()
    state = {name: torch.empty(value.shape) for name, value in layout.to_published(names).items()}
    fill_(state, salt)
    for name, value in state.items():
        if name.endswith("inited"):
            value.fill_(1.0)
        for rule in CONFIG["overrides"][settings["activation"]]:
            if re.fullmatch(rule["pattern"], name):
                value.mul_(rule.get("mul", 1.0)).add_(rule.get("add", 0.0))
                break
    return state


def build(case: str, salt: str = "golden") -> Published:
    codec = SpeechTokenizer.from_published(published_state(case, salt), CONFIG["cases"][case]["config"])
    return Published(codec)


@pytest.fixture(scope="module", params=TINY)
def case(request: pytest.FixtureRequest) -> tuple[Published, dict[str, Tensor]]:
    return build(request.param), load_file(GOLDEN / f"{request.param}.safetensors")


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    assert torch.get_num_threads() == request.param  # the pool leaves the user's setting alone
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def elu() -> Published:
    return build("elu_tiny")


def close(value: Tensor, wanted: Tensor) -> bool:
    """Within 1e-5 of the largest value."""
    return bool((value - wanted).abs().max() <= 1e-5 * wanted.abs().max())


def trace(net: SEANet, x: Tensor) -> dict[int, Tensor]:
    """What every layer of one whole forward pass gives out."""
    seen: dict[int, Tensor] = {}
    hooks = [
        layer.register_forward_hook(lambda _m, _a, out, i=i: seen.__setitem__(i, out.detach().clone()))
        for i, layer in enumerate(net.layers)
    ]
    net(x)
    for hook in hooks:
        hook.remove()
    return seen


def ragged(golden: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The recorded clips of odd lengths in one batch, with noise where it must not matter."""
    wave = torch.randn(len(LENGTHS), max(LENGTHS), generator=seeded(0))
    for row, n in enumerate(LENGTHS):
        wave[row, :n] = golden[f"len{n}.x"][0, 0]
    return wave, torch.tensor(LENGTHS)


def test_codes_and_waves(case: tuple[Published, dict[str, Tensor]]) -> None:
    model, golden = case
    assert golden["margin"].min() > 1e-4
    codes = golden["codes"].long()
    assert torch.equal(model.encode(golden["x"]), codes)
    assert torch.equal(model.encode(golden["x"], n_q=3), golden["codes.nq3"].long())
    assert torch.equal(model.encode(golden["x"], st=1), golden["codes.st1"].long())
    assert torch.equal(model.encode(golden["x"], n_q=5, st=2), golden["codes.st2nq5"].long())
    assert close(model.decode(codes), golden["wav"])
    assert close(model.decode(codes[:1]), golden["wav.nq1"])
    assert close(model.decode(codes[1:], st=1), golden["wav.st1"])
    assert close(model.decode(codes[2:5], st=2), golden["wav.st2to4"])


@torch.no_grad()
def test_latents_and_features(case: tuple[Published, dict[str, Tensor]]) -> None:
    model, golden = case
    codec = model.codec
    assert close(codec.latent(golden["x"][:, 0]).transpose(1, 2), golden["encoder"])
    quantized = codec.quantizer.decode(golden["codes"].long().transpose(0, 1))
    assert close(quantized.transpose(1, 2), golden["quantized"])
    wave, commit, feature = model(golden["x"])
    assert close(wave, golden["wav"])
    assert commit == 0
    assert close(feature, golden["feature"])
    assert close(model(golden["x"], n_q=3)[0], golden["forward.nq3.wav"])
    assert close(model(golden["x"], layers=[5, 2])[2], golden["forward.layers25.feature"])
    assert close(torch.stack(model.forward_feature(golden["x"])), golden["forward_feature.all"])
    fifth, first = model.forward_feature(golden["x"], [5, 1])[::-1]
    assert close(torch.stack([first, fifth]), golden["forward_feature.all"][[1, 5]])


@torch.no_grad()
def test_every_stage(case: tuple[Published, dict[str, Tensor]]) -> None:
    model, golden = case
    stages = {"encoder": trace(model.codec.encoder, golden["trace.x"])}
    assert torch.equal(model.encode(golden["trace.x"]), golden["trace.codes"].long())
    latent = model.codec.quantizer.decode(golden["trace.codes"].long().transpose(0, 1))
    stages["decoder"] = trace(model.codec.decoder, latent.transpose(1, 2))
    names = [name for name in golden if re.fullmatch(r"trace\.(en|de)coder\.\d+", name)]
    assert len(names) == 16
    for name in names:
        _, part, i = name.split(".")
        value = stages[part][int(i)]
        assert close(value if golden[name].shape[2] != 200 else value[..., :200], golden[name]), name


def test_odd_lengths_in_one_batch(case: tuple[Published, dict[str, Tensor]]) -> None:
    """Rows of a ragged batch get the recorded codes and waves that they got alone."""
    model, golden = case
    wave, lengths = ragged(golden)
    codes, frames = model.codec.encode_batch(wave, lengths, 8)
    assert frames.tolist() == [-(-n // 320) for n in LENGTHS]
    sounds = model.codec.decode_batch(codes, frames, 0)
    for row, n in enumerate(LENGTHS):
        wanted = golden[f"len{n}.wav"][0, 0]
        assert golden[f"len{n}.margin"] > 1e-4
        assert torch.equal(codes[row, :, : frames[row]], golden[f"len{n}.codes"][:, 0].long())
        assert codes[row, :, frames[row] :].count_nonzero() == 0
        assert close(sounds[row, : len(wanted)], wanted)
        assert sounds[row, len(wanted) :].count_nonzero() == 0


def test_silence_and_trailing_silence(case: tuple[Published, dict[str, Tensor]]) -> None:
    model, golden = case
    silence = torch.zeros(1, 1, 1280)
    assert torch.equal(model.encode(silence), golden["silence.codes"].long())
    assert close(model.decode(golden["silence.codes"].long()), golden["silence.wav"])
    padded = torch.nn.functional.pad(golden["trace.x"], (0, 1600))
    assert torch.equal(model.encode(padded), golden["padded.codes"].long())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["elu_full", "snake_full"])
@torch.no_grad()
def test_released_sizes(name: str) -> None:
    model, golden = build(name), load_file(GOLDEN / f"{name}.safetensors")
    codec, codes = model.codec, golden["codes"].long()
    encoder = trace(codec.encoder, golden["x"])
    assert torch.equal(model.encode(golden["x"]), codes)
    assert torch.equal(model.encode(golden["x"], st=1), golden["codes.st1"].long())
    assert close(encoder[12][:, ::32], golden["stage.encoder.12.every32ch"])
    assert close(encoder[13][:, ::64], golden["stage.encoder.13.every64ch"])
    assert close(encoder[15][:, ::16], golden["encoder.every16ch"])
    latent = codec.quantizer.decode(codes.transpose(0, 1)).transpose(1, 2)
    assert close(latent[:, ::16], golden["quantized.every16ch"])
    assert close(trace(codec.decoder, latent)[1][:, ::32], golden["stage.decoder.1.every32ch"])
    assert close(model.decode(codes), golden["wav"])
    assert close(model.decode(codes[:1])[..., ::4], golden["wav.nq1.every4"])
    first = codec.quantizer.decode(codes[:1].transpose(0, 1))
    assert close(codec.semantic(first)[..., ::12], golden["feature.every12dim"])


@pytest.mark.parametrize("frames", [1, 2, 3, 5, 1000])
def test_spans_equal_the_whole(
    elu: Published, monkeypatch: pytest.MonkeyPatch, frames: int, threads: int
) -> None:
    """However short the spans and however many threads: the same codes, and waves to 1e-5."""
    golden = load_file(GOLDEN / "elu_tiny.safetensors")
    wave, lengths = ragged(golden)
    codes, counts = elu.codec.encode_batch(wave, lengths, 8)
    sounds = elu.codec.decode_batch(codes, counts, 0)
    for name in ("CONV_FRAMES", "LSTM_FRAMES", "LAYERED_FRAMES"):
        monkeypatch.setattr(spans, name, frames)
    again, _ = elu.codec.encode_batch(wave, lengths, 8)
    assert torch.equal(again, codes)
    assert close(elu.codec.decode_batch(codes, counts, 0), sounds)


def test_spans_equal_the_published_pass(elu: Published) -> None:
    """The training pass runs everything in one piece: another order of work, the same latent and wave."""
    wave = torch.randn(2, 7000, generator=seeded(1))
    with torch.no_grad():
        output = elu.codec(wave[:, : 320 * 21])
    codes, frames = elu.codec.encode_batch(wave[:, : 320 * 21], torch.tensor([6720, 6720]), 8)
    assert torch.equal(codes, output.codes)
    assert close(elu.codec.decode_batch(codes, frames, 0), output.wave)


def test_large_tensors_move_to_a_file(elu: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    wave = torch.randn(1, 9000, generator=seeded(2))
    lengths = torch.tensor([9000])
    codes, frames = elu.codec.encode_batch(wave, lengths, 8)
    sound = elu.codec.decode_batch(codes, frames, 0)
    monkeypatch.setattr(spans, "MEMORY_BYTES", 1)
    assert torch.equal(elu.codec.encode_batch(wave, lengths, 8)[0], codes)
    assert torch.equal(elu.codec.decode_batch(codes, frames, 0), sound)


def test_other_shapes_of_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """One direction, deeper stages with dilation, other strides, no projection: spans still equal the whole."""
    torch.manual_seed(0)
    sizes = {"n_filters": 4, "dimension": 24, "semantic_dim": 24, "codebook_size": 16, "num_codebooks": 2}
    layers = {"strides": (4, 3, 2), "bidirectional": False, "residual_layers": 2, "lstm_layers": 3}
    codec = SpeechTokenizer(SpeechTokenizerConfig(**sizes, **layers)).eval()
    codec.quantizer.fit(codec.latent(torch.randn(4, 2400)).detach().flatten(0, 1))
    assert isinstance(codec.semantic, torch.nn.Identity)
    wave, lengths = torch.randn(3, 500), torch.tensor([500, 77, 1])
    codes, frames = codec.encode_batch(wave, lengths, 2)
    sounds = codec.decode_batch(codes, frames, 0)
    for name in ("CONV_FRAMES", "LSTM_FRAMES", "LAYERED_FRAMES"):
        monkeypatch.setattr(spans, name, 4)
    for row, n in enumerate(lengths.tolist()):
        alone, count = codec.encode_batch(wave[row : row + 1, :n], lengths[row : row + 1], 2)
        assert torch.equal(codes[row, :, : int(count)], alone[0])
        sound = codec.decode_batch(alone, count, 0)[0]
        assert close(sounds[row, : len(sound)], sound)


def test_an_error_in_a_thread_is_raised(
    elu: Published, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr(SkipLSTM, "step", broken)
    refused(RuntimeError, "on purpose", lambda: elu.encode(torch.randn(1, 1, 5000)))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda m, x: m(x, n_q=3, layers=[3]), ValueError, "3 codebooks"),
        (lambda m, x: m.forward_feature(x, layers=[8]), ValueError, "8 codebooks"),
        (lambda m, x: m(x, layers=[]), IndexError, "at least one layer"),
        (lambda m, x: m.encode(x.squeeze(1)), ValueError, r"\(B, 1, N\)"),
        (lambda m, x: m.encode(x.expand(1, 2, -1)), ValueError, r"\(B, 1, N\)"),
        (lambda m, x: m.encode(x[..., :0]), ValueError, "N >= 1"),
        (lambda m, x: m.decode(m.encode(x), st=1), IndexError, "has 8"),
        (lambda m, x: m.decode(m.encode(x)[0]), ValueError, r"\(codebooks, B, T\)"),
        (lambda m, x: m.encode(x, n_q=2, st=2), RuntimeError, "no codebook"),
    ],
)
def test_wrong_calls(elu: Published, call: Any, error: type[Exception], words: str) -> None:
    refused(error, words, lambda: call(elu, torch.zeros(1, 1, 2403)))


def test_odd_calls(elu: Published) -> None:
    x = torch.randn(2, 1, 2403, generator=seeded(3))
    codes = elu.encode(x)
    assert codes.shape == (8, 2, 8)
    assert torch.equal(elu.encode(x, n_q=9), codes)
    assert torch.equal(elu.encode(x, n_q=0), codes)
    assert len(elu.forward_feature(x, [])) == 8
    assert not torch.equal(elu.encode(x, st=1), codes[1:])


def test_training_moves_codebooks_and_evaluation_does_not() -> None:
    model = Published(CONFIG["cases"]["elu_tiny"]["config"])
    assert model.training
    x = torch.randn(2, 1, 3200, generator=seeded(4))
    before = {name: value.clone() for name, value in model.codec.quantizer.state_dict().items()}
    model.eval()(x)
    model.forward_feature(x)
    assert all(torch.equal(value, before[name]) for name, value in model.codec.quantizer.state_dict().items())
    wave, commit, feature = model.train()(x)
    (wave.square().mean() + commit + feature.mean()).backward()
    assert all(book.inited for book in model.codec.quantizer.codebooks)
    assert all(p.grad is not None for name, p in model.named_parameters() if "quantizer" not in name)


def test_load_from_checkpoint(tmp_path: Path) -> None:
    golden = load_file(GOLDEN / "elu_tiny.safetensors")
    config = CONFIG["cases"]["elu_tiny"]["config"] | {"sampling_rate": 16000, "upsample_rates": [8, 5, 4, 2]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.save(published_state("elu_tiny"), tmp_path / "SpeechTokenizer.pt")
    files = str(tmp_path / "config.json"), str(tmp_path / "SpeechTokenizer.pt")
    model = Published.load_from_checkpoint(*files)
    assert not model.training
    assert (model.sample_rate, model.n_q, model.downsample_rate) == (16000, 8, 320)
    assert torch.equal(model.encode(golden["x"]), golden["codes"].long())
    codec = vokens.load(tmp_path / "SpeechTokenizer.pt")
    tokens = codec.encode(golden["x"][0, 0], 16000)
    assert torch.equal(tokens.codes[0], golden["codes"][:, 0].long())
    speech, timbre = codec.decode(tokens.select(0, 1))[0], codec.decode(tokens.select(1, 8))[0]
    assert close(torch.from_numpy(speech), golden["wav.nq1"][0, 0, :2403])
    assert close(torch.from_numpy(timbre), golden["wav.st1"][0, 0, :2403])


@pytest.mark.parametrize(("activation", "total"), [("ELU", 166), ("Snake", 192)])
def test_keys_of_the_releases(activation: str, total: int) -> None:
    with torch.device("meta"):
        codec = SpeechTokenizer(SpeechTokenizerConfig(activation=activation))
        trained = SpeechTokenizer(SpeechTokenizerConfig(activation=activation)).add_weight_norm()
    wanted = {name: (tuple(shape), dtype) for name, (shape, dtype) in KEYS[f"generator.{activation}"].items()}
    assert len(wanted) == total
    for form in (codec, trained):
        published = layout.to_published(form.state_dict())
        assert {
            k: (tuple(v.shape), str(v.dtype).removeprefix("torch.")) for k, v in published.items()
        } == wanted
    assert layout.to_ours(published).keys() == trained.state_dict().keys()
    assert sum(p.numel() for p in trained.parameters()) == 103_675_586 + 7_872 * (activation == "Snake")


@pytest.mark.parametrize("name", TINY)
def test_weights_go_out_and_come_back(name: str, tmp_path: Path) -> None:
    """Other weights than the recorded ones: published -> ours -> published computes the same; the file opens."""
    model = build(name, salt="another")
    x = torch.randn(1, 1, 3000, generator=seeded(5))
    save_file(model.codec.to_published(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(model.codec.config.to_published()))
    again = Published.load_from_checkpoint(tmp_path / "config.json", tmp_path / "model.safetensors")
    assert torch.equal(again.encode(x), model.encode(x))
    assert close(again.decode(again.encode(x)), model.decode(model.encode(x)))


def test_weight_norm_computes_the_same_and_folds_back(tmp_path: Path) -> None:
    model, trained = build("elu_tiny"), build("elu_tiny")
    trained.codec.add_weight_norm()
    x = torch.randn(1, 3200, generator=seeded(6))
    assert close(trained.codec.latent(x), model.codec.latent(x))
    state = SpeechTokenizer.remove_weight_norm(trained.codec.state_dict())
    assert state.keys() == model.codec.state_dict().keys()
    assert all(
        torch.allclose(value, state[name], rtol=1e-6) for name, value in model.codec.state_dict().items()
    )
    folder = trained.codec.save_pretrained(tmp_path / "trained")
    codes = vokens.load(folder).encode(x[0], 16000).codes
    assert torch.equal(codes, model.encode(x[:, None]).transpose(0, 1))


def test_newer_weight_norm_names_are_read() -> None:
    state = published_state("elu_tiny")
    newer = {
        name.replace("weight_g", "parametrizations.weight.original0").replace(
            "weight_v", "parametrizations.weight.original1"
        ): value
        for name, value in state.items()
    }
    config = CONFIG["cases"]["elu_tiny"]["config"]
    ours = SpeechTokenizer.from_published(newer, config).state_dict()
    wanted = SpeechTokenizer.from_published(state, config).state_dict()
    assert all(torch.equal(ours[name], value) for name, value in wanted.items())


def test_wrong_weights_say_what_is_wrong() -> None:
    elu, snake = published_state("elu_tiny"), published_state("snake_tiny")
    config = CONFIG["cases"]["elu_tiny"]["config"]
    with pytest.raises(CheckpointError, match=r"activation mismatch.*Snake.*'ELU'"):
        SpeechTokenizer.from_published(snake, config)
    with pytest.raises(CheckpointError, match=r"activation mismatch.*ELU.*'Snake'"):
        SpeechTokenizer.from_published(elu, config | {"activation": "Snake"})
    refused(CheckpointError, "instead of", SpeechTokenizer.from_published, elu, config | {"n_filters": 8})
    refused(CheckpointError, "stray", SpeechTokenizer.from_published, elu | {"stray": torch.ones(1)}, config)
    missing = {name: value for name, value in elu.items() if name != "transform.bias"}
    refused(CheckpointError, "missing", SpeechTokenizer.from_published, missing, config)


def test_configs() -> None:
    published = CONFIG["cases"]["snake_full"]["config"]
    config = SpeechTokenizerConfig.from_published(published | {"num_mels": 80, "segment_size": 48000})
    assert config == SpeechTokenizerConfig(activation="Snake")
    assert config.to_published() == published
    with pytest.raises(ConfigError, match=r"lacks.*n_q"):
        SpeechTokenizerConfig.from_published({k: v for k, v in published.items() if k != "n_q"})
    refused(ConfigError, "'ReLU'", SpeechTokenizerConfig.from_published, published | {"activation": "ReLU"})
    refused(ConfigError, "dimension=0", SpeechTokenizerConfig, dimension=0)
    refused(ConfigError, "not a readable", SpeechTokenizerConfig.from_published, "no such file.json")
