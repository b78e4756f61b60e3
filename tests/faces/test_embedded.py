"""The voice of the package: packed by recipes/say/embed_voice.py from small random parts, then spoken with."""

import runpy
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import refused, speechlike
from safetensors import safe_open
from speakers import tiny_speech

import vokens
from vokens import registry
from vokens.checkpoint import save_safetensors
from vokens.cli import main
from vokens.errors import CheckpointError, ConfigError, TokensError
from vokens.models.learnable.voice import LearnableSpeech, load_voice, save_voice
from vokens.models.speaking import generator_of

RECIPE = Path(__file__).parents[2] / "recipes/say/embed_voice.py"
HERE = {name: registry.embedded(name) for name in registry.EMBEDDABLE}  # what this copy really holds


def embed(*words: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["embed_voice.py", *map(str, words)])
        runpy.run_path(str(RECIPE), run_name="__main__")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained folders, as training leaves them, and ref.wav."""
    root = tmp_path_factory.mktemp("parts")
    torch.manual_seed(0)
    model = tiny_speech(campplus=True)
    for name, part in model._parts().items():
        part.save_pretrained(root / name)
    save_safetensors(root / "campplus.safetensors", model.speaker.state_dict())
    soundfile.write(root / "ref.wav", speechlike(16000, 1), 16000)
    soundfile.write(root / "in.wav", speechlike(12000, 2), 16000)
    return root


@pytest.fixture(scope="module")
def weights(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package's folder of weights with s3_mini and say in it."""
    folder = tmp_path_factory.mktemp("weights")
    (folder / "mini").symlink_to(registry.WEIGHTS / "mini")
    embed("--weights", folder, "tokenizer", parts / "tokenizer")
    voice = [f"--{name}={parts / name}" for name in ("lm", "flow", "autoencoder")]
    voice += [f"--speaker={parts / 'campplus.safetensors'}", f"--reference={parts / 'ref.wav'}"]
    embed("--weights", folder, "voice", *voice, "--reference-text", "one two", "--prompt", "0.4")
    return folder


