"""CosyVoice 3 as one model: recorded runs, folders told by content, tokens and voices that are not v2's, verbs."""

import itertools
import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import refused, seeded, speechlike
from s3gen_model import published
from s3gen_weights import close, golden3, ids, published_flow, reduced
from speakers import tiny_lm, tiny_s3gen
from test_hift import REDUCED as VOCODER
from test_hift import published_state
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import vokens
from vokens.audio import LogMel
from vokens.audio.mel import MEL_24K_80
from vokens.cli import main
from vokens.errors import CheckpointError, ConfigError, TokensError
from vokens.models.learnable.with_s3gen import WithS3Gen
from vokens.models.s3gen import S3GenModel
from vokens.models.s3gen.config import DIALECTS, S3GenModelConfig
from vokens.models.s3gen.hift import HiFTNetModel
from vokens.models.s3gen.releases import open_flow
from vokens.models.s3tokenizer import S3Tokenizer, S3TokenizerConfig
from vokens.models.s3tokenizer.config import RELEASES

V3 = "speech_tokenizer_v3_25hz"
FULL, REDUCED = DIALECTS["cosyvoice3"], reduced("cosyvoice3")
CAUSAL = replace(VOCODER, source="v3")
TOKENIZER = S3TokenizerConfig(width=128, heads=2, layers=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published layout, reduced."""
    folder = tmp_path_factory.mktemp("models") / "Fun-CosyVoice3"
    folder.mkdir()
    chatterbox = published("chatterbox")
    speaker = {k.partition(".")[2]: v for k, v in chatterbox.items() if k.startswith("speaker_encoder.")}
    torch.manual_seed(0)
    for name, state in (
        ("flow.pt", published_flow(REDUCED)),
        ("hift.pt", published_state(CAUSAL)),
        ("campplus.bin", speaker),
        ("speech_tokenizer_v3.pt", S3Tokenizer(TOKENIZER).to_published()),
    ):
        torch.save(state, folder / name)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> S3GenModel:
    found = vokens.load(folder, config={"chunk_size": 5})
    assert isinstance(found, S3GenModel)
    return found


def voice_of(recorded: dict[str, Tensor], embedding: Tensor) -> dict[str, Tensor]:
    return {k: recorded[k] for k in ("prompt_token", "prompt_feat")} | {"embedding": embedding}


def test_folder_is_told_by_content(model: S3GenModel) -> None:
    assert (model.name, model.config.tokens, model.config.mel2wav) == ("cosyvoice3", V3, CAUSAL)
    assert model.config.flow == REDUCED
    assert model.config.tokenizer == TOKENIZER
    assert not model.config.fade
    released = S3GenModelConfig.of_flow(FULL)
    assert released.tokenizer == RELEASES[V3]
    assert (released.tokens, released.mel2wav.causal) == (V3, True)


def test_recorded_one_shot(model: S3GenModel) -> None:
    whole, recorded = golden3("e2e_reduced"), golden3("e2e_reduced", "one_shot")
    mel = model._mel(recorded["ref_wav"][None])
    close(mel.transpose(1, 2), recorded["prompt_feat"], 1e-4)
    ref_dict = voice_of(recorded, whole["embedding"])
    close(model(recorded["tokens"], ref_dict=ref_dict), recorded["mel"], 5e-5)
    generator = seeded(2020)
    wave, source = model.inference(recorded["tokens"], ref_dict=ref_dict, generator=generator)
    close(wave, recorded["wav"], 1e-3)
    close(source[..., ::5], recorded["source_sub"], 2e-4)


def test_recorded_stream(model: S3GenModel) -> None:
    """Under the chunk mask to the end, which the published streamer's last call forgets."""
    whole, recorded = golden3("e2e_reduced"), golden3("e2e_reduced", "stream")
    ref_dict, chunks = voice_of(recorded, whole["embedding"]), model.config.flow.chunks()
    options = {"ref_dict": ref_dict, "chunks": chunks}
    close(model(recorded["tokens"], **options), recorded["mel"], 5e-5)
    wave, _ = model.inference(recorded["tokens"], generator=seeded(2020), **options)
    close(wave[:, ::4], recorded["wav_sub"], 1e-3)
    close(wave[:, : 2880 + 9600 : 4], recorded["published_wav_sub"][:, :3120], 1e-3)


def test_recorded_mels_of_references() -> None:
    recorded, mel = golden3("mel24k"), LogMel(replace(MEL_24K_80, f_max=FULL.mel_f_max))
    for name in ("n960", "n1440", "n3857", "silence", "sweep"):
        close(mel(recorded[f"wav/{name}"][None]), recorded[f"mel/{name}"], 1e-4)


class Work(TorchDispatchMode):
    """Counts operators and the numbers that they give, copies among them."""

    def __init__(self) -> None:
        super().__init__()
        self.operators = self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.operators += 1
        self.numbers += sum(leaf.numel() for leaf in tree_leaves(made) if isinstance(leaf, Tensor))
        return made


def test_work_of_a_chunk_does_not_grow(model: S3GenModel) -> None:
    """From its fourth chunk to the last but two a stream makes the same number of everything."""
    owner = model.voice(speechlike(7680, 1), 16000)
    tokens = ids(100)
    sounds, works = model.stream(tokens, owner, first_hop=5, hop=5, context=10, n_cfm_timesteps=1), []
    while True:
        with FlopCounterMode(display=False) as products, Work() as work:
            sound = next(sounds, None)
        if sound is None:
            break
        works.append((len(sound), products.get_total_flops(), work.operators, work.numbers))
    assert len(works) == 21
    assert len(set(works[3:-2])) == 1


def test_saved_folder_and_table_of_times(model: S3GenModel, folder: Path, tmp_path: Path) -> None:
    assert main(["convert", str(folder), "-o", str(tmp_path / "ours")]) == 0
    again = S3GenModel.from_pretrained(tmp_path / "ours")
    assert again.config == replace(model.config, flow=replace(REDUCED, chunk_size=25))
    assert json.loads((tmp_path / "ours/config.json").read_text())["name"] == "cosyvoice3"
    ref_dict = voice_of(golden3("e2e_reduced", "one_shot"), golden3("e2e_reduced")["embedding"])
    wanted = model.speak([3, 1, 4], ref_dict, seed=1)[0]
    assert np.array_equal(again.fix_steps().speak([3, 1, 4], ref_dict, seed=1)[0], wanted)
    refused(ConfigError, "fix_steps", again.speak, [3, 1, 4], ref_dict, n_cfm_timesteps=3)
    refused(CheckpointError, "fix_steps", again.save_pretrained, tmp_path / "fixed")


def test_releases_are_never_mixed(model: S3GenModel, folder: Path, tmp_path: Path) -> None:
    older = published_state(replace(VOCODER, source="v2"))
    for name in ("flow.pt", "speech_tokenizer_v3.pt"):
        (tmp_path / name).symlink_to(folder / name)
    torch.save(older, tmp_path / "hift.pt")
    refused(CheckpointError, "belong together", vokens.load, tmp_path)
    with pytest.raises(ConfigError, match="belong together"):
        S3GenModel.from_parts(flow=model.flow, mel2wav=HiFTNetModel.from_published(older, {"source": "v2"}))
    for lost in ("decoder.estimator.proj_out.bias", "pre_lookahead_layer.conv1.weight"):
        state = {name: value for name, value in published_flow(REDUCED).items() if name != lost}
        refused(CheckpointError, r"missing|lacks", open_flow, state, FULL, None)
    tokens = model.tokenize(speechlike(6400, 1), 16000)
    assert tokens.model == V3
    refused(TokensError, V3, lambda: model.ids(replace(tokens, model="speech_tokenizer_v2_25hz")))
    voice = model.voice(speechlike(6400, 1), 16000)
    voice.tokens = "speech_tokenizer_v2_25hz"
    for call, given in itertools.product((model.speak, model.stream), (voice, voice.ref_dict)):
        refused(TokensError, r"v2_25hz.*v3_25hz", call, [1, 2, 3], given)
    assert model.embed_ref(speechlike(6400, 1), 16000)["tokenizer"] == V3


def test_verbs(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("hello.wav", 0.4), ("ref.wav", 0.48)):
        soundfile.write(tmp_path / name, speechlike(int(seconds * 16000), len(name)), 16000)
    monkeypatch.chdir(tmp_path)
    vokens.load(folder).tokenize("hello.wav").save("hello.vok")
    source = shlex.quote(str(folder))
    for line in ("speak hello.vok", "speak hello.vok --stream", "convert-voice hello.wav"):
        options = f"--voice ref.wav --model {source} --steps 2 --overwrite -o o.wav"
        assert main(shlex.split(f"{line} {options}")) == 0
        assert len(soundfile.read("o.wav")[0]) == 10 * 960


def test_language_models_of_the_other_release_are_refused() -> None:
    lm, s3gen = tiny_lm(6561), tiny_s3gen()
    assert WithS3Gen(lm, s3gen).lm is lm
    s3gen.config = replace(s3gen.config, tokens=V3)
    refused(ConfigError, r"v2_25hz.*v3_25hz", WithS3Gen, lm, s3gen)
    lm.config = replace(lm.config, tokens=V3)
    assert WithS3Gen(lm, s3gen).decoder is s3gen
