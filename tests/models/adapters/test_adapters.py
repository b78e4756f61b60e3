"""Tokenizers of others keep the laws of ours: random weights offline, real weights where a library brings them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_laws
import torch
from conftest import refused, seeded, speechlike

import vokens
from vokens import registry
from vokens.errors import CheckpointError, ConfigError, NotInstalled, TokensError
from vokens.models import adapters, system
from vokens.models.codec import Codec

pytest.importorskip("transformers")

# The laws of all codecs, over those below.
test_batch_equals_single = test_laws.test_batch_equals_single
test_codebook_numbers_are_checked = test_laws.test_codebook_numbers_are_checked
test_every_form_of_a_recording_gives_the_same_codes = (
    test_laws.test_every_form_of_a_recording_gives_the_same_codes
)
test_odd_sounds_work = test_laws.test_odd_sounds_work
test_saved_folder_opens_alike = test_laws.test_saved_folder_opens_alike
test_tokens_of_another_codec_are_refused = test_laws.test_tokens_of_another_codec_are_refused
test_tokens_travel = test_laws.test_tokens_travel_through_a_file_and_flipped_bits_are_noticed
test_twice_is_the_same = test_laws.test_twice_is_the_same_and_nothing_learns

# Small networks of each kind. Frame rates are the published ones.
DAC_SIZES = {"encoder_hidden_size": 4, "decoder_hidden_size": 32}
HUBERT = {
    **{"model_type": "hubert", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"intermediate_size": 32, "conv_dim": [8] * 7, "num_conv_pos_embeddings": 16},
    **{"num_conv_pos_embedding_groups": 2},
}
BERT = {
    **{"model_type": "wav2vec2-bert", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"intermediate_size": 32, "feature_projection_input_dim": 160, "output_hidden_size": 16},
}
ACOUSTIC = {"model_type": "dac", "hidden_size": 16, **DAC_SIZES}
FSQ = {
    **{"hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"num_key_value_heads": 2, "head_dim": 32, "encoder_hidden_size": 4, "quantization_dim": 80},
    **{"semantic_model_config": BERT},
}
SMALL: dict[str, dict[str, Any]] = {
    "encodec": {"hidden_size": 16, "num_filters": 4, "codebook_size": 32, "target_bandwidths": [0.75, 1.5]},
    "dac": {"codebook_size": 32, "n_codebooks": 4, **DAC_SIZES},
    "mimi": {
        **{"hidden_size": 32, "num_filters": 4, "codebook_size": 32, "codebook_dim": 16, "num_quantizers": 4},
        **{"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16},
        **{"intermediate_size": 64, "vector_quantization_hidden_dimension": 16, "upsample_groups": 32},
    },
    "xcodec": {
        **{"codebook_size": 32, "target_bandwidths": [0.5, 1], "codebook_dim": 32},
        **{"acoustic_model_config": {**ACOUSTIC, "downsampling_ratios": [8, 5, 4, 2]}},
        **{"semantic_model_config": HUBERT},
    },
    "higgs_audio_v2_tokenizer": {
        **{"codebook_size": 32, "target_bandwidths": [0.5], "codebook_dim": 8},
        **{"acoustic_model_config": {**ACOUSTIC, "downsampling_ratios": [8, 5, 4, 2, 3]}},
        **{"semantic_model_config": HUBERT},
    },
    "xcodec2": FSQ,
    "neucodec": FSQ,
}
SAMPLE = Path(vokens.__file__).parent / "samples" / "english.flac"
GAIN = {"mimi": 1.0, "xcodec2": 3.0, "neucodec": 3.0}


def build(name: str) -> Codec:
    """A codec around a small random network, its codebooks drawn from what they will quantise."""
    torch.manual_seed(0)
    cls: Any = system(name)
    network = cls.network_class()(cls.network_config({**SMALL[name], "model_type": name})).eval()
    with torch.no_grad():
        for weight in network.parameters():  # at their random start some signals die on the way
            weight.mul_(GAIN.get(name, 1.6) if weight.dim() > 1 else 1.0)
    codec = cls.of(network).eval().requires_grad_(False)
    wave = speechlike(2 * codec.sample_rate, sample_rate=codec.sample_rate)
    for book in (module for module in network.modules() if hasattr(module, "quantize")):
        _draw_entries(codec, book, wave)
    if "quantization_levels" in codec.config.values:
        network.quantizer.project_in.weight.mul_(30.0)
    codec._fingerprint = ""
    return codec


def _draw_entries(codec: Codec, book: Any, wave: np.ndarray) -> None:
    seen: list[torch.Tensor] = []
    quantize = book.quantize
    book.quantize = lambda hidden: (seen.append(hidden), quantize(hidden))[1]
    codec.encode(wave, codec.sample_rate)
    del book.quantize
    rows = seen[0].reshape(-1, seen[0].shape[-1])
    entries = rows[torch.randint(len(rows), (32,))]
    if hasattr(book, "embed_sum"):  # Mimi keeps sums and counts
        book.embed_sum.copy_(entries * book.cluster_usage[:, None])
        book._embed = None
    else:
        book.embed.copy_(entries)


def here(*names: str) -> list[Any]:
    """Those codecs of others that this machine computes; Lyra, whose files are fetched, only where they are tested."""
    marks = {name: [pytest.mark.evaluators] for name in names if name.startswith("lyra")}
    return [
        pytest.param(name, marks=marks.get(name, ()))
        for name in names
        if name in marks or not registry.lacking(registry.get(name))
    ]


@pytest.fixture(scope="session")
def built() -> dict[str, Codec]:
    return {}


@pytest.fixture(params=[*SMALL, *here("opus-6", "codec2-1300", "lyra-3.2")])
def codec(request: pytest.FixtureRequest, built: dict[str, Codec]) -> Codec:
    name = request.param
    if name not in built:
        built[name] = build(name) if name in SMALL else vokens.load(name)
    return built[name]


@pytest.fixture(params=SMALL)
def hub_codec(request: pytest.FixtureRequest, built: dict[str, Codec]) -> Codec:
    if request.param not in built:
        built[request.param] = build(request.param)
    return built[request.param]


@pytest.fixture
def speaker(codec: Codec) -> Codec:
    return codec


def test_codes_vary(hub_codec: Codec) -> None:
    """Otherwise the laws would say little about these random networks."""
    tokens = hub_codec.encode(speechlike(32000), 16000)
    assert len(tokens.codes[0, 0].unique()) > 10
    assert all(len(tokens.codes[0, k].unique()) > 1 for k in range(hub_codec.num_codebooks))


@pytest.mark.parametrize("samples", [1, 2, 160, 319, 320, 321, 479, 480, 481, 960, 1921, 5000])
def test_length_law(codec: Codec, samples: int) -> None:
    """A frame for every one that is begun; a library's own delay may take one more."""
    tokens = codec.encode(speechlike(samples), codec.sample_rate)
    delay = getattr(codec, "delay", 0)
    assert int(tokens.lengths) == codec.num_frames(samples) == -(-(samples + delay) // codec.hop_length)
    off = 1 if codec.system == "neucodec" else 0  # it counts at 16 kHz
    assert abs(len(codec.decode(tokens)[0]) - samples) <= off
    assert len(codec.decode(tokens)[0]) == int(tokens.num_samples)


# Those of transformers


# The others' feature extractors need torchaudio: test_filter_banks_are_kaldis.
@pytest.mark.parametrize("hub_codec", [name for name in SMALL if SMALL[name] is not FSQ], indirect=True)
def test_as_transformers_computes_it(hub_codec: Codec) -> None:
    """Codes and wave of the network's own `encode` and `decode`."""
    network: Any = hub_codec.network
    wave = speechlike(20 * hub_codec.hop_length, sample_rate=hub_codec.sample_rate)
    tensor = torch.from_numpy(wave)[None, None]
    tokens = hub_codec.encode(wave, hub_codec.sample_rate)
    with torch.no_grad():
        if hub_codec.system == "encodec":
            found = network.encode(tensor, bandwidth=network.config.target_bandwidths[-1])
            spoken = network.decode(found.audio_codes, found.audio_scales).audio_values
            codes = found.audio_codes[0]
        else:
            codes = network.encode(tensor).audio_codes
            spoken = network.decode(audio_codes=codes).audio_values
    assert torch.equal(tokens.codes, codes)
    spoken = spoken.reshape(-1).numpy()
    ours = hub_codec.decode(tokens)[0][: len(spoken)]  # DAC's decoder leaves out some of the last samples
    np.testing.assert_allclose(ours, spoken[: len(ours)], atol=1e-5 * max(1.0, np.abs(spoken).max()))


def test_filter_banks_are_kaldis() -> None:
    """X-codec 2 and NeuCodec hear what torchaudio's Kaldi filter banks give, here of the library in C++."""
    knf = pytest.importorskip("kaldi_native_fbank")
    from vokens.models.adapters.xcodec2 import _features

    wave = speechlike(6400)
    options = knf.FbankOptions()
    options.frame_opts.dither, options.mel_opts.num_bins = 0, 80
    bank = knf.OnlineFbank(options)
    bank.accept_waveform(16000, (wave * 32768).tolist())
    mels = np.stack([bank.get_frame(i) for i in range(bank.num_frames_ready)])
    expected = (mels - mels.mean(0)) / np.sqrt(mels.var(0, ddof=1) + 1e-7)
    found = _features(torch.from_numpy(wave)[None])[0].reshape(-1, 80)
    np.testing.assert_allclose(found, expected[: len(found)], atol=5e-3)


def test_a_folder_of_transformers_opens(hub_codec: Codec, tmp_path: Path) -> None:
    network: Any = hub_codec.network
    network.save_pretrained(tmp_path)
    again = vokens.load(tmp_path)
    assert type(again) is type(hub_codec)
    wave = speechlike(6000)
    assert torch.equal(again.encode(wave, 16000).codes, hub_codec.encode(wave, 16000).codes)

    from safetensors.torch import load_file, save_file

    state = load_file(tmp_path / "model.safetensors")
    state.pop(sorted(state)[-1])
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    refused(CheckpointError, "missing", vokens.load, tmp_path)


# FSQ: one codebook
@pytest.mark.parametrize("hub_codec", [n for n in SMALL if SMALL[n] is not FSQ], indirect=True)
def test_codebooks_add_up(hub_codec: Codec) -> None:
    """Fewer codebooks decode, the first alone and the others alone."""
    wave = speechlike(8000)
    tokens = hub_codec.encode(wave, 16000)
    assert torch.equal(hub_codec.encode(wave, 16000, num_codebooks=2).codes, tokens.select(0, 2).codes)
    first, rest = (hub_codec.decode(part)[0] for part in (tokens.select(0, 1), tokens.select(1)))
    assert first.shape == rest.shape
    assert not np.allclose(first, rest)


def test_stereo_encodec_is_refused() -> None:
    stereo = {"audio_channels": 2, "normalize": True, "chunk_length_s": 1.0, "overlap": 0.01}
    values = SMALL["encodec"] | stereo
    refused(ConfigError, "encodec_24khz", lambda: adapters.EnCodec(adapters.EnCodec.Config(values)))


# Those of libraries


@pytest.mark.parametrize("name", ["opus-6", "codec2-1300"])
def test_the_laws_above_are_tried(name: str) -> None:
    """One line about what this machine lacks, for all of them."""
    if sentence := registry.lacking(registry.get(name)):
        pytest.skip(sentence)


RATES = {
    "opus-6": 6000, "opus-12": 12000, "codec2-3200": 3200, "codec2-1300": 1300, "codec2-700C": 700,
    "lyra-3.2": 3200, "lyra-6": 6000, "lyra-9.2": 9200,
}  # fmt: skip


@pytest.mark.parametrize("name", here(*RATES))
def test_names_are_rates(name: str) -> None:
    codec, bits = vokens.load(name), RATES[name]
    wave, _ = vokens.audio.load(SAMPLE, codec.sample_rate)
    tokens = codec.encode(wave[: 2 * codec.sample_rate], codec.sample_rate)
    assert round(tokens.bitrate) == bits == round(vokens.registry.get(name).bitrate)
    assert tokens.model == name


@pytest.mark.parametrize("name", here("opus-24"))
def test_speech_comes_back_in_time(name: str) -> None:
    """No delay is left: the envelope of what Opus decodes is best aligned where it is."""
    codec = vokens.load(name)
    wave, _ = vokens.audio.load(SAMPLE, 16000)
    heard = codec.decode(codec.encode(wave, 16000))[0]
    shifts = range(-8, 9)
    match = [float(np.dot(wave[2000:40000], heard[2000 + s : 40000 + s])) for s in shifts]
    assert shifts[int(np.argmax(match))] == 0


@pytest.mark.parametrize("name", here("opus-6"))
def test_packets_stay_whole(name: str) -> None:
    codec = vokens.load(name)
    tokens = codec.encode(speechlike(8000), 16000)
    refused(ConfigError, "45 bytes", lambda: codec.encode(speechlike(8000), 16000, num_codebooks=3))
    refused(TokensError, "go together", lambda: codec.decode(tokens.select(0, 3)))


@pytest.mark.parametrize("name", here("opus-6"))
def test_any_bytes_decode(name: str) -> None:
    """Codes that are no packet are heard as a lost one."""
    codec = vokens.load(name)
    tokens = codec.encode(speechlike(16000), 16000)
    tokens.codes[:] = torch.randint(256, tokens.codes.shape, generator=seeded(0))
    assert np.isfinite(codec.decode(tokens)[0]).all()


@pytest.mark.evaluators
def test_lyra_rates_are_prefixes_of_each_other() -> None:
    fine, coarse = vokens.load("lyra-9.2"), vokens.load("lyra-3.2")
    wave = speechlike(8000)
    tokens, few = fine.encode(wave, 16000), coarse.encode(wave, 16000)
    assert torch.equal(tokens.select(0, 16).codes, few.codes)
    assert np.array_equal(fine.decode(tokens.select(0, 16))[0], coarse.decode(few)[0])


def test_a_missing_program_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    refused(NotInstalled, "apt-get install codec2", vokens.load, "codec2-1300")


@pytest.mark.parametrize(
    ("cls", "settings"), [("opus", {"kbps": 1.0}), ("codec2", {"mode": "9"}), ("lyra", {"stages": 99})]
)
def test_other_rates_are_refused(cls: str, settings: dict[str, Any]) -> None:
    refused(ConfigError, "was given", lambda: system(cls).Config(**settings))


def test_every_name_of_the_registry_has_a_system() -> None:
    for entry in vokens.registry.entries():
        assert system(entry.system)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["facebook/encodec_24khz", "descript/dac_16khz", "kyutai/mimi"])
def test_hub_ids_open(name: str) -> None:
    """Needs the hub."""
    codec = vokens.load(name)
    tokens = codec.encode(SAMPLE)
    entry = vokens.registry.get(name)
    for fact in ("sample_rate", "frame_rate", "num_codebooks"):
        assert getattr(codec, fact) == getattr(entry, fact)
    assert np.isfinite(codec.decode(tokens)[0]).all()
