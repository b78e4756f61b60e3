"""S3Gen as one model: recorded runs of the dialects, files, batches, long text, precision, bad input."""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import refused, seeded
from s3gen_model import SETTINGS, build, published
from s3gen_weights import close, golden, ids, reduced
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

import vokens
from vokens import audio
from vokens.config import build_config
from vokens.errors import AudioError, CheckpointError, ConfigError, TokensError
from vokens.models.s3gen import S3GenModel, synthesis
from vokens.models.s3gen.config import S3GenConfig, S3GenModelConfig
from vokens.models.s3gen.voice import one_voice, voices_of
from vokens.nn.campplus import CAMPPlus
from vokens.nn.campplus_onnx import open_campplus
from vokens.tokens import Tokens

REFS = golden("embed_ref")


def ref(case: str = "even24k") -> dict[str, Tensor]:
    return {k: REFS[f"{case}/{k}"] for k in ("prompt_token", "prompt_token_len", "prompt_feat", "embedding")}


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return published("chatterbox")


@pytest.fixture(scope="module")
def model(state: dict[str, Tensor]) -> S3GenModel:
    return S3GenModel.from_published(state, SETTINGS)


@pytest.fixture(scope="module")
def turbo() -> S3GenModel:
    return build("chatterbox-turbo")


# Recorded runs


@pytest.mark.parametrize("case", ["even24k", "odd24k"])
def test_recorded_chatterbox(model: S3GenModel, case: str) -> None:
    recorded = golden("e2e_reduced_chatterbox")
    mel = model(recorded["tokens"], ref_dict=ref(case), generator=seeded(1100))
    close(mel, recorded[f"{case}/mel"], 5e-5)
    torch.manual_seed(1100)  # as the published code is seeded
    wave, source = model.inference(recorded["tokens"], ref_dict=ref(case))
    close(wave, recorded[f"{case}/wav"], 5e-4)
    close(source[..., ::5], recorded[f"{case}/source_sub"], 5e-4)
    assert not wave[:, :480].any()


@pytest.mark.parametrize("steps", [1, 2])
def test_recorded_turbo(turbo: S3GenModel, steps: int) -> None:
    recorded = golden("e2e_reduced_chatterbox")
    mel = turbo(recorded["tokens"], ref_dict=ref(), n_cfm_timesteps=steps, generator=seeded(1400))
    close(mel, recorded[f"meanflow/{steps}steps/mel"], 5e-5)
    options = {"n_cfm_timesteps": steps, "generator": seeded(1400)}
    wave, _ = turbo.inference(recorded["tokens"], ref_dict=ref(), **options)
    close(wave[..., ::3], recorded[f"meanflow/{steps}steps/wav_sub"], 5e-4)


def cosyvoice_folder(folder: Path, state: dict[str, Tensor]) -> Path:
    """The published layout: flow and vocoder as torch files, CAM++, no tokenizer."""
    folder.mkdir()
    for part, name in (("flow", "flow.pt"), ("mel2wav", "hift.pt"), ("speaker_encoder", "campplus.bin")):
        own = {k.partition(".")[2]: v for k, v in state.items() if k.startswith(part + ".")}
        torch.save(own, folder / name)
    return folder


def test_recorded_cosyvoice2(state: dict[str, Tensor], tmp_path: Path) -> None:
    folder = cosyvoice_folder(tmp_path / "CosyVoice2-0.5B", state)
    found = vokens.load(folder, config=SETTINGS)
    assert isinstance(found, S3GenModel)
    assert (found.name, found.config.mel2wav.source, found.config.fade) == ("cosyvoice2", "v2", False)
    recorded = golden("e2e_reduced_cosyvoice2")
    for case in ("even24k", "odd24k"):
        voice = ref(case) | {"prompt_token": recorded[f"{case}/prompt_token"], "prompt_token_len": None}
        close(found(recorded["tokens"], ref_dict=voice), recorded[f"{case}/mel"], 5e-5)
        wave, source = found.inference(recorded["tokens"], ref_dict=voice, generator=seeded(1700))
        close(wave, recorded[f"{case}/wav"], 5e-4)
        close(source[..., ::5], recorded[f"{case}/source_sub"], 5e-4)
    refused(ConfigError, "without a tokenizer", lambda: found.embed_ref(torch.zeros(24000), 24000))