@pytest.fixture
def here(parts: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with two recordings, in a copy of the package that has the voice."""
    monkeypatch.setattr(registry, "WEIGHTS", weights)
    for name in registry.EMBEDDABLE:
        monkeypatch.setitem(registry.MODELS, name, registry.embedded(name))
    for name in ("ref.wav", "in.wav"):
        (tmp_path / name).symlink_to(parts / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def samples(path: str) -> np.ndarray:
    return soundfile.read(path, dtype="float32")[0]


def test_the_embedded_voice_opens_by_name_and_speaks_unasked(here, weights):
    model = vokens.load("say")
    assert isinstance(model, LearnableSpeech)
    assert (model.name, model.needs_voice, [*model.voices]) == ("say", False, ["default"])
    assert model.voices["default"].text == "one two"
    assert not (weights / "say/tokenizer").exists()  # the one of s3_mini, kept once
    assert model.tokenizer.fingerprint == vokens.load("s3_mini").fingerprint
    for part in ("lm", "flow", "autoencoder", "speaker"):
        with safe_open(weights / f"say/{part}/model.safetensors", "pt") as file:
            kinds = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        assert all(value.dtype == torch.int8 for value in kinds.values() if value.dim() > 1), part
    (wave,) = model.say("Hello.", generator=generator_of(1))
    (again,) = vokens.load_voice().say("Hello.", "default", generator=generator_of(1))
    assert len(wave)
    assert np.array_equal(wave, again)
    (cloned,) = model.say("Hello.", "ref.wav", generator=generator_of(1))
    assert cloned.shape != wave.shape or not np.allclose(cloned, wave, atol=1e-4)


def test_tokens_are_spoken_by_the_model_that_knows_them(here, capsys, monkeypatch):
    """Those of the embedded tokenizer at once and offline, CosyVoice 3's not by a model of CosyVoice 2's tokens."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    tokens = vokens.load("s3_mini").encode("ref.wav")
    tokens.save("own.vok")
    assert main(["speak", "own.vok", "--voice", "ref.wav", "-o", "own.wav"]) == 0
    assert len(samples("own.wav"))
    replace(tokens, model="speech_tokenizer_v3_25hz").save("third.vok")
    capsys.readouterr()
    assert main(["speak", "third.vok", "--voice", "ref.wav", "-o", "third.wav"]) == 2
    assert "cosyvoice3_s3gen" in capsys.readouterr().err


def test_what_is_embedded_is_listed_with_its_own_numbers(here, capsys):
    entry = registry.get("say")
    facts = entry.system, entry.sample_rate, entry.frame_rate, entry.codebook_size, entry.embedded
    assert facts == ("learnable", 24000, 25.0, 27, True)
    assert registry.get("s3_mini").codebook_size == 27
    assert registry.is_cached(entry)
    files = (registry.WEIGHTS / "say").rglob("*.safetensors")
    assert entry.size_bytes == sum(file.stat().st_size for file in files)
    assert registry.offline() == ("mini", "say")
    assert main(["models"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("say ", "s3_mini "))]
    assert [row.split()[-1] for row in rows] == ["yes", "yes"]


def test_without_the_weights_one_line_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in registry.EMBEDDABLE:
        monkeypatch.delitem(registry.MODELS, name, raising=False)
        refused(ConfigError, r"not in this copy of vokens.*embed_voice\.py", vokens.load, name)
    assert main(["say", "Hello."]) == 2
    assert "in this copy of vokens" in capsys.readouterr().err
    assert registry.converter() == "chatterbox_s3gen"  # as before there was a voice in the package
    assert not list(tmp_path.iterdir())
    assert registry.offline() == ("mini",)


@pytest.mark.skipif(HERE["say"] is None, reason="this copy of the package has no voice yet")
def test_the_voice_of_this_copy():
    wave = vokens.load_voice().say("Hello.", generator=generator_of(0))[0]
    assert 0.2 < len(wave) / 24000 < 5
    assert sum(registry.get(name).size_bytes for name in registry.EMBEDDABLE) <= 60_000_000


def test_packed_parts_keep_their_fingerprint_when_saved_again(here, weights):
    for part in ("lm", "flow", "autoencoder"):
        model = vokens.load(weights / "say" / part)
        again = vokens.load(model.save_pretrained(here / part, dtype=torch.int8))
        whole = vokens.load(model.save_pretrained(here / "whole"))
        assert again.fingerprint == model.fingerprint == whole.fingerprint


def test_a_folder_is_packed_for_training_on_it(parts, here, capsys):
    embed("pack", parts / "autoencoder", here / "packed")
    assert vokens.load(here / "packed").fingerprint in capsys.readouterr().out
    files = (folder / "model.safetensors" for folder in (here / "packed", parts / "autoencoder"))
    packed, trained = (file.stat().st_size for file in files)
    assert packed < 0.6 * trained


def test_a_voice_is_kept_with_the_model(here, weights):
    model = vokens.load("say")
    decoded = model.voice("in.wav")
    facts = decoded.text, len(decoded.prompt_speech), len(decoded.prompt)
    assert facts == ("", 0, 10)  # 0.4 s, for the flow alone
    save_voice(here / "in.safetensors", decoded)
    again = load_voice(here / "in.safetensors")
    assert torch.equal(again.vector, decoded.vector)
    assert torch.equal(again.latents, decoded.latents)
    model.keep_voice("other", again)
    whole = model.save_pretrained(here / "whole")
    model = vokens.load(whole)
    assert [*model.voices] == ["default", "other"]
    refused(CheckpointError, "not of learnable: make it", tiny_speech().keep_voice, "default", decoded)
    (whole / "voices/other.safetensors").write_bytes((whole / "lm/model.safetensors").read_bytes())
    refused(CheckpointError, "holds no voice", vokens.load, whole)


def test_say_needs_no_model_and_no_voice(here, capsys):
    assert main(["say", "Hello."]) == 0
    assert "wrote said.wav" in capsys.readouterr().err
    assert soundfile.info("said.wav").samplerate == 24000
    assert main(["say", "Hello.", "--voice", "default", "-o", "named.wav"]) == 0
    assert np.array_equal(samples("said.wav"), samples("named.wav"))
    assert main(["say", "Hello.", "--voice", "ref.wav", "-o", "cloned.wav"]) == 0
    assert not np.array_equal(samples("said.wav"), samples("cloned.wav"))
    assert main(["say", "Hello.", "--stream", "-o", "streamed.wav"]) == 0
    assert len(samples("streamed.wav")) == len(samples("said.wav"))


def player(folder: Path, name: str, code: int = 0) -> None:
    (folder / name).write_text(f"#!/bin/sh\necho {name} $* >> {folder}/played\nexit {code}\n")
    (folder / name).chmod(0o755)


@pytest.mark.skipif(sys.platform == "win32", reason="programs are shell scripts here")
def test_what_is_said_is_played_where_a_player_is(here, monkeypatch, capsys):
    programs = here / "programs"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}")
    assert main(["say", "Hello.", "--play"]) == 0  # the file is there
    assert "nothing here plays said.wav: install one of" in capsys.readouterr().err
    player(programs, "paplay", 1)
    player(programs, "aplay")
    monkeypatch.setenv("PATH", f"{programs}:/bin:/usr/bin")
    monkeypatch.setattr("vokens.cli.play.PLAYERS", (("paplay",), ("aplay", "-q"), ("ffplay-of-a-test",)))
    assert main(["say", "Hello.", "--play", "--force"]) == 0
    assert (programs / "played").read_text().splitlines() == ["paplay said.wav", "aplay -q said.wav"]
    assert "paplay does not play" in capsys.readouterr().err
    assert main(["say", "Hello.", "--play", "-o", "said.flac"]) == 0  # aplay knows no flac
    assert "nothing here plays said.flac" in capsys.readouterr().err
    for words in (["Hello.", "-o", "-"], ["--file", "lines.txt", "-o", "out"]):
        assert main(["say", *words, "--play"]) == 2
        assert "--play plays the file of one text" in capsys.readouterr().err


