"""Text in, speech out: batches as singles, streams as whole, long texts as their sentences; the verb end to end."""

import io
import re
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import build_tiny_speechtokenizer, refused, speechlike
from cosyvoice3 import REDUCED
from s3gen_weights import reduced
from speakers import tiny_lm, tiny_s3gen, tiny_speech, tiny_uslm
from test_hift import REDUCED as VOCODER

import vokens
from vokens import registry
from vokens.cli import main
from vokens.errors import AudioError, CheckpointError, ConfigError
from vokens.lm.sampling import COSYVOICE, GREEDY
from vokens.models.dacvae import DACVAE, DACVAEConfig
from vokens.models.learnable import LearnableLM, LearnableLMConfig, Qwen2Sizes
from vokens.models.learnable.cascade import speech_tokens
from vokens.models.learnable.decoder import decode_stream
from vokens.models.learnable.voice import LearnableSpeech
from vokens.models.learnable.with_s3gen import WithS3Gen
from vokens.models.s3gen import S3GenModel
from vokens.models.s3gen.checkpoint import flow_to_published, hift_to_published
from vokens.models.s3gen.flow import TokenToMel
from vokens.models.s3gen.hift import HiFTNetModel
from vokens.models.s3tokenizer import S3Tokenizer, S3TokenizerConfig
from vokens.models.speaking import PAUSE, Speaker, SynthesisOptions, load_voice, speaker
from vokens.models.uslm import USLM
from vokens.models.uslm.voice import USLMSpeech
from vokens.nn.campplus import CAMPPlus
from vokens.text import normalise
from vokens.text.bpe import OPENING

TEXTS = ["Hello there.", "It was 5 o'clock, and late", "No, it was not!"]
LONG = "The fox, which was quick, ran over 3 dogs in the long morning. They slept on. " * 4


@pytest.fixture(scope="module")
def learnable() -> LearnableSpeech:
    return tiny_speech()


@pytest.fixture(scope="module")
def speakers(learnable) -> dict[str, Speaker]:
    return {
        "learnable": learnable,
        "with_s3gen": WithS3Gen(tiny_lm(6561), tiny_s3gen()),
        "uslm": USLMSpeech(tiny_uslm(), build_tiny_speechtokenizer()),
    }


SYSTEMS = pytest.mark.parametrize("system", ["learnable", "with_s3gen", "uslm"])