@pytest.mark.slow
def test_recorded_full_size() -> None:
    recorded, whole = golden("e2e_full"), S3GenModel.from_published(published("chatterbox", full=True), None)
    ref_dict = whole.embed_ref(recorded["ref_wav"], 24000)
    assert torch.equal(ref_dict["prompt_token"], recorded["ref/prompt_token"])
    close(ref_dict["prompt_feat"], recorded["ref/prompt_feat"], 1e-4)
    close(ref_dict["embedding"], recorded["ref/embedding"], 2e-5)
    close(whole(recorded["tokens"], ref_dict=ref_dict, generator=seeded(1800)), recorded["mel"], 1e-4)
    wave, _ = whole.inference(recorded["tokens"], ref_dict=ref_dict, generator=seeded(1800))
    close(wave[..., ::2], recorded["wav_sub"], 1e-3)


# Files


def test_saved_folder_opens_as_the_same_model(model: S3GenModel, tmp_path: Path) -> None:
    folder = model.save_pretrained(tmp_path / "saved")
    again = S3GenModel.from_pretrained(folder)
    assert (again.config, again.name) == (model.config, "chatterbox")
    assert again.config.tokenizer is not None
    assert again.config.mel2wav.resblock_dilation_sizes == ((1, 3, 5),) * 3
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())
    assert json.loads((folder / "config.json").read_text())["model_type"] == "s3gen"
    close(
        again.inference(ids(3), ref_dict=ref(), seed=1)[0],
        model.inference(ids(3), ref_dict=ref(), seed=1)[0],
        0,
    )