@pytest.mark.parametrize("stream", [False, True])
def test_a_voice_is_converted_offline(here, stream):
    words = ["convert-voice", "in.wav", "--voice", "ref.wav", *["--stream"] * stream]
    assert main([*words, "-o", "out.wav"]) == 0
    assert soundfile.info("out.wav").samplerate == 24000
    assert abs(soundfile.info("out.wav").duration - soundfile.info("in.wav").duration) <= 0.05
    assert main([*words[:2], "--voice", "in.wav", *words[4:], "-o", "own.wav"]) == 0
    assert not np.allclose(samples("out.wav"), samples("own.wav"), atol=1e-4)


def test_tokens_of_another_tokenizer_are_not_converted(here):
    decoder, tokens = vokens.load("say").decoder, vokens.load("s3_mini").encode("in.wav")
    assert len(decoder.ids(tokens)[0]) == int(tokens.lengths[0])
    voice = decoder.voice("ref.wav")
    rows = [*decoder.ids(tokens), decoder.ids(tokens)[0][:7]]
    together = decoder.speak(rows, voice, n_cfm_timesteps=2, batch_seconds=0.1)
    assert [len(wave) for wave in together] == [960 * len(row) for row in rows]
    (alone,) = decoder.speak(rows[1:], voice, n_cfm_timesteps=2)
    np.testing.assert_allclose(together[1], alone, atol=2e-5 * max(1.0, np.abs(alone).max()))
    for said, change in (
        ("with that model", {"model": "mini"}),
        ("other weights", {"fingerprint": "0" * 16}),
    ):
        refused(TokensError, said, decoder.ids, replace(tokens, **change))


def test_tokens_of_an_earlier_edition_say_so(here: Path) -> None:
    mini = vokens.load("mini")
    older = replace(mini.encode("in.wav"), fingerprint=registry.get("mini").former[0])
    refused(TokensError, "edition 1 of 'mini'.*encode again", lambda: mini.decode(older))


def test_the_demo_says_a_sentence(here, capsys):
    assert main(["demo", "-o", "demo"]) == 0
    assert "demo/said.wav: Hello!" in capsys.readouterr().out
    assert len(samples("demo/said.wav"))


def test_the_server_speaks_by_default_and_knows_the_voice(here):
    testclient = pytest.importorskip("fastapi.testclient")
    from vokens.serve.app import create_app
    from vokens.serve.served import load_models
    from vokens.serve.settings import Settings

    settings = Settings()
    with testclient.TestClient(create_app(load_models(registry.offline(), settings), settings)) as client:
        assert client.get("/v1/voices").json()["data"] == ["default"]
        body = {"model": "say", "input": "Hello.", "response_format": "pcm", "seed": 1}
        actual = [client.post("/v1/audio/speech", json=body | more) for more in ({}, {"voice": "default"})]
        assert [reply.status_code for reply in actual] == [200, 200]
        assert actual[0].content == actual[1].content
        refused = client.post("/v1/audio/speech", json=body | {"voice": "nobody"})
        assert refused.status_code == 404
        assert "the only voice is default" in refused.text


def test_the_voice_of_the_package_is_as_loud_as_its_prompt():
    """Guidance of all dims made speech some 9 dB louder, and files clipped."""
    model = vokens.load("say")
    voice = model.voices["default"]
    (prompt,) = model.autoencoder.decode(model.flow.pack([voice.latents]))
    lines = ["We will meet at the station tomorrow morning.", "My name is Anna, and I have two cats."]
    waves = [model.say(line, generator=generator_of(1))[0] for line in lines]
    louder = 10 * np.log10(np.mean(np.concatenate(waves) ** 2) / np.mean(prompt**2))
    assert abs(louder) < 5