def wave() -> np.ndarray:
    return speechlike(9600, 1)


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def close(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    assert len(found)
    np.testing.assert_allclose(found, expected, atol=2e-5 * max(1.0, np.abs(expected).max()))


# Every speaker


@SYSTEMS
@pytest.mark.parametrize("said", ["", "one"])
def test_a_text_in_a_batch_is_what_it_is_alone(speakers, system, said):
    model = speakers[system]
    said = said or ("x" if system == "uslm" else "")
    voice = model.voice(wave(), said, sample_rate=16000)
    together = model.say(TEXTS, voice, generator=seeded(1, 2, 3), batch_size=2)
    for row, text in enumerate(TEXTS):
        (alone,) = model.say(text, voice, generator=seeded(row + 1))
        close(together[row], alone)


@SYSTEMS
def test_a_long_text_is_its_sentences(speakers, system):
    model = speakers[system]
    pieces = model.pieces(LONG)
    assert len(pieces) > 1
    assert " ".join(pieces) == normalise(LONG)
    voice = model.voice(wave(), "one", sample_rate=16000)
    (whole,) = model.say(LONG, voice, generator=seeded(4), pause=0.5, steps=2)
    seeds = torch.randint(2**31, (len(pieces),), generator=seeded(4)[0]).tolist()
    parts = [
        model.synthesize([p], voice, [s], SynthesisOptions(model.sampler, 2))[0]
        for p, s in zip(pieces, seeds, strict=True)
    ]
    silence = np.zeros(model.sample_rate // 2, np.float32)
    close(whole, np.concatenate([x for part in parts for x in (silence, part)][1:]))


@SYSTEMS
def test_seeds_make_takes(speakers, system):
    model = speakers[system]
    voice = model.voice(wave(), "one", sample_rate=16000)
    one, same, other = (model.say("Hello there", voice, generator=seeded(seed))[0] for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert one.shape != other.shape or not np.allclose(one, other)


@SYSTEMS
def test_streams_come_in_pieces_with_the_same_pauses(speakers, system):
    model = speakers[system]
    voice = model.voice(wave(), "one", sample_rate=16000)
    greedy = GREEDY
    pieces = list(model.say_stream(LONG, voice, sampler=greedy, steps=2))
    (whole,) = model.say(LONG, voice, sampler=greedy, steps=2)
    assert len(pieces) > 2
    assert len(np.concatenate(pieces)) == len(whole)  # as many tokens; the noise and the mask are a stream's
    assert any(len(piece) == PAUSE * model.sample_rate and not piece.any() for piece in pieces)


@SYSTEMS
def test_what_cannot_be_said(speakers, system):
    model = speakers[system]
    with pytest.raises(ConfigError, match="nothing to say"):
        model.say(["Hi", " ... "], wave(), voice_text="one", sample_rate=16000)
    refused(ConfigError, "without a recording", model.say, "Hi", voice_text="one")
    refused(ConfigError, "generators", lambda: model.say(TEXTS, generator=seeded(1)))
    refused(ConfigError, "speed", model.say, "Hi", speed=2.0)
    refused(ConfigError, "speed", model.say_stream, "Hi", speed=2.0)


# Learnable-Speech


@pytest.mark.parametrize("words", ["", "one two"])
def test_streamed_tokens_are_those_of_generate(learnable, words):
    voice = learnable.voice(wave(), words, sample_rate=16000)
    assert (voice.latents is None) == (not words)
    for sampler in (GREEDY, COSYVOICE):
        found = list(speech_tokens(learnable.lm, "hello there", voice, SynthesisOptions(sampler), 3))
        prompt = {"speaker": voice.speaker, "prompt_text": words, "prompt_speech": voice.tokens}
        options = {"sampler": sampler, "generator": seeded(3)}
        (expected,) = learnable.lm.generate(["hello there"], **prompt, **options)
        assert found == expected.tolist()


def test_a_model_with_paces_speaks_at_other_speeds(learnable) -> None:
    config = replace(learnable.lm.config, positions="progress", pace=2.0, speech_per_text=(2.0, 2.0))
    lm = LearnableLM(config).eval().requires_grad_(False)
    lm.load_state_dict(learnable.lm.state_dict())
    model = LearnableSpeech(lm, learnable.flow, learnable.autoencoder)
    lengths = [
        len(model.say("hello there", wave(), sample_rate=16000, speed=speed)[0]) for speed in (1.0, 2.0)
    ]
    assert lengths[0] == 2 * lengths[1]
    options = SynthesisOptions(COSYVOICE, speed=2.0)
    prompt = model.voice(wave(), sample_rate=16000)
    assert len(list(speech_tokens(lm, "hello there", prompt, options, 0))) == 11  # of 11 characters


@pytest.mark.parametrize("words", ["", "one two"])
def test_a_stream_is_the_whole_under_the_same_mask(learnable, words):
    voice = learnable.voice(wave(), words, sample_rate=16000)
    text, options = (
        "a text that is long enough for chunks of sound, " * 3,
        SynthesisOptions(COSYVOICE, steps=2),
    )
    pieces = list(learnable.synthesize_stream(text, voice, 7, options))
    tokens = list(speech_tokens(learnable.lm, text, voice, options, 7))
    prompt = {"prompt_tokens": voice.prompt, "prompt_latents": voice.latents}
    latents = learnable.flow.generate(tokens, voice.vector, **prompt, steps=2, chunked=True, seed=7)
    (whole,) = learnable.autoencoder.decode(learnable.flow.pack(latents))
    assert len(pieces) > 2
    close(np.concatenate(pieces), whole)


@torch.inference_mode()
@pytest.mark.parametrize("sizes", [[1] * 60, [7, 1, 30, 22], [60], [2, 58]])
def test_decoding_in_pieces_is_decoding_at_once(learnable, sizes):
    vae = learnable.autoencoder
    z = torch.randn(6, 60, generator=torch.Generator().manual_seed(0))
    whole = vae.decode_batch(z[None], torch.tensor([60]))[0].numpy()
    pieces = list(decode_stream(vae, z.split(sizes, 1)))
    close(np.concatenate(pieces), whole)
    assert max(map(len, pieces)) <= (max(sizes) + vae.decoder.reach) * vae.hop_length


def test_zero_shot_hears_the_speaker_alone(learnable):
    voice = learnable.voice(wave(), sample_rate=16000)
    assert len(voice.tokens) == 0
    told = learnable.voice(wave(), "one", sample_rate=16000)
    assert torch.equal(told.vector, voice.vector)
    assert len(told.tokens) == 15  # 0.6 s at 25 Hz
    assert told.latents.shape == (6, 30)
    refused(ConfigError, "give a recording", learnable.say, "Hi")
    with pytest.raises(AudioError, match="30 s"):
        learnable.voice(np.zeros(31 * 800, np.float32), "one", sample_rate=800)


def test_a_folder_of_folders(learnable, tmp_path):
    folder = learnable.save_pretrained(tmp_path / "learnable")
    assert {path.name for path in folder.iterdir()} == {
        "autoencoder", "config.json", "flow", "lm", "README.md", "tokenizer",
    }  # fmt: skip
    again = vokens.load(folder)
    assert isinstance(again, LearnableSpeech)
    assert again.fingerprint == learnable.fingerprint
    assert vokens.load(folder / "lm").fingerprint == learnable.lm.fingerprint
    said = [model.say("Hi", wave(), sample_rate=16000, generator=seeded(1)) for model in (learnable, again)]
    assert np.array_equal(said[0][0], said[1][0])
    mute = LearnableSpeech.from_parts(
        lm=folder / "lm", flow=folder / "flow", autoencoder=folder / "autoencoder"
    )
    refused(ConfigError, "no tokenizer", lambda: mute.voice(wave(), "one", sample_rate=16000))
    assert vokens.load(mute.save_pretrained(tmp_path / "mute")).tokenizer is None
    (folder / "flow").rename(folder / "elsewhere")
    refused(CheckpointError, "lacks flow", vokens.load, folder)


def test_parts_that_do_not_fit(learnable):
    parts = {"lm": learnable.lm, "flow": learnable.flow, "autoencoder": learnable.autoencoder}
    with pytest.raises(ConfigError, match="tokens of the language model and of the flow"):
        LearnableSpeech.from_parts(**parts | {"lm": tiny_lm(81)})
    with pytest.raises(ConfigError, match="latents"):
        LearnableSpeech.from_parts(
            **parts | {"autoencoder": DACVAE(DACVAEConfig(encoder_dim=2, decoder_dim=32))}
        )
    refused(CheckpointError, "not 'learnable_flow'", LearnableSpeech.from_parts, **parts | {"flow": "mini"})


def test_a_flow_of_campplus_vectors(tmp_path):
    model = tiny_speech(campplus=True)
    again = vokens.load(model.save_pretrained(tmp_path / "model"))
    voices = [each.voice(wave(), sample_rate=16000) for each in (model, again)]
    assert voices[0].vector.shape == (1, 192)
    assert torch.equal(voices[0].vector, voices[1].vector)
    heard = model.speaker.embed([torch.from_numpy(wave())])
    assert torch.equal(voices[0].vector, heard)
    assert len(again.say("Hello there.", voices[1], steps=1)[0])
    with pytest.raises(ConfigError, match="CAM"):
        LearnableSpeech.from_parts(lm=model.lm, flow=model.flow, autoencoder=model.autoencoder)


# Partners


def test_models_as_speakers(learnable, speakers):
    assert speaker(learnable) is learnable
    lm, s3gen, codec = tiny_lm(6561), speakers["with_s3gen"].decoder, build_tiny_speechtokenizer()
    assert isinstance(speaker(lm, s3gen), WithS3Gen)
    assert isinstance(speaker(tiny_uslm(), codec), USLMSpeech)
    for model, decoder, words in (
        (codec, None, "speaks no text"),
        (lm, None, "an S3Gen decodes"),
        (tiny_uslm(), s3gen, "needs a codec"),
        (learnable, codec, "has its own decoder"),
    ):
        refused(ConfigError, words, speaker, model, decoder)


def test_a_language_model_without_speaker_token(speakers):
    """CosyVoice 2's: the prompt alone says who speaks."""
    model = speaker(tiny_lm(6561, hears=False), speakers["with_s3gen"].decoder)
    voice = model.voice(wave(), "one", sample_rate=16000)
    greedy = GREEDY
    (whole,) = model.say("Hello there.", voice, sampler=greedy, steps=1)
    streamed = model.say_stream("Hello there.", voice, sampler=greedy, steps=1)
    assert len(np.concatenate(list(streamed))) == len(whole) > 0


def test_uslm_goes_on_from_a_prompt(speakers):
    model = speakers["uslm"]
    refused(ConfigError, "--voice-text", lambda: model.say("Hi", wave(), sample_rate=16000))


def test_uslm_knows_its_codec_by_name():
    model = speaker(USLM(replace(tiny_uslm().config, codec="mini", codebook_size=1024)))
    assert model.codec.name == "mini"
    with pytest.raises(ConfigError, match="cannot be opened"):
        speaker(USLM(replace(tiny_uslm().config, codec="nowhere")))


def test_uslm_says_phonemes_as_they_are():
    model = USLMSpeech(
        USLM(replace(tiny_uslm().config, front_end="phonemes")).eval(), build_tiny_speechtokenizer()
    )
    assert model.pieces("h|ə|l|oʊ,_w|ɜː|l|d!") == ["h|ə|l|oʊ,_w|ɜː|l|d!"]
    assert len(model.say("h|ə|l|oʊ", wave(), voice_text="w|ɜː|l|d", sample_rate=16000)[0])


# As CosyVoice publishes it


def published_folder(folder: Path, release: str) -> Path:
    """CosyVoice's files under their names, reduced; of the networks, what shapes leave open is the release's."""
    import json

    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    folder.mkdir()
    (folder / f"{release}.yaml").touch()
    (folder / "configuration.json").write_text('{"framework": "Pytorch", "task": "text-to-speech"}')
    words = folder / "CosyVoice-BlankEN"
    words.mkdir()
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trained.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=280, initial_alphabet=alphabet))
    trained.model.save(str(words))
    (words / "config.json").write_text(json.dumps({"model_type": "qwen2", "num_attention_heads": 4}))
    third, sizes = release == "cosyvoice3", Qwen2Sizes(280 + 281, 32, 64, 1, 4, 2, 512)
    torch.manual_seed(0)
    lm = LearnableLM(LearnableLMConfig(sizes, None, release=release))
    lm.head.weight.data.normal_(0, 1.0)
    flow = replace(REDUCED, decoder_num_mid_blocks=1)
    if not third:
        few = {
            "encoder_num_blocks": 1,
            "encoder_num_up_blocks": 1,
            "decoder_n_blocks": 1,
            "decoder_num_mid_blocks": 1,
        }
        heads = {"decoder_channels": 256, "decoder_num_heads": 8, "decoder_attention_head_dim": 64}
        flow = replace(reduced("cosyvoice2"), **few, **heads)
    sounds = HiFTNetModel(replace(VOCODER, source=flow.source)).state_dict()
    tokens = S3Tokenizer(S3TokenizerConfig(width=64, heads=1, layers=1)).to_published()
    for name, state in {
        "llm.pt": lm.to_published(),
        "flow.pt": flow_to_published(TokenToMel(flow).state_dict(), flow.decoder_attention_head_dim),
        "hift.pt": hift_to_published(sounds),
        "campplus.onnx": CAMPPlus().state_dict(),
        f"speech_tokenizer_v{release[-1]}.onnx": tokens,
    }.items():
        torch.save(state, folder / name)
    return folder


@pytest.mark.parametrize("release", ["cosyvoice2", "cosyvoice3"])
def test_a_folder_as_cosyvoice_publishes_it_speaks(release, tmp_path, monkeypatch, capsys):
    folder = published_folder(tmp_path / "CosyVoice", release)
    monkeypatch.chdir(tmp_path)
    soundfile.write("ref.wav", wave(), 16000)
    said = ["say", "Hi.", "--model", str(folder), "--voice", "ref.wav", "--steps", "1", "--voice-text"]
    assert main([*said, "One.", "-o", "out.wav"]) == 0, capsys.readouterr().err
    speaking = load_voice(folder)
    assert isinstance(speaking, WithS3Gen)
    assert (speaking.lm.config.release, speaking.decoder.name) == (release, release)
    assert speaking.lm.config.tokens == speaking.decoder.config.tokens
    (expected,) = speaking.say("Hi.", "ref.wav", voice_text="One.", steps=1, generator=seeded(0))
    np.testing.assert_allclose(samples("out.wav"), expected.clip(-1, 1), atol=1e-4)
    ids, own = speaking.lm._read("Hi.", "One.")
    marked = speaking.lm.ids(OPENING) if release == "cosyvoice3" else []
    assert ids.tolist() == marked + speaking.lm.ids("One.") + speaking.lm.ids("Hi.")
    assert own == len(speaking.lm.ids("Hi."))
    assert isinstance(speaking.decoder, S3GenModel)  # as the folder opens where no text is to be said
    words = vokens.load(folder / "llm.pt")
    assert isinstance(words, LearnableLM)
    assert words.config == speaking.lm.config
    other = tiny_s3gen() if release == "cosyvoice3" else None
    refused(ConfigError, r"other sounds|makes S3 tokens", speaker, words, other)


def test_of_silence_cosyvoice_3_speaks_five_tokens_at_most(tmp_path):
    """Of two silent tokens with opposite weights one always has the largest logit."""
    speaking = load_voice(published_folder(tmp_path / "CosyVoice", "cosyvoice3"))
    voice = speaking.voice(wave(), sample_rate=16000)
    speaking.lm.head.weight.zero_()
    speaking.lm.head.weight[1], speaking.lm.head.weight[2] = 1.0, -1.0
    options = {"sampler": GREEDY, "steps": 1}
    assert len(speaking.lm.generate(["Hi."], sampler=GREEDY)[0]) > 5
    assert len(speaking.say("Hi.", voice, **options)[0]) == 5 * 960
    assert sum(map(len, speaking.say_stream("Hi.", voice, **options))) == 5 * 960


def test_what_cosyvoices_folder_lacks_is_named(tmp_path):
    folder = published_folder(tmp_path / "CosyVoice", "cosyvoice3")
    for name, said in (
        ("hift.pt", r"flow\.pt and llm\.pt and campplus\.onnx and no hift\.pt.*download what is missing"),
        ("flow.pt", r"no flow\.pt"),
        ("llm.pt", r"its llm\.pt in it"),
        ("campplus.onnx", r"put campplus\.onnx into"),
        ("speech_tokenizer_v3.onnx", r"put speech_tokenizer_v3\.onnx into"),
        ("CosyVoice-BlankEN/config.json", r"put CosyVoice-BlankEN/config\.json beside"),
    ):
        hidden = (folder / name).rename(tmp_path / "hidden")
        with pytest.raises((CheckpointError, ConfigError), match=said):
            load_voice(folder).voice(wave(), sample_rate=16000)
        hidden.rename(folder / name)


# The verb


@pytest.fixture(scope="module")
def folders(learnable, speakers, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("models")
    learnable.save_pretrained(root / "learnable")
    speakers["uslm"].uslm.save_pretrained(root / "runs/uslm/model")
    speakers["uslm"].codec.save_pretrained(root / "codec")
    return root


@pytest.fixture
def here(folders, tmp_path, monkeypatch) -> Path:
    """A folder with the models and ref.wav."""
    for path in folders.iterdir():
        (tmp_path / path.name).symlink_to(path)
    soundfile.write(tmp_path / "ref.wav", wave(), 16000)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said(*words: str) -> int:
    return main(["say", *words, "--model", "learnable", "--voice", "ref.wav", "--steps", "1"])


def samples(path: str | Path) -> np.ndarray:
    return soundfile.read(path, dtype="float32")[0]


def test_a_text_becomes_a_file(here, capsys):
    assert said("It was", "5 o'clock.", "-o", "out.flac", "--seed", "3") == 0
    assert "wrote out.flac" in capsys.readouterr().err
    model = vokens.load("learnable")
    (expected,) = model.say("It was 5 o'clock.", "ref.wav", steps=1, generator=seeded(3))
    assert soundfile.info("out.flac").samplerate == 24000
    np.testing.assert_allclose(samples("out.flac"), expected.clip(-1, 1), atol=1e-4)
    assert said("Hello there.") == said("Hello there.", "-o", "folder/") == 0
    assert np.array_equal(samples("said.wav"), samples("folder/said.wav"))
    assert said("Hello there.") == 2  # said.wav exists
    assert said("Hello there.", "--force", "--voice-text", "one") == 0


def test_lines_of_a_file_become_files_and_a_second_run_goes_on(here, capsys):
    Path("lines.txt").write_text("Hello there.\n\nname\tIt was not there.\nNo, it was not!\n")
    assert said("--file", "lines.txt", "-o", "out") == 0
    names = ["0001.wav", "0004.wav", "name.wav"]
    assert sorted(path.name for path in Path("out").iterdir()) == names
    assert "3 of 3 done" in capsys.readouterr().err
    first = samples("out/0001.wav")
    Path("out/0004.wav").unlink()
    times = Path("out/name.wav").stat().st_mtime_ns
    assert said("--file", "lines.txt", "-o", "out") == 0
    assert "2 of 3 exist" in capsys.readouterr().err
    assert Path("out/name.wav").stat().st_mtime_ns == times
    assert said("No, it was not!", "-o", "alone.wav") == 0  # a line alone is the line among others
    np.testing.assert_allclose(samples("alone.wav"), samples("out/0004.wav"), atol=1e-4)
    assert said("--file", "lines.txt", "-o", "out", "--force") == 0
    assert np.array_equal(samples("out/0001.wav"), first)


def test_a_model_that_says_nothing_is_an_error(here, capfdbinary):
    for words in (
        ["-o", "a.wav"],
        ["-o", "a.mp3"],
        ["--stream", "-o", "a.wav"],
        ["--stream", "-o", "-"],
        ["-o", "-"],
    ):
        assert said("Hi", *words) == 2  # two letters, on which the tiny model ends at once
        out, error = capfdbinary.readouterr()
        assert b"another seed, or a longer text" in error
        assert out == b""
    Path("lines.txt").write_text("Hi\nHello there.\n")
    assert said("--file", "lines.txt", "-o", "out") == 1
    assert b"line 1: the model ended at once" in capfdbinary.readouterr().err
    assert [path.name for path in Path("out").iterdir()] == ["0002.wav"]
    assert not list(Path().glob("a.*"))


def test_a_line_that_fails_leaves_the_others(here, capsys):
    Path("lines.txt").write_text("Hello there.\n你好。\nNo, it was not!\n", encoding="utf-8")
    assert said("--file", "lines.txt", "-o", "out") == 1
    captured = capsys.readouterr().err
    assert "line 2" in captured
    assert "2 of 3 done" in captured
    assert sorted(path.name for path in Path("out").iterdir()) == ["0001.wav", "0003.wav"]


def test_standard_input_and_output(here, capfdbinary, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello there, all of you who are here."))
    assert said("-", "-o", "-", "--stream", "--format", "pcm") == 0
    raw = np.frombuffer(capfdbinary.readouterr().out, "<i2")
    assert said("Hello there, all of you who are here.", "--stream", "-o", "-") == 0
    header = capfdbinary.readouterr().out
    assert header[:4] == b"RIFF"
    assert np.array_equal(np.frombuffer(header[44:], "<i2"), raw)
    assert said("Hello there, all of you who are here.", "--stream", "-o", "streamed.wav") == 0
    assert len(samples("streamed.wav")) == len(raw)
    assert said("Hello there, all of you who are here.", "-o", "-", "--format", "pcm") == 0
    assert len(np.frombuffer(capfdbinary.readouterr().out, "<i2")) == len(raw)


def test_standard_input_that_is_not_utf8_is_refused(here, monkeypatch, capsys):
    for words in (["-"], ["--file", "-", "-o", "out"]):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Good\ncaf\xe9 morning")))
        assert said(*words) == 2
        assert "standard input, line 2, byte 4: 0xe9 is not UTF-8" in capsys.readouterr().err


def test_what_a_language_model_writes_is_said(here, caplog, capsys):
    assert said("**Good** morning 😀, it's 5℃ – see `x²` → ∞, 你好!", "-o", "llm.wav") == 0
    assert "does not know 你 好: left out" in caplog.text
    assert len(samples("llm.wav"))
    assert said("你好", "-o", "none.wav") == 2
    assert "cannot be spoken" in capsys.readouterr().err


def test_uslm_with_its_codec(here):
    words = ["say", "Hello", "--model", "runs/uslm/model", "--decoder", "codec", "-o", "uslm.wav"]
    assert main([*words, "--voice", "ref.wav", "--voice-text", "one", "--top-p", "0.9"]) == 0
    assert main([*words, "--temperature", "0", "--force"]) == 0  # without a prompt
    assert soundfile.info("uslm.wav").samplerate == 16000


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["Hi"], "found here: runs/uslm/model"),
        ([], "neither was given"),
        (["Hi", "--file", "x"], "both were given"),
        (["Hi", "-o", "x.txt", "-m", "learnable"], "ends in .txt"),
        (["Hi", "-o", "x.mp3", "--stream", "-m", "learnable"], "--stream writes"),
        (["Hi", "-o", "x.mp3", "--format", "wav", "-m", "learnable"], "disagree"),
        (["--file", "missing", "-o", "out"], "cannot be read"),
        (["--file", "ref.txt"], "give a folder"),
        (["--file", "twice.txt", "-o", "out"], "both called"),
        (["--file", "outside.txt", "-o", "out"], "inside the folder"),
        (["Hi", "-m", "learnable"], "give a recording"),
        (["Hi", "-m", "learnable", "--voice-text", "one"], "without --voice"),
        (["Hi", "-m", "codec"], "speaks no text"),
        (["Hi", "-m", "learnable/lm"], "an S3Gen decodes"),
        (["Hi", "--seed", "-1"], "--seed from 0"),
        (["...", "-m", "learnable", "--voice", "ref.wav"], "nothing to say"),
    ],
)
def test_errors_say_what_to_do(here, capsys, monkeypatch, words, reason):
    monkeypatch.delitem(registry.MODELS, registry.VOICE, raising=False)  # a copy without a voice
    Path("twice.txt").write_text("a\tHello\na\tHello\n")
    Path("outside.txt").write_text("../a\tHello\n")
    assert main(["say", *words]) == 2
    assert reason in capsys.readouterr().err
    assert not list(here.glob("*.mp3"))


def test_the_page_runs(here, speakers, monkeypatch):
    page = (Path(__file__).parents[2] / "docs/jobs/say.md").read_text()
    for part in ("lm", "flow", "autoencoder", "tokenizer"):
        Path(part).symlink_to(here / "learnable" / part)
    Path("uslm").symlink_to(here / "runs/uslm/model")
    Path("book.txt").write_text(LONG)
    Path("lines.txt").write_text("Hello there.\nname\tIt was not there.\n")
    lines = [line for block in re.findall(r"```console\n(.*?)```", page, re.S) for line in block.splitlines()]
    assert len(lines) == 8
    for line in lines:
        words, _, source = line.partition(" | ")[0].partition(" < ")
        if "--decoder s3gen" in words or "-o -" in words:  # tested above
            continue
        if source:
            monkeypatch.setattr("sys.stdin", io.StringIO(Path(source).read_text()))
        assert main(shlex.split(words)[1:]) == 0, line
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.S):
        exec(block, names)
        for call, result in re.findall(r'(normalise\(".*?"\))\s+# (.*)', block):
            assert eval(call, names) == result
    assert len(names["waves"]) == 2
    assert isinstance(vokens.load("together"), LearnableSpeech)