def test_published_file_opens_whatever_its_name_and_strictly(
    state: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "weights.bin"
    extra = {"tokenizer._mel_filters": torch.zeros(128, 201), "tokenizer.window": torch.zeros(400)}
    save_file(state | extra, path)
    assert vokens.load(path, config=SETTINGS).name == "chatterbox"
    refused(CheckpointError, "t3", S3GenModel.from_published, state | {"t3.weight": torch.zeros(1)}, SETTINGS)
    for missing in ("flow.encoder_proj.bias", "mel2wav.conv_post.bias", "tokenizer.encoder.conv1.bias"):
        with pytest.raises(CheckpointError, match=r"missing|lacks"):
            S3GenModel.from_published({k: v for k, v in state.items() if k != missing}, SETTINGS)


def test_vocoder_alone_opens_when_told_its_source(state: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "hift.pt"
    torch.save({k.removeprefix("mel2wav."): v for k, v in state.items() if k.startswith("mel2wav.")}, path)
    vocoder = vokens.load(path, config={"source": "v2"})
    assert (vocoder.system, vocoder.config.source, vocoder.config.base_channels) == ("hiftnet", "v2", 32)
    refused(ConfigError, "which sines", vokens.load, path)


def test_parts_become_one_folder(model: S3GenModel, tmp_path: Path) -> None:
    assert model.tokenizer is not None
    folders = {"flow": model.flow, "mel2wav": model.mel2wav, "tokenizer": model.tokenizer}
    parts = {role: part.save_pretrained(tmp_path / role) for role, part in folders.items()}
    whole = S3GenModel.from_parts(**parts, speaker=model.speaker_encoder, name="mine")
    close(
        whole.inference(ids(3), ref_dict=ref(), seed=1)[0],
        model.inference(ids(3), ref_dict=ref(), seed=1)[0],
        0,
    )
    assert whole.config.tokens_fingerprint == model.tokenizer.fingerprint
    tokens = whole.tokenize(np.sin(np.arange(4000, dtype=np.float32)), 16000)
    assert tokens.model == whole.config.tokens
    assert whole.ids(tokens)
    refused(TokensError, "other weights", lambda: whole.ids(replace(tokens, fingerprint="0" * 16)))
    wrong = {"flow": parts["mel2wav"], "mel2wav": parts["mel2wav"]}
    refused(CheckpointError, "not .s3gen_flow.", S3GenModel.from_parts, **wrong)


def test_config_of_the_published_page() -> None:
    sizes = {"vocab_size": 6561, "encoder_num_blocks": 6, "decoder_num_mid_blocks": 12, "mel_bins": 80}
    flow = S3GenConfig(sampling_rate=24000, **sizes)
    config = S3GenModelConfig.of_flow(flow)
    again = build_config(S3GenModelConfig, json.loads(json.dumps(asdict(config))), "test")
    assert again == config
    assert build_config(S3GenModelConfig, {"tokenizer": None}, "test").tokenizer is None
    with pytest.raises(ConfigError, match=r"test: flow.*unknown settings"):
        build_config(S3GenModelConfig, {"flow": {"widht": 1}}, "test")
    for wrong in ({"vocab_size": 100}, {"sampling_rate": 22050}, {"token_mel_ratio": 3}, {"mel_bins": 100}):
        refused(ConfigError, ".", lambda wrong=wrong: S3GenModelConfig(flow=S3GenConfig(**wrong)))


@pytest.mark.slow
def test_graph_of_campplus_gives_its_weights(model: S3GenModel, tmp_path: Path) -> None:
    """As CosyVoice ships it: an exporter merges norms into convolutions and renames both."""
    speaker = model.speaker_encoder
    assert isinstance(speaker, CAMPPlus)
    pytest.importorskip("onnxscript")
    features = torch.randn(1, 60, 80, generator=seeded(0))
    path = tmp_path / "campplus.onnx"
    torch.onnx.export(speaker, (features,), path, dynamo=False, input_names=["input"])
    close(open_campplus(path)(features), speaker(features), 1e-4)


# Batches, long text, precision


@pytest.mark.parametrize("option", ["seed", "generator"])
def test_ragged_batch_equals_single_runs(model: S3GenModel, option: str) -> None:
    rows, seeds = [ids(3, 1), ids(6, 2)], [5, 6]
    voices = [ref("even24k"), ref("odd24k")]
    drawn = {"seed": lambda n: n, "generator": seeded}[option]
    waves, sources = model.inference(rows, ref_dict=_batch(voices), **{option: [drawn(n) for n in seeds]})
    for row, (tokens, voice) in enumerate(zip(rows, voices, strict=True)):
        wave, source = model.inference(tokens, ref_dict=voice, **{option: [drawn(seeds[row])]})
        close(waves[row, : wave.shape[1]], wave[0], 1e-4)
        close(sources[row, :, : wave.shape[1]], source[0], 1e-4)
        assert not waves[row, wave.shape[1] :].any()


def _batch(voices: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    parts = [voices_of(voice)[0].ref_dict for voice in voices]
    keys = "prompt_token", "prompt_feat"
    padded = {key: pad_sequence([part[key][0] for part in parts], True) for key in keys}
    others = ("prompt_token_len", "prompt_feat_len", "embedding")
    return padded | {key: torch.cat([part[key] for part in parts]) for key in others}


def test_speak_sorts_batches_and_cuts(model: S3GenModel) -> None:
    rows = [ids(2), ids(5), ids(3)]
    waves = model.speak(rows, ref(), seed=[1, 2, 3], batch_seconds=0.3)
    assert [wave.shape for wave in waves] == [(n * 960,) for n in (2, 5, 3)]
    alone = model.speak(rows[1].tolist(), one_voice(ref()), seed=2)
    close(waves[1], alone[0], 1e-4)
    (odd,) = model.speak(rows[0], ref("odd24k"))
    assert odd.shape == (3 * 480,)  # Chatterbox's odd prompts cost a frame


def test_long_text_joins_pieces(turbo: S3GenModel, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("LONGEST", 12), ("PIECE", 8), ("OVERLAP", 2)):
        monkeypatch.setattr(synthesis, name, value)
    assert synthesis.spans(12) == [(0, 12)]
    assert synthesis.spans(15) == [(0, 6), (4, 11), (9, 15)]
    for case, lost in (("even24k", 0), ("odd24k", 1)):
        wave, source = turbo.inference([ids(15), ids(3)], ref_dict=ref(case), seed=3)
        assert wave.shape == (2, 15 * 960 - 480 * lost)
        assert source.shape == (2, 1, wave.shape[1])
        mel = turbo([ids(15), ids(3)], ref_dict=ref(case), seed=3)
        assert mel.shape == (2, 80, 30 - lost)
        first = turbo(ids(15)[:6], ref_dict=ref(case), seed=3)
        close(mel[0, :, : 8 - lost], first[0, :, : 8 - lost], 1e-6)
        last = turbo(ids(15)[9:], ref_dict=ref(case), seed=3)
        close(mel[0, :, -8:], last[0, :, -8:], 1e-6)
        short, _ = turbo.inference(ids(3), ref_dict=ref(case), seed=3)
        close(wave[1, : short.shape[1]], short[0], 1e-5)
        vocoded, whole = turbo.mel2wav.inference(mel[:1], seed=3)
        close(wave[0, 960:], vocoded[0, 960:], 1e-4)
        close(source[0], whole[0], 1e-5)


def test_half_precision_keeps_ids_and_references(state: dict[str, Tensor]) -> None:
    half = S3GenModel.from_published(state, SETTINGS).set_dtype(torch.bfloat16)
    assert half.dtype == half.mel2wav.conv_pre.weight.dtype == torch.bfloat16
    wave = torch.from_numpy(np.random.default_rng(0).standard_normal(4800).astype(np.float32) * 0.1)
    heard = half.embed_ref(wave, 24000)
    exact = S3GenModel.from_published(state, SETTINGS).embed_ref(wave, 24000)
    assert heard.pop("tokenizer") == exact["tokenizer"]
    assert all(torch.equal(value, exact[key]) for key, value in heard.items())
    sound, _ = half.inference(ids(3), ref_dict=heard, seed=0)
    assert bool(sound.isfinite().all())
    refused(ConfigError, "int8", half.set_dtype, torch.int8)


def test_watermark_sees_each_whole_wave(model: S3GenModel) -> None:
    seen: list[tuple[int, int]] = []

    def mark(wave: np.ndarray, rate: int) -> np.ndarray:
        seen.append((len(wave), rate))
        return wave * 0.5

    plain = model.speak([ids(2), ids(4)], ref())
    model.watermark = mark
    try:
        marked = model.speak([ids(2), ids(4)], ref())
        refused(ConfigError, "watermark", lambda: model.stream(ids(4), ref()))
    finally:
        model.watermark = None
    assert sorted(seen) == [(1920, 24000), (3840, 24000)]
    close(marked[1], plain[1] * 0.5, 1e-6)


# Bad input

WAVE = torch.sin(torch.arange(12000.0) / 9)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ConfigError, "neither"),
        ({"ref_wav": WAVE, "ref_sr": 24000, "ref_dict": ref()}, ConfigError, "both"),
        ({"ref_wav": WAVE}, AudioError, "ref_sr"),
        ({"ref_wav": WAVE, "ref_sr": 1}, AudioError, "ref_sr=1"),
        ({"ref_wav": WAVE[:100], "ref_sr": 24000}, AudioError, "100 samples"),
        ({"ref_wav": WAVE * 0, "ref_sr": 24000}, AudioError, "silent"),
        ({"ref_wav": WAVE * torch.nan, "ref_sr": 24000}, AudioError, "NaN"),
        ({"ref_dict": {"prompt_token": torch.zeros(1, 2)}}, AudioError, "prompt_feat"),
        ({"ref_dict": ref() | {"prompt_feat": torch.zeros(1, 99, 80)}}, AudioError, "99 mel frames"),
        ({"ref_dict": ref() | {"prompt_token": torch.full((1, 5), 6561)}}, TokensError, "6561"),
        ({"ref_dict": ref(), "speech_tokens": []}, TokensError, "tokens"),
        ({"ref_dict": ref(), "speech_tokens": [6561]}, TokensError, "6561"),
        ({"ref_dict": ref(), "speech_tokens": [-1]}, TokensError, "-1"),
        ({"ref_dict": ref(), "speech_tokens": torch.zeros(1, 3)}, TokensError, "float32"),
        ({"ref_dict": ref(), "speech_tokens": [1, 2, 3], "finalize": False}, TokensError, "N from 4"),
        ({"ref_dict": ref(), "speech_token_lens": torch.tensor([9])}, TokensError, "speech_token_lens"),
        ({"ref_dict": ref(), "n_cfm_timesteps": 0}, ConfigError, "n_cfm_timesteps=0"),
        ({"ref_dict": ref(), "seed": 1, "generator": seeded(1)}, ConfigError, "both generator and seed"),
        ({"ref_dict": ref(), "seed": [1, 2]}, ConfigError, "2 seeds"),
        ({"ref_dict": ref(), "temprature": 1}, ConfigError, "temprature"),
    ],
)
def test_bad_input_is_refused_before_heavy_work(
    model: S3GenModel, arguments: dict, error: type, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def heavy(*_: object, **__: object) -> None:
        raise AssertionError("the network ran")

    for part in (model.flow.estimator, model.mel2wav):
        monkeypatch.setattr(part, "forward", heavy)
    refused(error, re.escape(message), lambda: model.inference(**{"speech_tokens": ids(3), **arguments}))


def test_tokens_and_voices_of_other_types_are_refused(model: S3GenModel, tmp_path: Path) -> None:
    wave = 0.1 * np.sin(np.arange(24000) / 20).astype(np.float32)
    audio.save(tmp_path / "ref.wav", wave, 24000)
    voice, same = model.voice(tmp_path / "ref.wav"), model.voice((wave, 24000))
    assert voice.voice.tokens.shape == same.voice.tokens.shape
    for tokens in (None, 3, "ids", {"codes": [1]}, [], torch.zeros(0, dtype=torch.int64)):
        refused(TokensError, r"\(N,\), \(B, N\)", model.speak, tokens, voice)
    for other in (None, 3, "none.wav"):
        refused(AudioError, r"a path|the path", model.voice, other)


def test_voices_and_utterances_must_match(model: S3GenModel) -> None:
    with pytest.raises(ConfigError, match="2 voices for 3"):
        model.inference([ids(2)] * 3, ref_dict=_batch([ref(), ref("odd24k")]))


def test_tokens_of_other_models_are_refused(model: S3GenModel) -> None:
    facts = ("speech_tokenizer_v1", "", 16000, 25.0, (6561,))
    codes = Tokens(ids(3)[None, None], torch.tensor([3]), torch.tensor([1920]), *facts)
    refused(TokensError, "speech_tokenizer_v2_25hz", lambda: model.speak(codes, ref()))
    assert len(model.ids(replace(codes, model="speech_tokenizer_v2_25hz"))[0]) == 3


def test_cosyvoice2_settings_of_a_flow() -> None:
    assert S3GenModelConfig.of_flow(reduced("cosyvoice2")).mel2wav.source == "v2"
    assert S3GenModelConfig.of_flow(reduced("chatterbox")).fade
